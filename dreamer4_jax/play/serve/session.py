"""One player in one dream: what is held, what comes next, what has been.

Pure but for its own memory: nothing here knows of a model, a clock or a web.
Whoever computes frames asks `work` what to compute, and tells `done` what came
of it; times are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any, Literal, NamedTuple

from dreamer4_jax.config import require
from dreamer4_jax.play.serve.controls import Hands, Panel
from dreamer4_jax.play.serve.rules import RATES, Rules, Settings
from dreamer4_jax.play.serve.timeline import (
  Ask,
  Film,
  Result,
  Seen,
  Shown,
  Timeline,
)
from dreamer4_jax.types import PyTree

BRANCHES = 4
"""Pasts that are kept beside the present one; older ones are forgotten."""
MOST_FILM = 6000
"""Frames of a recording."""
_FASTEST = 1 / 30
_BEGIN = 0.2
"""Seconds between two dreams that a player begins: it costs others."""
_REPEAT = 0.25
"""Seconds until a key that stays pressed acts again, where the dream waits."""


class Work(NamedTuple):
  """A frame to compute."""

  session: Session
  version: int
  kind: Literal['begin', 'replay', 'step']
  number: int
  state: PyTree
  ask: Ask | None
  start: int
  seed: int
  seq: int
  challenge: int = -1
  stage: int = 0


Listener = Callable[[str, Any], None]


class Session:
  """A dream that is played; frames are numbered from 0, where it begins."""

  def __init__(self, id: str, rules: Rules, seed: int):
    """Begins with the first start.

    Args:
      id: its name, for those who know it.
      rules: what can be chosen.
      seed: of all randomness; with it, a start and the actions, the same frames
        come again.
    """
    self.id, self.rules, self.seed = id, rules, seed
    self.hands = Hands(rules.panels)
    self.settings = Settings(
      'human', rules.steps[0], rules.level, 0, rules.rate
    )
    self.listener: Listener | None = None
    self.seq = self.dropped = 0
    self._film: list[tuple[int, Shown]] | None = None
    self._version, self._begun = 0, -math.inf
    self.start(0)

  def start(self, index: int, challenge: int = -1) -> None:
    """Begins where another clip ends; what has been is forgotten.

    Args:
      index: of the clip; -1 begins beside a real game, if there is one.
      challenge: that is tried; -1 for none.

    Raises:
      ValueError: there is no such clip.
    """
    count = len(self.rules.starts)
    least = -1 if self.rules.real else 0
    require(
      least <= index < count, 'start', index, f'must be in {least}..{count - 1}'
    )
    budget = self.rules.budget // (1 + BRANCHES)
    self.start_index, self.challenge = index, challenge
    self.settings.task = self.rules.starts[index] if index >= 0 else 0
    self.settings.world = 'dream'
    self._timeline, self._branches = Timeline(budget), []
    self._old: Timeline | None = None  # The past that was left last.
    self.position, self._at, self._state = -1, -1, None
    self._next = self._last = -math.inf
    self._singles, self.settings.paused = 0, False
    self._changed()

  def attempt(self, index: int) -> None:
    """Begins a challenge.

    Raises:
      ValueError: there is no such challenge.
    """
    count = len(self.rules.challenges)
    require(
      0 <= index < count, 'attempt', index, f'there are {count} challenges'
    )
    self.start(self.rules.challenges[index].start, index)

  def reset(self) -> None:
    """Begins again, from the same frame and with the same luck."""
    old = self._timeline
    self.start(self.start_index, self.challenge)
    self._old = old

  def rewind(self, number: int) -> None:
    """Shows an earlier frame, and pauses; who acts then branches off.

    Raises:
      ValueError: the frame is not remembered.
    """
    first, last = self._timeline.first, self._timeline.last
    require(
      first <= number <= last, 'rewind', number, f'must be in {first}..{last}'
    )
    self.position = number
    self._at, self._state = self._timeline.nearest(number)
    self._singles, self.settings.paused = 0, True
    self._changed()
    self._show(number, 0.0)

  def branch(self, index: int) -> None:
    """Goes to the end of a past that was left, and pauses.

    Raises:
      ValueError: there is no such branch.
    """
    count = len(self._branches)
    require(0 <= index < count, 'branch', index, f'there are {count} branches')
    self._branches[index], self._timeline = (
      self._timeline,
      self._branches[index],
    )
    self._old = None
    self.rewind(self._timeline.last)

  def choose(self, **chosen: Any) -> None:
    """Changes settings, from the next frame on.

    Args:
      **chosen: fields of `Settings`; `task` by its id.

    Raises:
      ValueError: a value is not among those of the rules.
    """
    self.rules.check(chosen)
    require(
      self.start_index < 0 or chosen.get('world') != 'game',
      'world',
      'game',
      'this dream has none beside it; start with the real game',
    )
    for name, value in chosen.items():
      setattr(self.settings, name, value)
    self._singles, self._next = 0, -math.inf
    self._tell()

  def step_once(self) -> None:
    """Dreams one frame, and pauses.

    Raises:
      ValueError: nothing is held, and the world knows no action for that.
    """
    require(
      not (self._human() and self.hands.waits()),
      'step',
      'nothing held',
      'this world has no action for it; hold a key meanwhile',
    )
    self.settings.paused = True
    self._singles += self._singles < 2  # Never a queue.
    self._tell()

  def press(self, control: str, seq: int = 0) -> None:
    """Holds a control; `seq` comes back with the frame that it changes.

    Raises:
      ValueError: there is no such control.
    """
    self._known(control)
    self.hands.press(control)
    self.seq = max(seq, self.seq)

  def release(self, control: str) -> None:
    """Lets go of a control.

    Raises:
      ValueError: there is no such control.
    """
    self._known(control)
    self.hands.release(control)

  def _known(self, control: str) -> None:
    known = self.hands.controls
    require(control in known, 'control', control, f'must be of {[*known]}')

  def steer(self, part: str, values: Sequence[float]) -> None:
    """Sets the sliders of a component, which stay.

    Raises:
      ValueError: it has none, or another number of them.
    """
    panel = self._panel(part, 'sliders')
    require(
      len(values) == panel.part.size,
      'values',
      len(values),
      f'{part} has {panel.part.size}',
    )
    low, high = panel.part.low, panel.part.high
    self.hands.steer(part, [min(max(x, low), high) for x in values])

  def move(self, part: str, x: float, y: float) -> None:
    """Moves the pointer of a component, see `Hands.move`.

    Raises:
      ValueError: it has none.
    """
    self._panel(part, 'pointer')
    self.hands.move(part, x, y)

  def _panel(self, part: str, kind: str) -> Panel:
    own = [p.part.name for p in self.rules.panels if p.kind == kind]
    require(part in own, 'part', part, f'{kind} are of {own}')
    return self.hands.panels[part]

  def record(self, on: bool) -> Film | None:
    """Begins to record, or ends it and returns what was recorded.

    Raises:
      ValueError: there is nothing to begin with, or to end.
    """
    now = self._film is not None
    sentence = 'is so already' if self.position >= 0 else 'no frame yet'
    require(on != now and self.position >= 0, 'record', on, sentence)
    if on:
      self._film = [(self.position, self._timeline[self.position])]
      self._tell()
      return None
    film, self._film = self._film, None
    self._tell()
    return Film(film, self.settings.rate, self.start_index, self.seed)

  def due(self, now: float) -> float:
    """Returns when its next frame is to be computed; infinity for never."""
    if self.position < 0:
      return max(now, self._begun + _BEGIN)
    s = self.settings
    if s.paused and not self._singles:
      return math.inf
    if self._singles or self._at < self.position:
      return now
    if self._human() and self.hands.waits():
      return math.inf
    if self.hands.tapped and self._turns():
      return min(self._next, self._last + _FASTEST)
    return max(self._next, self._last + 1 / RATES[1])

  def _turns(self) -> bool:
    """Whether the dream waits for its player where nothing is held."""
    return self._human() and self.rules.waits

  def _human(self) -> bool:
    """Whether people alone act; the policy knows dreams only."""
    return self.settings.mode == 'human' or self.settings.world == 'game'

  def work(self, ready: Callable[[int], bool], now: float) -> Work:
    """Returns the frame to compute next.

    Args:
      ready: whether frames of K steps can be computed at once; else the number
        of steps stays what it was.
      now: seconds.
    """
    common = self.start_index, self.seed, self.seq
    if self.position < 0:
      self._begun = now
      return Work(self, self._version, 'begin', 0, None, None, *common)
    number = self._at + 1
    if self._at < self.position:
      ask = self._timeline[number].ask
      return Work(
        self, self._version, 'replay', number, self._state, ask, *common
      )
    s, rules = self.settings, self.rules
    action, touched = self.hands.action()
    if s.mode != 'mixed' or self._human():
      touched = dict.fromkeys(touched, self._human())
    self._tapped = self.hands.tapped
    self.hands.consume()
    steps = s.steps if ready(s.steps) else next(filter(ready, rules.steps))
    # Done again, a frame is made by the program that made it before.
    old = self._timeline
    if self.position == old.last:
      old = self._old or old
    known = old.first < number <= old.last
    rows = old[number].ask.rows if known else 0
    ask = Ask(action, touched, steps, s.level, s.task, rows, s.world)
    self._last = now
    common += self.challenge, self._timeline[self.position].stage
    return Work(self, self._version, 'step', number, self._state, ask, *common)

  def done(self, work: Work, result: Result, now: float) -> None:
    """Takes a computed frame in, unless the player has gone elsewhere."""
    if work.version != self._version:
      return
    self._state, self._at = result.state, work.number
    if work.kind == 'replay':
      return
    if self.position < self._timeline.last:
      self._old = self._timeline
      self._branches = [*self._branches, self._timeline][-BRANCHES:]
      self._timeline = self._timeline.upto(self.position)
      self._tell()
    self.position = self._timeline.add(result.shown, result.state)
    if work.kind == 'step':
      self._singles = max(0, self._singles - 1)
      self._pace()
    if self._film is not None and len(self._film) < MOST_FILM:
      self._film.append((self.position, result.shown))
    self._show(self.position, result.seconds, work.seq)
    if work.kind == 'begin':
      self._tell()

  def fail(self, reason: str) -> None:
    """Pauses, and says why no frame came."""
    self.settings.paused = True
    self._tell()
    if self.listener:
      self.listener('error', {'reason': f'a frame failed: {reason}'[:400]})

  def _pace(self) -> None:
    period = 1 / self.settings.rate
    if self._turns():
      wait = max(period, _REPEAT) if self._tapped else period
      self._next = self._last + wait
      return
    due = self._last if math.isinf(self._next) else self._next
    missed = int((self._last - due) / period)
    self.dropped += missed  # Left out, and never made up for.
    self._next = due + (missed + 1) * period

  @property
  def recording(self) -> int | None:
    """Frames recorded so far, None if it is not recording."""
    return None if self._film is None else len(self._film)

  @property
  def timeline(self) -> Timeline:
    """What has been."""
    return self._timeline

  def describe(self) -> dict[str, Any]:
    """Returns all that a page shows besides frames, as JSON."""
    return {
      **dataclasses.asdict(self.settings),
      'position': self.position,
      'first': self._timeline.first,
      'last': self._timeline.last,
      'branches': [{'first': b.first, 'last': b.last} for b in self._branches],
      'start': self.start_index,
      'challenge': self.challenge,
      'recording': self.recording is not None,
    }

  def show_again(self) -> None:
    """Tells a listener that is new where the dream is."""
    self._next = -math.inf
    self._tell()
    if self.position >= 0:
      self._show(self.position, 0.0)

  def _changed(self) -> None:
    """What is being computed is void."""
    self._version += 1
    self._tell()

  def _tell(self) -> None:
    if self.listener:
      self.listener('state', self.describe())

  def _show(self, number: int, seconds: float, seq: int = 0) -> None:
    if self.listener:
      shown = self._timeline[number]
      self.listener('frame', Seen(number, shown, seconds, seq, self.dropped))
