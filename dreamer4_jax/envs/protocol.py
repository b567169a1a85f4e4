"""What an environment must offer, whatever engine is behind it.

Environments are batched and functional: the state is a pytree that the caller
holds, so a rollout is one `jax.lax.scan`; where a simulator on the host makes
that impossible, `EnvSpec.on_host` says so. Nothing resets by itself. Stepping
an episode that has ended is a mistake of the caller, but a harmless one: the
frame stays, reward and events are 0, the flags keep their values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Protocol

from dreamer4_jax.config import ActionComponent, VectorComponent, require
from dreamer4_jax.envs.tiles import Tiles
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
  """What `EnvStep.vectors` shows along with frames; mean and std are unused."""
  tiles: Tiles | None = dataclasses.field(default=None, compare=False)
  """What frames are made of in a tile world, for metrics."""
  legend: Tiles | None = dataclasses.field(default=None, compare=False)
  """Tiles by name, as they look in full light, where `tiles` cannot list all
  that there are; for people who say what they see."""
  facts: Callable[[PyTree], Mapping[str, Array]] | None = dataclasses.field(
    default=None, compare=False
  )
  """What is true of a state, numbers `[B]` by name, for probes of what a frame
  shows. No agent ever sees them."""
  on_host: bool = False
  """The state lives in a simulator on the host: `step` changes it in place and
  cannot be jitted, and there is one batch of episodes at a time."""

  def __post_init__(self):
    for name in ('height', 'width', 'channels', 'max_steps'):
      value = getattr(self, name)
      require(value >= 1, f'EnvSpec.{name}', value, 'must be at least 1')
    side = self.tiles.side if self.tiles else 1
    require(
      self.height % side == 0 and self.width % side == 0,
      'EnvSpec.tiles',
      side,
      f'the side must divide the frame, {self.height}x{self.width}',
    )

  @property
  def frame_shape(self) -> tuple[int, int, int]:
    """Height, width and channels of a frame."""
    return self.height, self.width, self.channels


class Environment(Protocol):
  """A batch of environments that run in lockstep."""

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
