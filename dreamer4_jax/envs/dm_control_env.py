"""The DeepMind Control Suite from pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dm_control import suite
import numpy as np

from dreamer4_jax.config import ActionComponent, EnvConfig
from dreamer4_jax.envs.host import (
  HostEnv,
  Outcome,
  components,
  to_bounds,
)

ACTION = 'action'
"""Name of the only action component."""
DEFAULT_SIZE = (64, 64)


class ControlSimulator:
  """One task of the suite."""

  labels: Mapping[str, Sequence[str]] = {}

  def __init__(self, level: str, size: tuple[int, int]):
    """Loads the task.

    Args:
      level: 'domain-task', for example 'cartpole-swingup'.
      size: height and width of the frames.

    Raises:
      ValueError: there is no such task.
    """
    domain, _, task = level.partition('-')
    if (domain, task) not in suite.ALL_TASKS:
      known = sorted(f'{d}-{t}' for d, t in suite.ALL_TASKS)
      raise ValueError(
        f"EnvConfig.name = 'dm_control:{level}': must be domain-task among "
        f'{known}'
      )
    self._names = domain, task
    self._size = size
    self._env = suite.load(domain, task)
    spec = self._env.action_spec()
    self._bounds = spec.minimum, spec.maximum
    self._parts = components(
      {name: s.shape for name, s in self._env.observation_spec().items()}
    )
    self.vectors = tuple(self._parts.values())
    size_of_action = int(np.prod(spec.shape))
    self.actions = (
      ActionComponent(name=ACTION, kind='continuous', size=size_of_action),
    )

  def reset(self, seed: int) -> np.ndarray:
    """Starts an episode; returns the first frame."""
    # The suite takes its seed when a task is loaded.
    self._env.close()
    self._env = suite.load(*self._names, task_kwargs={'random': seed})
    self._observation = self._env.reset().observation
    return self._draw()

  def step(self, action: dict[str, np.ndarray]) -> Outcome:
    """Acts once."""
    step = self._env.step(to_bounds(action[ACTION], *self._bounds))
    self._observation = step.observation
    # At its time limit the suite ends an episode with discount 1.
    terminal = step.last() and step.discount == 0
    return Outcome(
      frame=self._draw(),
      reward=float(step.reward or 0.0),
      terminal=terminal,
      timeout=step.last() and not terminal,
    )

  def sense(self) -> dict[str, np.ndarray]:
    """Returns the task's observations, each as a vector under its name."""
    return {
      part.name: np.asarray(self._observation[name], np.float32).reshape(-1)
      for name, part in self._parts.items()
    }

  def close(self) -> None:
    """Frees the simulation."""
    self._env.close()

  def _draw(self) -> np.ndarray:
    height, width = self._size
    return self._env.physics.render(height, width, camera_id=0)


def make(level: str, config: EnvConfig) -> HostEnv:
  """Makes the adapter; frames are drawn at `config.image_size`."""
  size = config.image_size or DEFAULT_SIZE
  return HostEnv(lambda: ControlSimulator(level, size), config)
