"""What a player may choose, and has chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Literal, get_args

from dreamer4_jax.config import require
from dreamer4_jax.play.serve.challenges import Challenge
from dreamer4_jax.play.serve.controls import Panel
from dreamer4_jax.play.serve.timeline import World

Mode = Literal['human', 'policy', 'mixed']
MODES: tuple[str, ...] = get_args(Mode)
RATES = 1.0, 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """What a session may choose from, and what it begins with.

  Attributes:
    panels: controls.
    steps: denoising steps K, the default first.
    levels: how clear past frames may be, 0..levels - 1.
    level: of the run.
    tasks: names, empty without heads.
    policy: whether there is one.
    rate: frames per second.
    starts: for each frame to begin with, the id of the task that is held first.
    challenges: what to try; each begins with one of `starts`.
    budget: bytes for states of the past.
    real: whether there is a real game to play beside.
  """

  panels: Sequence[Panel]
  steps: tuple[int, ...]
  levels: int
  level: int
  tasks: tuple[str, ...] = ()
  policy: bool = True
  rate: float = 10.0
  starts: tuple[int, ...] = (0,)
  challenges: tuple[Challenge, ...] = ()
  budget: int = 32 << 20
  real: bool = False

  @property
  def waits(self) -> bool:
    """Whether some component has no class for nothing, and must wait."""
    return any(
      panel.idle is None and panel.part.kind == 'categorical'
      for panel in self.panels
    )

  def check(self, chosen: Mapping[str, Any]) -> None:
    """Checks settings that a player chooses.

    Args:
      chosen: fields of `Settings` by name.

    Raises:
      ValueError: a value is not among those there are.
    """
    modes = MODES if self.policy else MODES[:1]
    allowed = {
      'mode': (lambda x: x in modes, f'must be {" or ".join(modes)}'),
      'steps': (lambda x: x in self.steps, f'must be one of {self.steps}'),
      'level': (
        lambda x: 0 <= x < self.levels,
        f'must be in 0..{self.levels - 1}',
      ),
      'task': (
        lambda x: 0 <= x < max(1, len(self.tasks)),
        f'must be an id below {len(self.tasks)}',
      ),
      'rate': (
        lambda x: RATES[0] <= x <= RATES[1],
        f'must be in {RATES[0]:g}..{RATES[1]:g} frames per second',
      ),
      'world': (
        lambda x: x == 'dream' or (self.real and x == 'game'),
        'must be dream, or game where there is a real one',
      ),
      'paused': (lambda x: isinstance(x, bool), 'must be true or false'),
    }
    for name, value in chosen.items():
      fits, sentence = allowed[name]
      require(fits(value), name, value, sentence)


@dataclasses.dataclass
class Settings:
  """What is chosen, see `Rules`."""

  mode: Mode
  steps: int
  level: int
  task: int
  rate: float
  world: World = 'dream'
  paused: bool = False
