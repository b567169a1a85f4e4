"""Computes frames for all players, in a thread, as they fall due.

A call takes everybody whose frame is due, or will be before the call would have
ended. Who is late leaves frames out; nothing is ever queued.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import dataclasses
import itertools
import logging
import math
import threading
import time

from dreamer4_jax.play import pictures
from dreamer4_jax.play.programs import Frames, Programs
from dreamer4_jax.play.session import Result, Session, Work
from dreamer4_jax.play.timeline import Ask, Shown

_LOG = logging.getLogger(__name__)


class Engine:
  """Steps sessions. Hold `lock` to touch any, and `wake` it afterwards."""

  def __init__(
    self,
    programs: Programs,
    sessions: Callable[[], Iterable[Session]],
    clock: Callable[[], float] = time.monotonic,
  ):
    """Prepares; `start` computes.

    Args:
      programs: compiled frames.
      sessions: returns those that are played now, at most as many as rows.
      clock: returns seconds.
    """
    self.programs, self.clock = programs, clock
    self.seconds = 0.0  # That a call takes.
    self._sessions = sessions
    self.lock = threading.RLock()
    self._awake = threading.Condition(self.lock)
    self._stopped = False
    self._thread = threading.Thread(target=self._loop, daemon=True)

  def start(self) -> None:
    """Begins to compute."""
    self._thread.start()

  def stop(self) -> None:
    """Ends the thread."""
    with self._awake:
      self._stopped = True
      self._awake.notify_all()
    if self._thread.is_alive():
      self._thread.join(timeout=30)

  def wake(self) -> None:
    """Looks again at who is due; call it after a session has changed."""
    with self._awake:
      self._awake.notify_all()

  def _loop(self) -> None:
    while not self._stopped:
      try:
        wait = self.tick()
      except Exception:
        _LOG.exception('a frame failed')
        wait = 1.0
      with self._awake:
        if wait > 0 and not self._stopped and self._first_due() > self.clock():
          self._awake.wait(min(wait, 1.0))

  def _first_due(self) -> float:
    now = self.clock()
    return min((s.due(now) for s in self._sessions()), default=math.inf)

  def tick(self) -> float:
    """Computes what is due; returns seconds until something will be."""
    with self.lock:
      now = self.clock()
      due = {s: s.due(now) for s in self._sessions()}
      if min(due.values(), default=math.inf) > now:
        return min(due.values(), default=math.inf) - now
      soon = now + self.seconds
      works = [s.work(self.programs.ready, now) for s, t in due.items()
               if t <= soon]  # fmt: skip
    for work, result in self.compute(works):
      with self.lock:
        work.session.done(work, result, self.clock())
    return 0.0

  def compute(self, works: list[Work]) -> list[tuple[Work, Result]]:
    """Computes frames: those of the same number of steps in one call."""
    results = []
    begun = [w for w in works if w.kind == 'begin']
    for work in begun:
      before = self.clock()
      state, frames = self.programs.begin(work.start, work.seed)
      shown = _shown(frames, None)
      results.append((work, Result(state, shown, self.clock() - before)))
    rest = sorted(
      (w for w in works if w.kind != 'begin'), key=lambda w: w.ask.steps
    )
    for steps, group in itertools.groupby(rest, lambda w: w.ask.steps):
      for rows, works in self._parts(steps, [*group]):
        results += self._together(steps, rows, works)
    return results

  def _parts(self, steps: int, works: list[Work]) -> list[tuple[int, list]]:
    """Splits works of K steps into calls: rows, and who takes part."""
    most = self.programs.rows
    alone = [w for w in works if w.ask.rows == 1]
    rest = [w for w in works if w.ask.rows != 1]
    bound = any(w.ask.rows == most for w in rest)  # To be done again so.
    several = len(rest) > 1 and self.programs.ready(steps, most)
    if rest and (bound or several):
      return [(most, rest), *[(1, [w]) for w in alone]]
    return [(1, [w]) for w in works]

  def _together(self, steps: int, rows: int, works: list[Work]):
    before = self.clock()
    made = self.programs.step(
      steps, rows, [(w.state, w.ask, w.seed, w.number) for w in works]
    )
    took = self.clock() - before
    self.seconds += 0.1 * (took - self.seconds)
    for work, (state, frames) in zip(works, made, strict=True):
      ask = dataclasses.replace(work.ask, rows=rows)
      yield work, Result(state, _shown(frames, ask), took)


def _shown(frames: Frames, ask: Ask | None) -> Shown:
  """A frame for people; of what was asked, the action really taken."""
  by = ''
  if ask is not None:
    own = [*ask.human.values()]
    by = 'you' if all(own) else 'both' if any(own) else 'policy'
    action = {name: x[0] for name, x in frames.action.items()}
    taken = dict.fromkeys(ask.human, True)
    ask = dataclasses.replace(ask, action=action, human=taken)
  return Shown(
    picture=pictures.encode(frames.frame[0]),
    ask=ask,
    by=by,
    reward=float(frames.reward[0]),
    cont=float(frames.cont[0]),
    value=float(frames.value[0]),
  )
