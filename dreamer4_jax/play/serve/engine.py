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

from dreamer4_jax.play.serve import pictures
from dreamer4_jax.play.serve.challenges import Challenges
from dreamer4_jax.play.serve.programs import Frames, Programs
from dreamer4_jax.play.serve.reality import Real, Reality, Twin, psnr
from dreamer4_jax.play.serve.session import Session, Work
from dreamer4_jax.play.serve.timeline import Ask, Result, Shown
from dreamer4_jax.types import PyTree

_LOG = logging.getLogger(__name__)


class Engine:
  """Steps sessions. Hold `lock` to touch any, and `wake` it afterwards."""

  def __init__(
    self,
    programs: Programs,
    sessions: Callable[[], Iterable[Session]],
    clock: Callable[[], float] = time.monotonic,
    reality: Reality | None = None,
    challenges: Challenges | None = None,
  ):
    """Prepares; `start` computes.

    Args:
      programs: compiled frames.
      sessions: returns those that are played now, at most as many as rows.
      clock: returns seconds.
      reality: the real game, for those who begin beside it.
      challenges: what may be tried.
    """
    self.programs, self.clock, self._reality = programs, clock, reality
    self._challenges = challenges
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
    try:
      results = self.compute(works)
    except Exception as error:
      with self.lock:
        for work in works:
          work.session.fail(f'{type(error).__name__}: {error}')
      raise
    for work, result in results:
      with self.lock:
        work.session.done(work, result, self.clock())
    return 0.0

  def compute(self, works: list[Work]) -> list[tuple[Work, Result]]:
    """Computes frames: those of the same number of steps in one call."""
    results = []
    begun = [w for w in works if w.kind == 'begin']
    for work in begun:
      before = self.clock()
      state, shown = self._first(work)
      results.append((work, Result(state, shown, self.clock() - before)))
    played = [w for w in works if w.kind != 'begin' and w.ask.world == 'game']
    results += [(w, self._in_the_game(w)) for w in played]
    rest = sorted(
      (w for w in works if w.kind != 'begin' and w.ask.world == 'dream'),
      key=lambda w: w.ask.steps,
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
      steps, rows, [(self._dream(w), w.ask, w.seed, w.number) for w in works]
    )
    took = self.clock() - before
    self.seconds += 0.1 * (took - self.seconds)
    for work, (state, frames) in zip(works, made, strict=True):
      shown = _shown(frames, dataclasses.replace(work.ask, rows=rows))
      if isinstance(work.state, Twin):
        real = self._reality.step(work.state.real, shown.ask.action)
        state, shown = _beside(state, frames, shown, real)
      if work.challenge >= 0:
        stage = self._challenges.advance(
          work.challenge, work.stage, frames.frame[0]
        )
        shown = dataclasses.replace(shown, stage=stage)
      yield work, Result(state, shown, took)

  def _first(self, work: Work) -> tuple[PyTree, Shown]:
    if work.start >= 0:
      state, frames = self.programs.begin(work.start, work.seed)
      return state, _shown(frames, None)
    real = self._reality.begin(work.seed)
    clip = self._reality.clip(real, work.session.settings.task)
    state, frames = self.programs.begin_clip(clip, work.seed)
    return _beside(state, frames, _shown(frames, None), real)

  def _dream(self, work: Work) -> PyTree:
    """The state of a dream; one that a game is left for begins."""
    if not isinstance(work.state, Twin):
      return work.state
    if work.state.dream is not None:
      return work.state.dream
    clip = self._reality.clip(work.state.real, work.ask.task)
    return self.programs.begin_clip(clip, work.seed)[0]

  def _in_the_game(self, work: Work) -> Result:
    before = self.clock()
    real = self._reality.step(work.state.real, work.ask.action)
    picture = pictures.encode(real.frame)
    unknown = dict.fromkeys(('reward', 'cont'), math.nan)
    shown = Shown(
      picture=picture, ask=work.ask, by='you', over=real.over, **unknown
    )
    return Result(Twin(None, real), shown, self.clock() - before)


def _beside(
  state: PyTree, frames: Frames, shown: Shown, real: Real
) -> tuple[Twin, Shown]:
  """Puts the real game beside what is shown."""
  return Twin(state, real), dataclasses.replace(
    shown,
    real=pictures.encode(real.frame),
    psnr=psnr(frames.frame[0], real.frame),
    over=real.over,
  )


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
