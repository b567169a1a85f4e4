"""What `dreamer4 doctor` computes, on figures and worlds known by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import writer
from data_pipelines.episodes import Episode
from dreamer4_jax.config import ActionComponent, Config
from dreamer4_jax.data.format import Description
from dreamer4_jax.evals.doctor import clips, dreams, frames, heads, played
from tests.evals.test_closed_loop import GOALS, Line
from tests.models.tiny_world import CONFIG, make_batch, world_and_params


def verdicts(findings):
  return {f.name: f.verdict for f in findings}


def rewards(delay=0, level=1.0, rate=0.1, noise=0.0):
  """Events, and a head that pays `level` for them, `delay` frames late."""
  rng = np.random.default_rng(0)
  events = rng.random((40, 16)) < rate
  paid = level * np.roll(events, delay, axis=1) + noise * rng.random((40, 16))
  return paid.astype(np.float32), events


def test_rewards_on_the_frames_of_events_are_fine():
  found = heads._rewards(*rewards())
  assert set(verdicts(found).values()) == {'fine'} and len(found) == 3


@pytest.mark.parametrize(('delay', 'best'), [(-1, 1), (1, -1), (2, -2)])
def test_rewards_of_another_frame_are_named(delay, best):
  timing = heads._rewards(*rewards(delay))[-1]
  assert timing.verdict == 'wrong' and timing.value == best
  side = 'early' if best > 0 else 'late'
  assert f'{abs(best)} frame(s) {side}' in timing.advice


def test_rewards_everywhere_or_nowhere_are_wrong_but_not_shifted():
  for noise, level, name in (
    (0.0, 0.01, 'reward on the frame of an event'),
    (1.0, 0.0, 'reward elsewhere, relative to how often events are'),
  ):
    found = heads._rewards(*rewards(level=level, noise=noise))
    assert verdicts(found)[name] == 'wrong'
    assert verdicts(found)['reward by the step of the event'] == 'fine'
  constant = np.full((40, 16), 0.1, np.float32), rewards()[1]
  assert heads._rewards(*constant)[-1].verdict == 'fine'


def test_without_events_nothing_is_said_of_rewards():
  paid, events = rewards()
  (found,) = heads._rewards(paid, np.zeros_like(events))
  assert found.verdict == 'unknown' and '0 events' in found.text
  short = heads._rewards(paid[:, :4], events[:, :4])
  assert 'reward by the step of the event' not in verdicts(short)


def test_other_actions_are_never_the_same():
  a = {'move': np.array([1, 1, 2]), 'look': np.ones((3, 2))}
  b = {
    'move': np.array([1, 3, 2]),
    'look': np.array([[1, 1], [1, 1], [1, 2.0]]),
  }
  assert heads._same(a, b).tolist() == [True, False, False]


def test_the_surprise_of_random_actions():
  space = (
    ActionComponent(name='a', kind='categorical', size=5),
    ActionComponent(name='b', kind='binary', size=3),
    ActionComponent(name='c', kind='continuous', size=2, bins=7),
  )
  found = heads.random_surprise(Config(actions=space))
  assert found == pytest.approx(np.log(5) + 3 * np.log(2) + 2 * np.log(7))


def test_a_context_is_compared_with_the_clips_of_each_phase():
  trained = Config().edit({'phases.dynamics.clip_lengths': (8, 12)})
  for length, verdict in ((12, 'fine'), (13, 'wrong')):
    now = trained.edit({'dynamics.context_length': length})
    found = dreams.memory('dynamics', trained, now)
    assert found.verdict == verdict
    assert found.text == f'{length} frames, trained on clips of 12'


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  """Six episodes; task 0 ends some of them, task 1 happens twice in others."""
  path = tmp_path_factory.mktemp('held') / 'data'
  rng = np.random.default_rng(0)

  def episode(number, length=20):
    events = np.zeros((length, 2), np.uint8)
    if number % 2:
      events[length - 2, 0] = 1
    else:
      events[[4, 9], 1] = 1
    last = np.arange(length) == length - 1
    steps = {
      'observation': rng.integers(0, 256, (length, 8, 8, 3), np.uint8),
      'action': {'move': rng.integers(0, 3, length, np.int32)},
      'action_known': ~last,
      'reward': np.zeros(length, np.float32),
      'events': events,
    }
    attributes = {'noise': 0.1 * number}
    return Episode(
      steps=steps, terminal=bool(number % 2), attributes=attributes
    )

  move = ActionComponent(name='move', kind='categorical', size=3)
  writer.write_dataset(
    path,
    description=Description(
      actions=(move,), tasks=('end', 'twice'), frame_shape=(8, 8, 3)
    ),
    splits={s: map(episode, range(6)) for s in ('train', 'test')},
  )
  config = Config(actions=(move,), tasks=('end', 'twice'))
  return config.edit(
    {
      'data.sources.0.path': str(path),
      # What a run was allowed to know has nothing to do with it.
      'data.sources.0.labeled_share': 0.0,
      'tokenizer.frame_shape': (8, 8, 3),
    }
  )


def test_clips_hold_events_of_each_task_the_last_frames_too(dataset):
  held = clips.held_out(dataset, 6, 64, relevant=True)
  tasks = np.array([held.episode % 2 == 1, held.episode % 2 == 0]).sum(axis=1)
  assert tasks.min() >= 3
  reward = heads.reward_of_task(heads._arriving(held.batch))
  ends = held.episode % 2 == 1
  # The event of task 0 is on an episode's last frame, which is in the clip.
  assert (held.batch.reward[ends, :, 0].sum(axis=1) == 1).all()
  assert (held.batch.cont[ends, -1] == 0).all()
  assert (reward[ends].sum(axis=1) == 1).all()
  assert held.batch.prev_action_mask.any() and held.batch.cloned.any()
  assert held.attributes[0]['noise'] == 0.1 * held.episode[0]
  # No clip twice, and each within one episode.
  seen = {x.tobytes() for x in held.batch.frames}
  assert len(seen) == len(held.episode) <= 64
  assert (held.batch.segment_ids == 0).all()


def test_uniform_clips_are_all_that_there_are(dataset):
  held = clips.held_out(dataset, 18, 64)
  assert len(held.episode) == 6 * 3
  assert not held.batch.cloned.any() and held.batch.prev_action_mask.any()
  some = held.rows(held.episode == 2)
  assert len(some.batch.task) == len(some.attributes) == 3
  with pytest.raises(ValueError, match=r'has the 21 frames of a clip'):
    clips.held_out(dataset, 21, 4)


def test_without_events_clips_with_actions_are_cloned(dataset, monkeypatch):
  monkeypatch.setattr(clips, '_anchors', lambda index, milestones: {})
  held = clips.held_out(dataset, 6, 8, relevant=True)
  known = np.asarray(held.batch.action_mask)
  assert known.any() and (held.batch.cloned == known).all()


def test_pieces_are_of_one_size_and_joined(dataset):
  held = clips.held_out(dataset, 6, 11)
  sizes = []

  def double(part):
    sizes.append(len(part.task))
    return part.frames.astype(np.int32) * 2

  found = clips.in_pieces(double, held.batch, size=4)
  np.testing.assert_array_equal(found, held.batch.frames.astype(np.int32) * 2)
  assert set(sizes) == {4}


def episode_notes(value, event, over, length=12):
  """Four episodes that end with their event, or without one."""
  live = np.ones((4, length), bool)
  return played.Watched(
    live=live, reward=event.astype(np.float32), event=event, value=value,
    entropy=np.ones((4, length)), prior=-np.ones((4, length)), over=over,
    cont=1.0 - over,
  )  # fmt: skip


def test_values_are_compared_with_what_came():
  world, _ = world_and_params(
    CONFIG.edit({'phases.imagination.stop_at_event': True})
  )
  gamma = world.config.phases.imagination.gamma
  event, over = np.zeros((4, 40)), np.zeros((4, 40), bool)
  event[:2, 39], over[2:, 39] = 1, True
  ahead = gamma ** np.arange(38, -1, -1)
  value = np.zeros((4, 40))
  value[:2, :39] = ahead
  found = played._values(world, episode_notes(value, event, over, 40))
  figures = {f.name: f.value for f in found}
  assert figures['value against real returns, correlation'] == pytest.approx(1)
  assert figures['and slope'] == pytest.approx(1)
  wrong = played._values(world, episode_notes(1 - value, event, over, 40))
  assert verdicts(wrong)['value against real returns, correlation'] == 'wrong'


def test_an_agent_is_watched_in_its_episodes():
  world, params = world_and_params()
  params = {**params, 'prior': params['policy']}
  seen = played.watch(world, params, Line(), GOALS.tolist(), steps=6)
  assert seen.live.shape == seen.reward.shape == seen.event.shape
  assert seen.live[:, 0].all() and not seen.event[:, 0].any()
  assert np.isfinite(seen.prior).all() and (seen.entropy > 0).all()
  # Events are those of the task that was held when the action was taken.
  assert seen.event.sum(axis=1).max() <= 2
  found = played.judge_episodes(world, seen)
  assert any(f.name == 'entropy of the policy' for f in found)


class Told(Line):
  """Line, which says where everybody stands."""

  spec = dataclasses.replace(
    Line.spec,
    facts=lambda state: {
      'position': state.position,
      'nothing': jnp.zeros_like(state.position),
    },
  )


def test_what_a_frame_shows_is_read_off_its_latents():
  world, params = world_and_params()
  found = frames.readable(world, params, Told(), list(range(1, 65)))
  share, note = found
  assert 0 <= share.value <= 1
  assert 'position' in note.text and 'never varied: nothing' in note.text


@pytest.mark.parametrize(
  ('dream', 'expected'),
  [
    ('what came', 1.0),
    ('what was', 0.0),
    ('one patch of two', 0.5),
    ('a blur', 1.0),  # Nearer to what came, if by little.
  ],
)
def test_what_events_change_is_looked_for_in_dreams(
  dream, expected, monkeypatch
):
  world, params = world_and_params()
  batch = make_batch(12, 6)
  frames_ = np.full(batch.frames.shape, 90, np.uint8)
  reward = np.zeros(batch.reward.shape, np.float32)
  reward[:, 3, 0] = 1.0
  reward[:6, 1, 1] = 1.0  # Too early to be dreamed.
  side = CONFIG.tokenizer.patch_size
  frames_[:, 3:, :side, :side] = 200
  frames_[:, 3:, side : 2 * side, :side] = 10
  frames_[:, 3:, :side, side:] += 5  # As good as nothing.
  known = np.ones_like(batch.prev_action_mask)
  batch = batch.replace(
    frames=frames_, reward=reward, prev_action_mask=known,
    cont=np.ones_like(batch.cont),
  )  # fmt: skip
  batch = jax.tree.map(np.asarray, batch)
  true, last = (frames_[0, t].astype(np.float32) / 255 for t in (3, 2))
  half = last.copy()
  half[:side] = true[:side]
  image = {
    'what came': true, 'what was': last, 'one patch of two': half,
    'a blur': 0.55 * true + 0.45 * last,
  }[dream]  # fmt: skip
  seen = {}

  def next_frame(world, params, past, action, sampling_steps):
    seen.update(past=past, action=action, steps=sampling_steps)
    return np.broadcast_to(image, (len(past.task), *image.shape))

  monkeypatch.setattr(dreams, 'next_frame', next_frame)
  held = clips.Held(batch, ({},) * 12, np.arange(12))
  found = dreams.event_changes(world, params, held, 2)
  assert [*found] == ['key'] and len(found['key']) == 12
  np.testing.assert_allclose(found['key'], expected)
  assert seen['past'].frames.shape[1] == 3 and seen['steps'] == 2
  move = np.sort(np.asarray(batch.prev_action['move'])[:, 3])
  np.testing.assert_array_equal(np.sort(seen['action']['move'][:, 0]), move)
  (figure, least) = dreams._events(world, params, held, 2)
  assert figure.value == pytest.approx(expected)
  assert figure.verdict == ('fine' if expected == 1 else 'wrong')
  assert least.text == f'key {expected:.2f}'


def test_a_frame_is_dreamed_with_its_action():
  world, params = world_and_params()
  whole = jax.tree.map(np.asarray, make_batch(4, 6))
  held = clips.Held(whole, ({},) * 4, np.arange(4))
  rows, at = np.array([0, 1, 2, 3]), np.array([2, 3, 4, 5])
  past = clips.before(held.batch, rows, at, 16)
  assert past.frames.shape[1] == 5
  seen = past.segment_ids.astype(bool)
  assert seen.sum(axis=1).tolist() == [2, 3, 4, 5]
  for i in range(4):
    np.testing.assert_array_equal(
      past.frames[i][seen[i]], held.batch.frames[i, : at[i]]
    )
  action = {k: np.asarray(v)[rows, at][:, None]
            for k, v in held.batch.prev_action.items()}  # fmt: skip
  one = dreams.next_frame(world, params, past, action, 2)
  assert one.shape == (4, *CONFIG.tokenizer.frame_shape)
  other = {k: (v + 1) % 2 if v.dtype.kind == 'i' else v + 1
           for k, v in action.items()}  # fmt: skip
  assert not np.allclose(
    one, dreams.next_frame(world, params, past, other, 2), atol=1e-5
  )
