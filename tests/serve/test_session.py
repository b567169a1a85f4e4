"""Sessions: what is played, gone back to, left out and kept."""

import math
import re

import jax
import numpy as np
import pytest

from dreamer4_jax.play.serve import pictures
from dreamer4_jax.play.serve.controls import Hands, make_panels
from dreamer4_jax.play.serve.recordings import Recordings
from dreamer4_jax.play.serve.timeline import Shown, Timeline
from tests.models.tiny_world import ACTIONS
from tests.serve.games import (
  LABELS,
  Table,
  leaves_equal,
  programs,
  random_controls,
  tiny_game,
)


def films(table, session):
  return [what for kind, what in table.shown[session.id] if kind == 'frame']


def test_who_goes_back_and_does_the_same_sees_the_same():
  # Room for few states: most frames are dreamed again from a snapshot.
  table = Table(budget=150_000)
  session, rng = table.sit(), np.random.default_rng(0)
  taps = [random_controls(rng) for _ in range(14)]
  for tap in taps:
    table.act(session, *tap)
  assert session.position == 14 and session.timeline.every > 1
  whole = [session.timeline[n] for n in range(15)]
  assert len({shown.picture for shown in whole}) == 15
  session.rewind(5)
  assert films(table, session)[-1].shown is whole[5]
  assert session.settings.paused and table.tick(1.0) > 0
  session.choose(paused=False)
  for n in range(6, 15):
    assert table.act(session, *taps[n - 1]) == whole[n].picture
    assert session.timeline[n].reward == whole[n].reward
  assert session.describe()['branches'] == [{'first': 0, 'last': 14}]
  # Other actions are another future, and the old one is still there.
  session.rewind(5)
  session.choose(paused=False)
  table.act(session, 'move:0', 'keys:0', 'keys:1', 'look:1')
  assert session.timeline[6].picture != whole[6].picture
  assert session.position == session.timeline.last == 6
  session.branch(0)
  assert session.timeline[session.position] is whole[14]
  session.reset()
  session.reset()
  table.tick(0.3)
  assert session.timeline[0].picture == whole[0].picture
  session.reset()
  assert table.tick(0.1) == pytest.approx(0.1)  # It costs others.
  table.tick(0.2)
  assert table.act(session, *taps[0]) == whole[1].picture


def test_a_branch_goes_on_from_its_own_state():
  table = Table()
  session = table.sit()
  for tap in ('move:0', 'move:1', 'move:2'):
    table.act(session, tap)
  ends = [table.act(session, 'move:1')]
  session.rewind(3)
  session.choose(paused=False)
  ends.append(table.act(session, 'move:0'))
  assert ends[0] != ends[1]
  session.branch(0)
  session.choose(paused=False)
  session.rewind(3)
  session.choose(paused=False)
  assert table.act(session, 'move:1') == ends[0]


def test_the_policy_moves_by_itself_and_gives_way():
  table = Table()
  session = table.sit()
  table.tick(5.0)
  assert session.position == 0  # It waits: there is no action for nothing.
  session.choose(mode='policy')
  for _ in range(8):
    table.tick(0.2)
  shown = [session.timeline[n] for n in range(1, 9)]
  assert {own.by for own in shown} == {'policy'}
  assert len({int(own.ask.action['move']) for own in shown}) > 1
  session.choose(mode='mixed')
  session.press('move:2')
  for _ in range(4):
    table.tick(0.2)
  shown = [session.timeline[n] for n in range(9, 13)]
  assert {own.by for own in shown} == {'both'}
  assert {int(own.ask.action['move']) for own in shown} == {2}
  # What it drew is what is remembered: played again, it is the same.
  session.rewind(8)
  session.choose(paused=False)
  table.tick()
  for n in range(4):
    table.tick(0.2)
    assert session.timeline[9 + n].picture == shown[n].picture


def test_nobody_depends_on_neighbours():
  found = []
  for neighbour in ('move:1', 'move:2'):
    table = Table()
    mine, other = table.sit(3), table.sit(4 + len(found))
    for tap in ('move:0', 'move:2', 'move:1'):
      other.press(neighbour)
      table.act(mine, tap)
      other.hands.release_all()
    assert mine.position == other.position == 3
    found.append((mine, other))
  (mine, other), (same, another) = found
  past = lambda session: [session.timeline[n].picture for n in range(4)]
  assert past(mine) == past(same) and past(other) != past(another)
  assert leaves_equal(mine._state, same._state)  # To the last bit.
  assert [mine.timeline[n].ask.rows for n in (1, 2, 3)] == [2, 2, 2]
  # And to rounding alone, where there is a faster program.
  alone = Table()
  single = alone.sit(3)
  for n, tap in enumerate(('move:0', 'move:2', 'move:1'), start=1):
    shown = pictures.decode(alone.act(single, tap)).astype(int)
    expected = pictures.decode(mine.timeline[n].picture)
    assert np.abs(shown - expected).max() <= 1
    assert single.timeline[n].ask.rows == 1
    assert single.timeline[n].reward == pytest.approx(
      mine.timeline[n].reward, abs=1e-4
    )
  # Done again alone, a frame is made as it was made with others.
  table.sessions.remove(another)
  for again in (lambda: same.rewind(1), same.reset):
    again()
    table.tick(0.3)
    same.choose(paused=False)
    for tap in ('move:0', 'move:2', 'move:1')[same.position :]:
      table.act(same, tap)
    assert past(same) == past(mine)
    assert leaves_equal(mine._state, same._state)


def test_a_frame_does_what_a_dream_does():
  dream, params, contexts = tiny_game().loaded
  session = Table().sit(9)
  key = lambda n: jax.random.fold_in(jax.random.key(9), n)[None]
  own = jax.tree.map(lambda x: x[:1], contexts)
  _, first = jax.jit(dream.reset)(params, own, key(0))
  found = pictures.decode(session.timeline[0].picture).astype(int)
  assert np.abs(found - np.asarray(first.frame[0])).max() <= 1


def test_who_is_late_leaves_frames_out():
  table = Table(idle=True)
  session = table.sit()
  for _ in range(5):
    table.tick(0.1)
  assert (session.position, session.dropped) == (5, 0)
  assert int(session.timeline[5].ask.action['move']) == 0  # Nothing.
  table.tick(1.05)  # Somebody held the machine up for ten frames.
  assert session.position == 6 and session.dropped == 9
  assert table.tick() > 0 and session.position == 6  # None is made up for.
  table.tick(0.1)
  assert session.position == 7


def test_a_world_without_an_idle_action_moves_when_a_key_does():
  table = Table()
  session = table.sit()
  session.press('move:1')
  table.tick(0.01)
  assert session.position == 1  # At once.
  table.tick(0.15)
  assert session.position == 1  # A key that stays pressed waits at first,
  table.tick(0.1)
  assert session.position == 2
  table.tick(0.1)
  assert session.position == 3  # and then repeats at the pace.
  session.hands.release('move:1')
  table.tick(1.0)
  assert session.position == 3
  session.press('move:0')
  session.hands.release('move:0')  # Between two frames, and yet seen.
  table.tick(0.04)
  assert session.position == 4
  assert int(session.timeline[4].ask.action['move']) == 0


def test_single_steps_and_settings():
  table = Table()
  session = table.sit()
  with pytest.raises(ValueError, match='hold a key meanwhile'):
    session.step_once()
  session.choose(paused=True)
  session.press('move:1')
  assert math.isinf(session.due(table.now))
  for _ in range(50):
    session.step_once()
  for _ in range(50):
    table.tick(0.1)
  assert session.position == 2  # Impatient clicks are no queue.
  session.choose(level=2, paused=False)
  table.act(session, 'move:1')
  before = table.act(session, 'move:2')
  session.rewind(2)
  session.choose(level=7, paused=False)
  table.act(session, 'move:1')
  assert table.act(session, 'move:2') != before  # Context noise shows.
  for chosen, sentence in (
    ({'mode': 'dog'}, "mode = 'dog': must be human or policy or mixed"),
    ({'steps': 3}, 'steps = 3: must be one of'),
    ({'level': 8}, 'level = 8: must be in 0..7'),
    ({'task': 2}, 'task = 2: must be an id below 2'),
    ({'rate': 0.5}, 'rate = 0.5: must be in 1..60 frames per second'),
  ):
    with pytest.raises(ValueError, match=re.escape(sentence)):
      session.choose(**chosen)
  with pytest.raises(ValueError, match=r'rewind = 9: must be in 0\.\.'):
    session.rewind(9)
  with pytest.raises(ValueError, match=r'start = 4: must be in 0\.\.3'):
    session.start(4)
  with pytest.raises(ValueError, match="control = 'x': must be of"):
    session.press('x')


def test_another_number_of_steps_waits_until_it_is_compiled():
  table = Table()
  session = table.sit()
  session.choose(steps=4)
  table.act(session, 'move:1')
  assert session.timeline[1].ask.steps == 2
  ready = session.work(lambda k: k in (2, 4), table.now)
  assert ready.ask.steps == 4


def test_what_was_computed_for_another_place_is_void():
  table = Table()
  session = table.sit()
  session.press('move:1')
  work = session.work(lambda k: True, table.now)
  session.start(2)
  ((_, result),) = table.engine.compute([work._replace(ask=work.ask)])
  session.done(work, result, table.now)
  assert session.position == -1
  table.tick(0.3)
  assert session.position == 0 and session.start_index == 2


def test_without_heads_people_can_play():
  table = Table(rows=1, heads=False)
  session = table.sit()
  pictures_ = {table.act(session, f'move:{i}') for i in range(3)}
  assert len(pictures_) == 3 and not session.rules.policy
  with pytest.raises(ValueError, match='must be human'):
    session.choose(mode='policy')
  session.rewind(1)
  session.choose(level=3, paused=False)
  assert table.act(session, 'move:1') in pictures_  # The noise comes later.


def test_a_recording_is_what_was_seen(tmp_path):
  av = pytest.importorskip('av')
  table = Table()
  session = table.sit()
  session.record(True)
  with pytest.raises(ValueError, match='record = True: is so already'):
    session.record(True)
  for tap in ('move:1', 'move:2', 'move:0'):
    table.act(session, tap)
  kept = Recordings(tmp_path / 'kept')
  name = kept.save(session.record(False))
  with av.open(str(kept.find(f'{name}.mp4'))) as film:
    seen = [f.to_ndarray(format='rgb24') for f in film.decode(video=0)]
  assert len(seen) == 4
  for n, frame in enumerate(seen):
    expected = pictures.decode(session.timeline[n].picture)
    scale = frame.shape[0] // expected.shape[0]
    assert frame.shape == (20 * scale, 12 * scale, 3)
    middles = frame[scale // 2 :: scale, scale // 2 :: scale].astype(int)
    assert np.abs(middles - expected).mean() < 16  # Colours are lossy.
  rows = np.load(kept.find(f'{name}.npz'))
  assert rows['action.move'].tolist() == [0, 1, 2, 0]
  assert rows['known'].tolist() == [False, True, True, True]
  assert rows['action.look'].shape == (4, 2) and rows['seed'] == session.seed
  (tmp_path / 'secret.mp4').write_text('x')
  for other in ('../secret.mp4', f'{"0" * 16}.mp4', f'{name}.txt', name):
    assert kept.find(other) is None


def test_memory_of_the_past_is_bounded():
  state = {'x': np.zeros(1000, np.uint8)}
  past = Timeline(budget=8_000, most=200)
  shown = [Shown(bytes([n % 256])) for n in range(1000)]
  for n, own in enumerate(shown):
    assert past.add(own, dict(state, n=np.int64(n))) == n
    assert past.bytes <= 8 * 1008 + 200
    for m in {past.first, (past.first + n) // 2, n}:
      assert past[m] is shown[m]
      at, found = past.nearest(m)
      assert past.first <= at <= m and found['n'] == at
  assert past.first >= 800
  with pytest.raises(IndexError, match='frame 3 is not in'):
    past[3]


def test_hands():
  panels = make_panels(ACTIONS, LABELS)
  hands = Hands(panels)
  keys = {c.id: c.key for c in hands.controls.values()}
  assert keys['move:0'] == 'ArrowLeft' and keys['move:2'] == ' '
  assert len({*keys.values()}) == len(keys) and keys['keys:0'] == 'g'
  assert hands.waits()
  for control in ('move:1', 'move:0', 'keys:1'):
    hands.press(control)
  values, touched = hands.action()
  assert values['move'] == 0 and values['keys'].tolist() == [0, 1]
  assert touched == {'move': True, 'keys': True, 'look': False}
  hands.release('move:0')
  hands.consume()
  assert hands.action()[0]['move'] == 1
  hands.move('look', 0.5, -0.25)  # -1..3, at rest at 0.
  np.testing.assert_allclose(hands.action()[0]['look'], [1.5, -0.25])
  hands.consume()
  np.testing.assert_allclose(hands.action()[0]['look'], [0, 0])
  hands.release_all()
  assert hands.waits() and not hands.held and not hands.tapped


def test_a_camera_of_classes_has_a_pointer():
  part = type(ACTIONS[0])(name='camera', kind='categorical', size=121)
  (panel,) = make_panels([part], {})
  hands = Hands([panel])
  assert panel.kind == 'pointer' and not hands.waits()
  assert hands.action()[0]['camera'] == 60  # The middle of the grid.
  hands.move('camera', 1.0, 0.2)
  assert hands.action()[0]['camera'] == 6 * 11 + 10


def test_sessions_share_one_program():
  made = programs(2)
  assert made._begin._cache_size() == 1
  assert [x._cache_size() for x in made._steps.values()] == [1, 1]
