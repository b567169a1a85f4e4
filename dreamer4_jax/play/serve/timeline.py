"""What has been dreamed so far, to return to: pictures, actions, snapshots.

A picture and an action are kept of every frame, the state of the dream only of
some: states are many times larger. Between two snapshots a dream is dreamed
again, with the same actions and the same keys, which gives the same frames.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Literal, NamedTuple

import jax
import numpy as np

from dreamer4_jax.types import PyTree

World = Literal['dream', 'game']
MOST_FRAMES = 10_000
"""Frames that are remembered; older ones are forgotten."""


@dataclasses.dataclass(frozen=True)
class Ask:
  """All that decides a frame, besides the state before it.

  Attributes:
    action: components `[...]`.
    human: by component, whether `action` counts; else the policy draws.
    steps: denoising steps K.
    level: how clear the frame will be to the model once it is past,
      `context_index`.
    task: id held.
    rows: of the program that makes it; 0 for any. Programs differ by rounding.
    world: whether it is dreamed, or played in the real game.
  """

  action: Mapping[str, np.ndarray]
  human: Mapping[str, bool]
  steps: int
  level: int
  task: int
  rows: int = 0
  world: World = 'dream'


@dataclasses.dataclass(frozen=True)
class Shown:
  """A frame as it was shown.

  Attributes:
    picture: encoded, see `pictures.encode`.
    ask: what made it, with the action that was really taken, all of it as if by
      a person; None for the frame a dream begins with.
    by: who acted, `you`, `policy`, `both`; empty for the first frame.
    reward: expected reward of the task on arriving here.
    cont: probability that the episode goes on.
    value: of the agent's state; nan where no value head is trained.
    real: the picture of the real game beside it, if there is one.
    psnr: of the picture beside that one, in dB; nan without it.
    over: whether the real game has ended.
    stage: how many stages of the challenge are passed.
  """

  picture: bytes
  ask: Ask | None = None
  by: str = ''
  reward: float = 0.0
  cont: float = 1.0
  value: float = float('nan')
  real: bytes = b''
  psnr: float = float('nan')
  over: bool = False
  stage: int = 0


class Result(NamedTuple):
  """A frame, and the state that it leaves."""

  state: PyTree
  shown: Shown
  seconds: float


class Film(NamedTuple):
  """Frames of a recording, with their numbers."""

  frames: list[tuple[int, Shown]]
  rate: float
  start: int
  seed: int


class Seen(NamedTuple):
  """A frame that is shown, for those who show it.

  Attributes:
    number: of the frame.
    shown: the frame.
    seconds: that it took.
    seq: of the latest key that it knows of.
    dropped: frames left out so far.
  """

  number: int
  shown: Shown
  seconds: float
  seq: int
  dropped: int


class Timeline:
  """Frames `first` to `last`, and states at some of them.

  Memory is bounded: when states fill the budget, every second one goes; when
  there are too many frames, the oldest go.
  """

  def __init__(self, budget: int, most: int = MOST_FRAMES):
    """Makes an empty timeline.

    Args:
      budget: bytes for states; two are kept in any case.
      most: frames that are remembered.
    """
    self._budget, self._most = budget, most
    self._frames: list[Shown] = []
    self._states: dict[int, PyTree] = {}
    self.first = 0
    self.every = 1

  @property
  def last(self) -> int:
    """Number of the newest frame; -1 if there is none."""
    return self.first + len(self._frames) - 1

  @property
  def bytes(self) -> int:
    """Bytes of states and pictures that are kept."""
    pictures = sum(len(f.picture) + len(f.real) for f in self._frames)
    return pictures + sum(map(_bytes, self._states.values()))

  def __getitem__(self, number: int) -> Shown:
    if not self.first <= number <= self.last:
      raise IndexError(f'frame {number} is not in {self.first}..{self.last}')
    return self._frames[number - self.first]

  def add(self, shown: Shown, state: PyTree) -> int:
    """Appends a frame and the state that it leaves; returns its number."""
    self._frames.append(shown)
    if self.last % self.every == 0:
      self._states[self.last] = state
      self._thin(_bytes(state))
    if len(self._frames) > self._most:
      self._forget()
    return self.last

  def nearest(self, number: int) -> tuple[int, PyTree]:
    """Returns the latest snapshot that is not after a frame."""
    found = max(n for n in self._states if n <= number)
    return found, self._states[found]

  def upto(self, number: int) -> Timeline:
    """Returns the past of a frame, itself included, as another timeline."""
    past = Timeline(self._budget, self._most)
    past.first, past.every = self.first, self.every
    past._frames = self._frames[: number - self.first + 1]
    past._states = {n: s for n, s in self._states.items() if n <= number}
    return past

  def _thin(self, size: int) -> None:
    while len(self._states) > max(2, self._budget // max(1, size)):
      self.every *= 2
      oldest = min(
        self._states
      )  # Or the first frames could not be returned to.
      self._states = {
        n: s
        for n, s in self._states.items()
        if n == oldest or n % self.every == 0
      }

  def _forget(self) -> None:
    """Drops the oldest tenth, up to a snapshot."""
    wanted = self.first + max(1, self._most // 10)
    left = [n for n in self._states if n >= wanted]
    if not left:
      return
    del self._frames[: min(left) - self.first]
    self.first = min(left)
    self._states = {n: s for n, s in self._states.items() if n >= self.first}


def _bytes(state: PyTree) -> int:
  return sum(getattr(x, 'nbytes', 8) for x in jax.tree.leaves(state))
