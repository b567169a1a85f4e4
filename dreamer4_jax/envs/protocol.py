"""What an environment must offer, whatever engine is behind it.

Environments are batched and functional: the state is a pytree that the caller
holds, so a rollout is one `jax.lax.scan`; where a simulator on the host makes
that impossible, `EnvSpec.on_host` says so. Nothing resets by itself. Stepping
an episode that has ended is a mistake of the caller, but a harmless one: the
frame stays, reward and events are 0, the flags keep their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Protocol

from dreamer4_jax.config import ActionComponent, VectorComponent, require
from dreamer4_jax.types import Actions, Array, EnvStep, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvSpec:
  """What a caller needs to know before the first reset."""

  height: int
  """Frame height in pixels."""
  width: int
  """Frame width in pixels."""
  channels: int
  """Colour channels."""
  actions: tuple[ActionComponent, ...]
  """The action space."""
  tasks: tuple[str, ...]
  """Names of the events, in the order of `EnvStep.events`."""
  max_steps: int
  """Time limit of an episode, in steps."""
  labels: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  """Names of the classes or bits of action components, for people."""
  vectors: tuple[VectorComponent, ...] = ()
  """What `EnvStep.vectors` shows beside frames; mean and std mean nothing."""
  on_host: bool = False
  """The state lives in a simulator on the host: `step` changes it in place and
  cannot be jitted, and there is one batch of episodes at a time."""

  def __post_init__(self):
    for name in ('height', 'width', 'channels', 'max_steps'):
      value = getattr(self, name)
      require(value >= 1, f'EnvSpec.{name}', value, 'must be at least 1')

  @property
  def frame_shape(self) -> tuple[int, int, int]:
    """Height, width and channels of a frame."""
    return self.height, self.width, self.channels


class Environment(Protocol):
  """A batch of environments that run in step with each other."""

  @property
  def spec(self) -> EnvSpec:
    """Sizes, actions and tasks."""

  def reset(self, keys: Array) -> tuple[PyTree, EnvStep]:
    """Starts one episode per key.

    Args:
      keys: `[B]` typed keys of `jax.random.key`.

    Returns:
      The state, and the first step, with reward and events 0.
    """

  def step(self, state: PyTree, actions: Actions) -> tuple[PyTree, EnvStep]:
    """Acts once in every episode.

    Args:
      state: what `reset` or `step` returned.
      actions: components `[B, ...]` by name, as `spec.actions` lists them.

    Returns:
      The next state, and what the batch shows now.
    """
