"""Environments that live on the host: Gymnasium and dm_control.

Their state is inside the simulators, so it cannot be copied or restored, and
their `step` cannot be jitted: `EnvSpec.on_host` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import re
from typing import Any, Protocol

import jax
import numpy as np
from PIL import Image

from dreamer4_jax.config import (
  ActionComponent,
  EnvConfig,
  VectorComponent,
  require,
)
from dreamer4_jax.envs.protocol import EnvSpec
from dreamer4_jax.types import Actions, Array, EnvStep

TASKS = ('reward',)
"""These environments have no events; their reward is the task."""


class Simulator(Protocol):
  """One episode at a time, on the host."""

  @property
  def actions(self) -> tuple[ActionComponent, ...]:
    """The action space."""

  @property
  def labels(self) -> Mapping[str, Sequence[str]]:
    """Names of the classes or bits of action components, if there are any."""

  @property
  def vectors(self) -> tuple[VectorComponent, ...]:
    """What `sense` returns; image-only simulators may lack both."""

  def sense(self) -> dict[str, np.ndarray]:
    """Returns what is observed with the latest frame, components `[n]`."""

  def reset(self, seed: int) -> np.ndarray:
    """Starts an episode; returns the first frame `[H, W, 3]` uint8."""

  def step(self, action: dict[str, np.ndarray]) -> Outcome:
    """Acts once."""

  def close(self) -> None:
    """Frees what it holds."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a step of one simulator shows.

  Attributes:
    frame: `[H, W, 3]` uint8.
    reward: the environment's reward.
    terminal: the episode ended for good.
    timeout: the simulator cut it short.
  """

  frame: np.ndarray
  reward: float
  terminal: bool
  timeout: bool


@dataclasses.dataclass
class HostState:
  """The simulators of a batch and their progress; changed by `step`."""

  simulators: list[Simulator]
  frames: np.ndarray
  vectors: dict[str, np.ndarray]
  terminal: np.ndarray
  timeout: np.ndarray
  steps: int = 0


class HostEnv:
  """A batch of simulators behind the protocol of `Environment`."""

  def __init__(self, make: Callable[[], Simulator], config: EnvConfig):
    """Makes one simulator to inspect, and more as episodes need them.

    Args:
      make: makes a simulator.
      config: size of frames and time limit.
    """
    require(
      config.max_steps >= 1,
      'EnvConfig.max_steps',
      config.max_steps,
      'must be at least 1',
    )
    self._make = make
    self._size = config.image_size
    probe = make()
    height, width, channels = self._fit(probe.reset(0)).shape
    self._spec = EnvSpec(
      height=height,
      width=width,
      channels=channels,
      actions=probe.actions,
      tasks=TASKS,
      max_steps=config.max_steps,
      labels=probe.labels,
      vectors=tuple(getattr(probe, 'vectors', ())),
      on_host=True,
    )
    self._idle = [probe]

  @property
  def spec(self) -> EnvSpec:
    """Sizes, actions and tasks."""
    return self._spec

  def reset(self, keys: Array) -> tuple[HostState, EnvStep]:
    """Starts one episode per key; earlier states become invalid."""
    seeds = np.asarray(jax.vmap(jax.random.bits)(keys)) >> 1
    while len(self._idle) < len(seeds):
      self._idle.append(self._make())
    simulators = self._idle[: len(seeds)]
    frames = [
      self._fit(simulator.reset(int(seed)))
      for simulator, seed in zip(simulators, seeds, strict=True)
    ]
    never = np.zeros(len(seeds), bool)
    vectors = {
      v.name: np.zeros((len(seeds), v.size), np.float32)
      for v in self._spec.vectors
    }
    state = HostState(
      simulators, np.stack(frames), vectors, never, never.copy()
    )
    for i in range(len(seeds)):
      self._sense(state, i)
    return state, self._show(state, np.zeros(len(seeds), np.float32))

  def step(
    self, state: HostState, actions: Actions
  ) -> tuple[HostState, EnvStep]:
    """Acts once in every episode; see `Environment.step`."""
    actions = {k: np.asarray(v) for k, v in actions.items()}
    reward = np.zeros(len(state.simulators), np.float32)
    state.steps += 1
    for i, simulator in enumerate(state.simulators):
      if state.terminal[i] or state.timeout[i]:
        continue
      outcome = simulator.step({k: v[i] for k, v in actions.items()})
      state.frames[i] = self._fit(outcome.frame)
      self._sense(state, i)
      reward[i] = outcome.reward
      state.terminal[i] = outcome.terminal
      late = outcome.timeout or state.steps >= self._spec.max_steps
      state.timeout[i] = late and not outcome.terminal
    return state, self._show(state, reward)

  def _sense(self, state: HostState, i: int) -> None:
    """Records what simulator i observes along with its frame."""
    if state.vectors:
      for name, value in state.simulators[i].sense().items():
        state.vectors[name][i] = value

  def _show(self, state: HostState, reward: np.ndarray) -> EnvStep:
    return EnvStep(
      frame=state.frames.copy(),
      reward=reward,
      events=np.zeros((len(reward), len(TASKS)), np.float32),
      terminal=state.terminal.copy(),
      timeout=state.timeout.copy(),
      vectors={name: x.copy() for name, x in state.vectors.items()},
    )

  def _fit(self, frame: np.ndarray) -> np.ndarray:
    """Resizes a frame, averaging over pixels."""
    frame = as_picture(frame)
    if self._size is None or frame.shape[:2] == self._size:
      return frame
    height, width = self._size
    grey = frame.shape[-1] == 1
    image = Image.fromarray(frame[..., 0] if grey else frame)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BOX))
    return resized[..., None] if grey else resized


def as_picture(frame: Any) -> np.ndarray:
  """Returns what a simulator draws as a picture, if nothing is lost.

  Args:
    frame: `[H, W]`, which becomes three channels, or `[H, W, C]` with one,
      three, or four channels, the last of which says that all is opaque; whole
      numbers in 0 to 255.

  Returns:
    `[H, W, 1]` or `[H, W, 3]` uint8.

  Raises:
    ValueError: it is no such picture, for example floats in 0 to 1.
  """
  frame = np.asarray(frame)
  if frame.ndim == 2:
    frame = frame[..., None].repeat(3, axis=-1)
  if frame.ndim != 3 or frame.shape[-1] not in (1, 3, 4) or 0 in frame.shape:
    raise ValueError(
      f'the environment draws {frame.dtype} of shape {frame.shape}; expected a '
      'picture, (height, width, 3)'
    )
  if frame.dtype != np.uint8:
    exact = frame.dtype.kind in 'iuf' and bool(
      ((frame >= 0) & (frame <= 255) & (frame == np.round(frame))).all()
    )
    # Ones may be white in a picture of 0 to 1.
    if not exact or (frame.dtype.kind == 'f' and frame.max() == 1):
      raise ValueError(
        f'the environment draws {frame.dtype} from {frame.min()} to '
        f'{frame.max()}; expected whole numbers from 0 to 255. Let its render '
        'return uint8'
      )
    frame = frame.astype(np.uint8)
  if frame.shape[-1] == 4:
    if (frame[..., 3] != 255).any():
      raise ValueError(
        'the environment draws transparent pixels, whose colours are not '
        'known; expected an opaque picture'
      )
    frame = np.ascontiguousarray(frame[..., :3])
  return frame


def components(
  shapes: Mapping[str, Sequence[int]],
) -> dict[str, VectorComponent]:
  """Describes arrays observed along with frames, each as one flat vector.

  Args:
    shapes: of the arrays, by the simulator's name for them.

  Returns:
    A vector for each name, except for arrays without values. Its own name is
    that name as an identifier, with a number if that is taken.
  """
  found: dict[str, VectorComponent] = {}
  for name, shape in shapes.items():
    identifier = re.sub(r'\W|^(?=\d)', '_', name)
    taken = {part.name for part in found.values()}
    free = (f'{identifier}_{i}' for i in itertools.count(2))
    own = next(n for n in itertools.chain([identifier], free) if n not in taken)
    if size := int(np.prod(shape)):
      found[name] = VectorComponent(name=own, size=size)
  return found


def to_bounds(
  value: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
  """Stretches values in [-1, 1] to bounds."""
  low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
  return low + (np.clip(value, -1, 1) + 1) / 2 * (high - low)
