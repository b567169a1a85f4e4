"""Dream against reality, with dreams that are known to be right or wrong."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.config import EnvConfig
from dreamer4_jax.envs import make_env
from dreamer4_jax.evals import drawing, moments, reality
from dreamer4_jax.rollout import Rollout, imagine, prepare_context
from tests.evals.test_closed_loop import LIMIT, Line
from tests.models.tiny_world import CONFIG, make_batch, world_and_params

GOALS = (1, 2, 2, 3, 3, 4, 9) * 6  # the seed is the goal
STARTS = (0, 2, 4)
HORIZON = 3  # beyond the time limit, from the last start
CONTEXT = 3


class Paid(Line):
  """The same without events: every step forward pays."""

  spec = dataclasses.replace(Line.spec, tasks=('reward',))

  def _show(self, *args):
    step = Line._show(self, *args)
    return step.replace(events=step.events[:, :0])


def moves(key, shape):
  """Steps forward, 2, in a third of the cases."""
  nothing = jnp.zeros((*shape, 2))
  return {
    'move': jax.random.randint(key, shape, 0, 3),
    'keys': nothing.astype(jnp.int32),
    'look': nothing,
  }


def fake_act(world, params, state, seen, task, key):
  return moves(key, seen.is_first.shape), None, state


def true_dream(world, params, batch, key, *, policy, horizon, sampling_steps):
  """Knows the game but for its time limit; agent states are (event, cont)."""
  del policy, sampling_steps
  rows = batch.task.shape[0]
  actions = moves(key, (rows, horizon))
  goal = jnp.asarray(GOALS)
  position = batch.frames[:, -1, 0, 0, 0].astype(jnp.int32)
  seen = [jnp.zeros((rows, 2))]
  for h in range(horizon):
    step = (actions['move'][:, h] == 2) & (position < goal)
    position = position + step
    events = [step & (position == 1), step & (position == goal)]
    event = jnp.where(batch.task[:, -1] == 0, *events)
    if world.config.tasks == ('reward',):
      event = step * 0.5
    seen.append(jnp.stack([event, position < goal], axis=-1))
  return Rollout(
    z=jnp.zeros((rows, horizon, 2, 8)),
    noisy=None,
    actions=actions,
    agent=jnp.stack(seen, axis=1),
  )


def seen_as(read):
  """Returns `arrivals` of dreams whose reward is `read(event)`."""

  def arrivals(world, params, rollout):
    return read(rollout.agent[:, 1:, 0]), rollout.agent[:, 1:, 1]

  return arrivals


def compare(monkeypatch, read, env=None, config=CONFIG, **kwargs):
  world, params = world_and_params(config)
  monkeypatch.setattr(moments, 'act', fake_act)
  monkeypatch.setattr(reality, 'imagine', true_dream)
  monkeypatch.setattr(reality, 'arrivals', seen_as(read))
  settings = {'starts': STARTS, **kwargs}
  stop = settings.pop('stop_at_event', True)
  return reality.dream_and_play(
    world,
    {'only': params},
    env or Line(),
    jax.random.key(0),
    seeds=GOALS,
    dreams=reality.Dreams(
      context=CONTEXT, horizon=HORIZON, sampling_steps=2, stop_at_event=stop
    ),
    **settings,
  )['only']


def test_a_dream_that_is_right_has_neither_phantoms_nor_misses(monkeypatch):
  got = compare(monkeypatch, lambda event: event)
  summary = got.summary(CONFIG.tasks)
  # States are those of episodes that still go on.
  world, params = world_and_params()
  acting, _ = jax.random.split(jax.random.key(0))
  played = moments.moments(world, Line())(params, acting, GOALS, STARTS)
  going = [int(moment.live.sum()) for moment in played]
  assert [(got.start == t).sum() for t in STARTS] == going
  assert going[0] == len(GOALS) > going[-1] > 10
  assert summary['states'] == sum(going)
  for row in (summary, *summary['tasks'].values()):
    assert row['events'] > 2 and row['without'] > 2
    assert row['events'] + row['without'] == row['states']
    assert (row['hit'], row['missed'], row['phantom']) == (1, 0, 0)
    assert row['dreamed'] == row['real'] == row['events'] / row['states']
    assert row['return_dreamed'] == row['return_real'] == row['real']
  assert set(summary['tasks']) == {'key', 'door'}
  assert summary['phantoms'] == []
  assert got.phantoms.dreamed.shape == (0, 1 + HORIZON, 20, 12, 3)


def test_a_dream_beyond_the_time_limit_promises_nothing(monkeypatch):
  # It pays on its last frame alone, which only some starts have left.
  last = jnp.arange(HORIZON)[None] == HORIZON - 1
  got = compare(monkeypatch, lambda event: event * 0 + last)
  np.testing.assert_array_equal(got.dreamed, got.start + HORIZON <= LIMIT)
  assert set(got.start) == set(STARTS)


def test_a_dream_that_promises_everything_is_all_phantom(monkeypatch):
  got = compare(monkeypatch, lambda event: event * 0 + 1)
  summary = got.summary(CONFIG.tasks)
  for row in (summary, *summary['tasks'].values()):
    assert (row['hit'], row['phantom'], row['dreamed']) == (1, 1, 1)
    assert row['return_dreamed'] == 1 and 0 < row['return_real'] < 1
  assert [p['promise'] for p in summary['phantoms']] == [1] * 6
  worst, shape = got.phantoms, (6, 1 + HORIZON, 20, 12, 3)
  assert worst.frames.shape == worst.dreamed.shape == shape
  # Pictures begin where the dream does; in reality nothing comes of it.
  first = worst.frames[:, 0, 0, 0, 0]
  assert (first[worst.start == 0] == 0).all()
  assert (first[worst.task == 0] == 0).all()
  assert (worst.frames[worst.task == 0][:, :, 0, 0, 0] == 0).all()
  assert drawing.phantom_sheet({'a': got, 'b': got}).ndim == 3


def test_returns_of_all_events_where_none_ends_them(monkeypatch):
  read = lambda event: event * 0 + 0.5
  got = compare(monkeypatch, read, stop_at_event=False)
  left = np.minimum(HORIZON, LIMIT - got.start)
  np.testing.assert_allclose(got.dreamed, 1 - 0.5**left)
  # Steps count as long as the game still goes on in the dream.
  assert (got.return_dreamed <= left / 2).all()
  stays = got.task == 0
  np.testing.assert_allclose(got.return_dreamed[stays & (got.start == 4)], 1)
  stopped = compare(monkeypatch, read)
  assert stopped.return_dreamed.max() <= 1 < got.return_dreamed.max()


def test_a_dream_that_promises_nothing_misses_everything(monkeypatch):
  got = compare(monkeypatch, lambda event: event * 0)
  summary = got.summary(CONFIG.tasks)
  assert (summary['hit'], summary['missed'], summary['phantom']) == (0, 1, 0)
  assert summary['return_dreamed'] == 0 and summary['phantoms'] == []


def test_without_events_returns_are_compared(monkeypatch):
  config = CONFIG.edit({'tasks': ('reward',)})
  run = lambda read: compare(
    monkeypatch, read, Paid(), config, stop_at_event=False, starts=(0, 2)
  )
  right = run(lambda event: event)
  np.testing.assert_array_equal(right.return_dreamed, right.return_real)
  assert len(set(right.return_real)) > 2 and not len(right.phantoms.task)
  summary = run(lambda event: event + 1).summary(config.tasks)
  for name in ('dreamed', 'real', 'hit', 'missed', 'phantom', 'events'):
    assert summary[name] is None
  assert summary['return_dreamed'] > summary['return_real'] + 1
  assert len(summary['phantoms']) == 6


def test_no_state_of_a_host_can_be_kept():
  class Host(Line):
    spec = dataclasses.replace(Line.spec, on_host=True)

  world, _ = world_and_params()
  dreams = reality.Dreams(
    context=2, horizon=2, sampling_steps=2, stop_at_event=True
  )
  nothing = dict(seeds=(1,), dreams=dreams)
  args = (world, {}, Host(), jax.random.key(0))
  assert reality.dream_and_play(*args, starts=(0,), **nothing) is None
  with pytest.raises(ValueError, match=r'starts = \(0, 6\): .* in 0..5: an'):
    reality.dream_and_play(
      world,
      {},
      Line(),
      jax.random.key(0),
      starts=(0, 6),
      **nothing,
    )


def test_labels_are_those_of_the_prompt_on_each_frame(monkeypatch):
  world, params = world_and_params()
  monkeypatch.setattr(moments, 'act', fake_act)
  play = moments.moments(world, Line())
  (moment,) = play(params, jax.random.key(0), GOALS, (5,))
  position = moment.frames[..., 0, 0, 0]
  # The key's event is seen on the frame on which one step was made.
  np.testing.assert_array_equal(moment.tasks, position >= 1)
  led = moment.prev_actions['move'][:, 1:] == 2
  walked = np.minimum(np.cumsum(led, axis=1), np.array(GOALS)[:, None])
  np.testing.assert_array_equal(position[:, 1:], walked)
  np.testing.assert_array_equal(moment.live, position[:, -1] < GOALS)


@pytest.fixture(scope='module')
def doorkey():
  """A tiny world of DoorKey, its parameters and the game."""
  pytest.importorskip('navix')
  env = make_env(
    EnvConfig(name='navix:Navix-DoorKey-Random-5x5-v0', max_steps=12)
  )
  config = CONFIG.edit(
    {
      'actions': env.spec.actions,
      'tasks': env.spec.tasks,
      'tokenizer.frame_shape': env.spec.frame_shape,
      'tokenizer.patch_size': 20,
      'dynamics.depth': 2,
    }
  )
  return *world_and_params(config), env


@pytest.fixture(scope='module')
def kept(doorkey):
  """Moments of 16 episodes by frame."""
  world, params, env = doorkey
  play = moments.moments(world, env)
  found = play(params, jax.random.key(0), range(16), (0, 3, 9))
  return {moment.start: moment for moment in found}


@pytest.mark.parametrize('start', [0, 3])
def test_the_game_goes_on_from_a_kept_state(doorkey, kept, start):
  _, _, env = doorkey
  whole = kept[9]
  actions = whole.prev_actions['action'][:, start + 1 :]
  got = jax.jit(lambda *x: moments.play_on(env, *x))(
    kept[start].env_state, {'action': actions}
  )
  np.testing.assert_array_equal(got.frame, whole.frames[:, start + 1 :])
  assert len(np.unique(whole.frames, axis=1)) > 8  # They do move.
  np.testing.assert_array_equal(
    kept[start].frames, whole.frames[:, : start + 1]
  )


def test_contexts_are_the_last_frames_and_what_led_to_them(doorkey, kept):
  world, whole = doorkey[0], kept[9]
  batch = whole.context(world, 6)
  np.testing.assert_array_equal(batch.frames, whole.frames[:, 4:])
  np.testing.assert_array_equal(batch.task, whole.tasks[:, 4:])
  led = whole.prev_actions['action'][:, 4:]
  np.testing.assert_array_equal(batch.prev_action['action'], led)
  assert batch.prev_action_mask.all() and (batch.segment_ids == 1).all()


def test_an_early_dream_sees_nothing_before_the_first_frame(doorkey, kept):
  world, params, _ = doorkey
  batch = kept[3].context(world, 6)
  np.testing.assert_array_equal(batch.frames[:, 2:], kept[3].frames)
  assert batch.segment_ids[0].tolist() == [0, 0, 1, 1, 1, 1]
  assert batch.prev_action_mask[0].tolist() == [False] * 3 + [True] * 3

  @jax.jit
  def last(batch):
    key = jax.random.key(0)
    context = prepare_context(world, params, batch, key, with_agent=True)
    return context.agent[:, -1]

  def painted(frame):
    frames = batch.frames.copy()
    frames[:, frame] = 255 - frames[:, frame]
    return batch.replace(frames=frames)

  expected = last(batch)
  np.testing.assert_array_equal(last(painted(1)), expected)
  assert np.abs(last(painted(2)) - expected).max() > 1e-4


def test_pictures_are_of_the_last_context_frame_and_of_the_dream():
  # The dream is what really follows, so all of it is one reconstruction.
  world, params = world_and_params()
  clip = jax.tree.map(jnp.asarray, make_batch(2, 5))

  @jax.jit
  def draw(clip):
    z = world.encode_clips(params, clip)
    context = jax.tree.map(lambda x: x[:, :3] if x.ndim > 1 else x, clip)
    whole = world.tokenizer.apply({'params': params['tokenizer']}, clip.frames)
    return reality._decoder(world)(params, context, z[:, 3:]), whole[1]

  got, whole = draw(clip)
  expected = np.clip(whole[:, 2:], 0, 1) * 255
  assert got.shape == expected.shape and got.dtype == np.uint8
  np.testing.assert_allclose(got, expected, atol=0.6)
  assert np.abs(expected[:, 1:] - expected[:, :-1]).max() > 10


def test_agents_dream_and_play_in_one_program(monkeypatch):
  world, params = world_and_params()
  traced = []

  def counted(*args, **kwargs):
    traced.append(kwargs)
    return imagine(*args, **kwargs)

  monkeypatch.setattr(reality, 'imagine', counted)
  other = {**params, 'policy': jax.tree.map(lambda x: -x, params['policy'])}
  got = reality.dream_and_play(
    world,
    {'bc': params, 'rl': other, 'again': params},
    Line(),
    jax.random.key(0),
    seeds=GOALS,
    starts=(1, 5),
    dreams=reality.Dreams(
      context=4, horizon=3, sampling_steps=2, stop_at_event=False
    ),
  )
  assert [t['horizon'] for t in traced] == [3]
  summaries = {name: r.summary(CONFIG.tasks) for name, r in got.items()}
  assert summaries['again'] == summaries['bc'] != summaries['rl']
  assert json.loads(json.dumps(summaries)) == summaries
  for agent in got.values():
    assert agent.dreamed.shape == agent.real.shape == agent.task.shape
    assert (0 <= agent.dreamed).all() and (agent.dreamed <= 1).all()
    assert ((agent.return_real > 0) == agent.real).all()
  parts = summaries['bc']['tasks'].values()
  assert sum(part['states'] for part in parts) == summaries['bc']['states']
