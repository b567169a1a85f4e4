"""Gymnasium environments from pixels, including Atari through ale-py.

The frame is the observation if that is an image, else what `render` draws.
Vectors are observed along with it: an observation of at most one dimension as
`state`, those in a dictionary of observations by their keys.
"""

from __future__ import annotations

from collections.abc import Mapping
import importlib.util
from typing import Any

import gymnasium
import numpy as np

from dreamer4_jax.config import ActionComponent, EnvConfig
from dreamer4_jax.envs.host import (
  HostEnv,
  Outcome,
  components,
  to_bounds,
)

ACTION = 'action'
"""Name of the action component; if there are several, they are numbered."""
STATE = 'state'
"""Name of the vector if the observation is one."""
_ATARI = 'ALE/'

# Here and not where an environment is made, so that every use of Gymnasium in
# this module knows Atari, whichever comes first.
_HAS_ATARI = importlib.util.find_spec('ale_py') is not None
if _HAS_ATARI:
  import ale_py

  gymnasium.register_envs(ale_py)
  # Otherwise each game prints a banner on standard error.
  ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


class GymnasiumSimulator:
  """One Gymnasium environment."""

  def __init__(self, level: str):
    """Makes the environment.

    Raises:
      ValueError: its actions are not `Discrete`, `MultiDiscrete`, `MultiBinary`
        or a bounded `Box`, or it draws no pictures.
      gymnasium.error.Error: it is unknown or lacks a package.
    """
    self._env = _make(level)
    space = self._env.observation_space
    self._has_keys = isinstance(space, gymnasium.spaces.Dict)
    spaces = space.spaces if self._has_keys else {STATE: space}
    self._sees_pixels = _is_image(space)
    self._parts = components(
      {name: s.shape for name, s in spaces.items() if _is_vector(s)}
    )
    self.vectors = tuple(self._parts.values())
    self.actions = action_components(self._env.action_space, level)

  @property
  def labels(self) -> dict[str, list[str]]:
    """Names of Atari's actions; nothing for other environments."""
    meanings = getattr(self._env.unwrapped, 'get_action_meanings', None)
    if meanings is None or [c.kind for c in self.actions] != ['categorical']:
      return {}
    return {ACTION: [str(name).lower() for name in meanings()]}

  def reset(self, seed: int) -> np.ndarray:
    """Starts an episode; returns the first frame."""
    self._observation, _ = self._env.reset(seed=seed)
    return self._frame()

  def step(self, action: dict[str, np.ndarray]) -> Outcome:
    """Acts once."""
    self._observation, reward, terminal, timeout, _ = self._env.step(
      to_gymnasium(self._env.action_space, action)
    )
    return Outcome(self._frame(), float(reward), bool(terminal), bool(timeout))

  def sense(self) -> dict[str, np.ndarray]:
    """Returns the vectors of the latest observation."""
    return {
      part.name: np.asarray(self._seen(name), np.float32).reshape(-1)
      for name, part in self._parts.items()
    }

  def close(self) -> None:
    """Closes the environment."""
    self._env.close()

  def _frame(self) -> np.ndarray:
    # An image in a dictionary may show anything, such as codes of tiles.
    if self._sees_pixels:
      return np.asarray(self._observation)
    drawn = self._env.render()
    if drawn is None:
      raise ValueError(_no_pictures(self._env.metadata))
    return np.asarray(drawn)

  def _seen(self, name: str) -> Any:
    """Returns a part of the latest observation."""
    return self._observation[name] if self._has_keys else self._observation


def _make(level: str) -> gymnasium.Env:
  """Makes an environment that draws; raises `ValueError` if it cannot."""
  try:
    return gymnasium.make(level, render_mode='rgb_array')
  except (TypeError, AssertionError) as error:
    about = gymnasium.registry.get(level)
    modes = getattr(about and about.entry_point, 'metadata', {})
    raise ValueError(
      f'{_no_pictures(modes)} ({type(error).__name__}: {error})'
    ) from error


def _no_pictures(metadata: Mapping[str, Any]) -> str:
  modes = list(metadata.get('render_modes') or ())
  return (
    'the environment draws no pictures; its render_modes must have rgb_array '
    f'and are {modes or "unknown"}'
  )


def _is_image(space: gymnasium.Space) -> bool:
  shape = space.shape or ()
  return len(shape) == 3 and shape[-1] in (1, 3) and space.dtype == np.uint8


def _is_vector(space: gymnasium.Space) -> bool:
  return isinstance(space, gymnasium.spaces.Box) and len(space.shape) <= 1


def make(level: str, config: EnvConfig) -> HostEnv:
  """Makes the adapter for a level such as 'ALE/Pong-v5' or 'CarRacing-v3'.

  Raises:
    ValueError: the level is unknown, has no pixels, or has actions that
      `GymnasiumSimulator` does not take.
    ModuleNotFoundError: it is an Atari game, and ale-py is not installed.
    ImportError: the level needs another package.
  """
  if level.startswith(_ATARI) and not _HAS_ATARI:
    raise ModuleNotFoundError('no ale_py', name='ale_py')
  try:
    return HostEnv(lambda: GymnasiumSimulator(level), config)
  except gymnasium.error.DependencyNotInstalled as error:
    raise ImportError(_refusal(level, error)) from error
  except gymnasium.error.Error as error:
    raise ValueError(_refusal(level, error)) from error
  except ValueError as error:
    if str(error).startswith('EnvConfig.'):
      raise
    raise ValueError(_refusal(level, error)) from error


def _refusal(level: str, error: Exception) -> str:
  return f"EnvConfig.name = 'gymnasium:{level}': {error}"


def action_components(
  space: gymnasium.Space, level: str
) -> tuple[ActionComponent, ...]:
  """Describes an action space; bounded boxes are scaled to [-1, 1]."""
  spaces = gymnasium.spaces
  if isinstance(space, spaces.Discrete):
    return (
      ActionComponent(name=ACTION, kind='categorical', size=int(space.n)),
    )
  if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
    return tuple(
      ActionComponent(name=f'{ACTION}{i}', kind='categorical', size=int(n))
      for i, n in enumerate(space.nvec)
    )
  size = int(np.prod(space.shape or ()))
  if isinstance(space, spaces.MultiBinary):
    return (ActionComponent(name=ACTION, kind='binary', size=size),)
  if isinstance(space, spaces.Box) and space.is_bounded():
    return (ActionComponent(name=ACTION, kind='continuous', size=size),)
  raise ValueError(
    f"EnvConfig.name = 'gymnasium:{level}': its actions are {space}; Discrete, "
    'MultiDiscrete, MultiBinary and bounded Box spaces are supported'
  )


def to_gymnasium(space: gymnasium.Space, action: dict[str, np.ndarray]) -> Any:
  """Turns components into what the environment takes."""
  spaces = gymnasium.spaces
  if isinstance(space, spaces.Discrete):
    return int(action[ACTION]) + int(space.start)
  if isinstance(space, spaces.MultiDiscrete):
    chosen = [action[f'{ACTION}{i}'] for i in range(len(space.nvec))]
    return np.asarray(chosen, space.dtype) + space.start
  value = action[ACTION].reshape(space.shape)
  if isinstance(space, spaces.Box):
    value = to_bounds(value, space.low, space.high)
  return value.astype(space.dtype)
