"""The real game beside the dream, and left for it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.play.serve import pictures
from dreamer4_jax.play.serve.reality import Reality, psnr
from dreamer4_jax.types import Batch
from tests.models.tiny_world import world_and_params
from tests.serve.games import Table, TinyGame, programs, tiny_reality


def frame_of(picture):
  return pictures.decode(picture)


def begin(table):
  session = table.sit()
  session.start(-1)
  table.tick(0.3)
  return session


def test_the_same_actions_drive_both_from_the_same_start():
  table = Table(rows=1, real=True)
  session = begin(table)
  real = tiny_reality().begin(session.seed)
  shown = session.timeline[0]
  np.testing.assert_array_equal(frame_of(shown.real), real.frame)
  # The dream begins where the game is: it decodes the game's last frame.
  clip = tiny_reality().clip(real, 0)
  _, first = programs(1).begin_clip(clip, session.seed)
  np.testing.assert_array_equal(frame_of(shown.picture), first.frame[0])
  for n, tap in enumerate(('move:1', 'move:2', 'move:0', 'move:2'), start=1):
    table.act(session, tap, 'look:3')
    shown = session.timeline[n]
    action = {'move': int(tap[-1]), 'keys': [0, 0], 'look': [0, 1.5]}
    real = tiny_reality().step(
      real, jax.tree.map(np.asarray, action, is_leaf=lambda x: type(x) is list)
    )
    np.testing.assert_array_equal(frame_of(shown.real), real.frame)
    dreamed = frame_of(shown.picture).astype(np.float64)
    error = np.mean((dreamed - real.frame) ** 2)
    assert shown.psnr == pytest.approx(10 * math.log10(255**2 / error))
  whole = [session.timeline[n] for n in range(5)]
  # Both go back, and both go on as before.
  session.rewind(1)
  session.choose(paused=False)
  for n, tap in ((2, 'move:2'), (3, 'move:0')):
    table.act(session, tap, 'look:3')
    assert session.timeline[n].real == whole[n].real
    assert session.timeline[n].picture == whole[n].picture


def test_a_game_is_left_for_the_dream_of_it():
  table = Table(rows=1, real=True)
  session = begin(table)
  session.choose(world='game', mode='policy')
  table.tick(5.0)
  assert session.position == 0  # The policy does not know the game.
  session.choose(mode='human')
  taps = ('move:1', 'move:2', 'move:0', 'move:2')
  for tap in taps:
    table.act(session, tap)
  shown = [session.timeline[n] for n in range(5)]
  assert all(own.ask.world == 'game' and not own.real for own in shown[1:])
  assert math.isnan(shown[2].reward) and shown[2].by == 'you'
  frames = [frame_of(own.picture) for own in shown[1:]]
  assert np.abs(np.diff(frames, axis=0)).max() > 0
  session.choose(world='dream')
  table.act(session, 'move:1')
  dreamed = session.timeline[5]
  # It goes on from the game's last three frames, and what was done between.
  move = jnp.asarray([[0, 2, 0]])  # At frames 2, 3; not known at frame 4.
  zeros = jnp.zeros((1, 3, 2))
  clip = Batch.of(
    jnp.asarray(np.stack(frames[1:]))[None],
    {'move': move, 'keys': zeros.astype(jnp.int32), 'look': zeros},
    action_mask=jnp.asarray([[True, True, False]]),
    task=jnp.zeros((1, 3), jnp.int32),
  )
  state, _ = programs(1).begin_clip(clip, session.seed)
  ((_, expected),) = programs(1).step(
    2, 1, [(state, dreamed.ask, session.seed, 5)]
  )
  np.testing.assert_array_equal(frame_of(dreamed.picture), expected.frame[0])
  assert dreamed.real and dreamed.psnr > 0  # The game goes on beside it.
  # Back in time across the switch, and forward again.
  session.rewind(2)
  session.choose(world='game', paused=False)
  for tap in taps[2:]:
    table.act(session, tap)
  session.choose(world='dream')
  table.act(session, 'move:1')
  assert session.timeline[5].picture == dreamed.picture


def test_games_end_and_begin_with_luck_of_their_own():
  reality = tiny_reality()
  a, b, c = (reality.begin(seed) for seed in (1, 1, 2))
  np.testing.assert_array_equal(a.frames, b.frames)
  assert (a.frames != c.frames).any() and not a.over
  for _ in range(60):
    a = reality.step(a, {'move': 0, 'keys': [0, 0], 'look': [0.0, 0.0]})
  assert a.over
  assert psnr(a.frame, a.frame) == 99.0


def test_a_game_that_does_not_fit_is_refused():
  world, _ = world_and_params()
  for change, message in (
    ({'on_host': True}, 'its simulator cannot go back in time'),
    ({'height': 24}, r'shows frames of \(24, 12, 3\), the run has \(20, 12, 3'),
    ({'actions': TinyGame.spec.actions[:1]}, 'has other actions than the run'),
  ):
    env = TinyGame()
    env.spec = dataclasses.replace(TinyGame.spec, **change)
    with pytest.raises(ValueError, match=message):
      Reality(env, world, 3)
  session = Table(rows=1).sit()
  with pytest.raises(ValueError, match='must be in 0'):
    session.start(-1)
  session = Table(rows=1, real=True).sit()
  with pytest.raises(ValueError, match='this dream has none beside it'):
    session.choose(world='game')
