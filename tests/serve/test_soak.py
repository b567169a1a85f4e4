"""Play at random for long: memory and time of a frame stay what they are.

`python -m benchmarks.play --soak 3600` does the same for an hour, over sockets.
"""

import gc
import pathlib
import random
import statistics
import time

import pytest

from dreamer4_jax.play.serve.engine import Engine
from dreamer4_jax.play.serve.lobby import Lobby
from tests.serve.games import programs, tiny_game

STATM = pathlib.Path('/proc/self/statm')


def resident():
  gc.collect()
  return int(STATM.read_text().split()[1])


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason='memory is read from /proc')
def test_hours_of_play_leave_memory_and_time_as_they_were():
  rng, now = random.Random(0), [0.0]
  lobby = Lobby(tiny_game().rules(budget=2 << 20), 2, silent=60.0, away=5.0)
  engine = Engine(programs(2), lambda: lobby.sessions, lambda: now[0])
  players, frames, news = {}, [0], [0]

  def hear(kind, what):
    frames[0] += kind == 'frame'
    news[0] += 1

  def evict(reason):
    assert not reason or 'silent' in reason

  def turn(name):
    session = players.get(name)
    if session is None or session.id not in lobby._places:
      players[name], _ = lobby.enter(None, hear, evict, now[0])
      return
    lobby.heard(session, now[0])
    act = rng.choices(
      ('tap', 'policy', 'rewind', 'start', 'cut', 'branch'),
      (60, 5, 4, 1, 2, 2),
    )[0]
    if act == 'tap':
      session.choose(mode='human', paused=False)
      session.press(f'move:{rng.randrange(3)}')
      if rng.random() < 0.1:
        session.hands.release_all()
    elif act == 'policy':
      session.choose(mode='policy', paused=False)
    elif act == 'rewind' and session.position >= 0:
      first, last = session.timeline.first, session.timeline.last
      session.rewind(rng.randint(first, last))
    elif act == 'start':
      session.start(rng.randrange(4))
    elif act == 'branch' and session.describe()['branches']:
      session.branch(0)
    elif act == 'cut':
      lobby.leave(session, evict, now[0])
      now[0] += rng.choice((1.0, 10.0))
      lobby.sweep(now[0])
      if session.id in lobby._places:
        lobby.enter(session.id, hear, evict, now[0])

  memory, seconds = [], []
  for number in range(800):
    turn(number % 2)
    now[0] += 0.1
    before = time.perf_counter()
    engine.tick()
    seconds.append(time.perf_counter() - before)
    if number % 80 == 79:
      memory.append(resident())
  assert frames[0] > 400 and news[0] > frames[0]
  assert max(memory[5:]) <= 1.02 * memory[4]
  assert all(s.timeline.bytes < 4 << 20 for s in lobby.sessions)
  early, late = map(statistics.median, (seconds[150:300], seconds[-150:]))
  assert late < 3 * early  # Flat, on a machine that others use as well.
