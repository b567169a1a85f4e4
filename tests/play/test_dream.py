"""Dreams step by step, against rollouts in one go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.rollout import Replay, arrivals, imagine, sample_policy
from tests.models.tiny_world import (
  CONFIG,
  random_actions,
  world_and_params,
)
from tests.play.runs import tiny_contexts, tiny_dream

WORLD, PARAMS = world_and_params()
BATCH = tiny_contexts()
FRAMES, STEPS = 6, 2  # More than the ring holds.
KEY = jax.random.key(3)


@functools.cache
def programs(dream):
  """Compiles `reset` and `step` by themselves: dreams share what they can."""
  return jax.jit(dream.reset), jax.jit(dream.step)


def unroll(dream, actions, batch=BATCH, key=KEY):
  """Dreams with the keys of `imagine`; steps are stacked `[B, H, ...]`."""
  context, key = jax.random.split(key)
  reset, step = programs(dream)
  state, first = reset(PARAMS, batch, context)
  actions, found = jax.tree.map(np.asarray, actions), []
  for i in range(jax.tree.leaves(actions)[0].shape[1]):
    action = jax.tree.map(lambda a, i=i: a[:, i], actions)
    state, shown = step(PARAMS, state, action, jax.random.fold_in(key, i))
    found.append((shown, state.agent))
  return first, *jax.tree.map(lambda *x: np.stack(x, axis=1), *found), state


def close(found, expected):
  """Compares frames; a model of noise blows rounding up from frame to frame."""
  np.testing.assert_allclose(found[:, :2], expected[:, :2], atol=2e-5)
  np.testing.assert_allclose(found, expected, atol=1e-2)
  assert np.abs(np.diff(expected, axis=1)).max() > 0.05


def decoded(z, batch=BATCH):
  """Draws tokens of context and dream in one go; the last of the context on."""

  @jax.jit
  def draw(z):
    past = WORLD.encode_clips(PARAMS, batch)
    after = jnp.repeat(batch.segment_ids[:, -1:], z.shape[1], axis=1)
    images, _ = WORLD.decode(
      PARAMS,
      jnp.concatenate([past, z], axis=1),
      segment_ids=jnp.concatenate([batch.segment_ids, after], axis=1),
    )
    return jnp.clip(images[:, past.shape[1] - 1 :], 0, 1) * 255

  return np.asarray(draw(z))


@pytest.fixture(scope='module')
def rollout():
  return jax.jit(
    lambda: imagine(
      WORLD, PARAMS, BATCH, KEY, policy=sample_policy(WORLD, PARAMS),
      horizon=FRAMES, sampling_steps=STEPS,
    )
  )()  # fmt: skip


def test_it_dreams_what_imagination_dreams(rollout):
  dream = tiny_dream(horizon=FRAMES, termination='never')
  first, shown, agent, state = unroll(dream, rollout.actions)
  close(shown.latents, rollout.z)
  close(agent, rollout.agent[:, 1:])
  reward, cont = jax.jit(lambda r: arrivals(WORLD, PARAMS, r))(rollout)
  close(shown.reward, reward)
  close(shown.cont, cont)
  expected = decoded(shown.latents)
  np.testing.assert_allclose(first.frame, expected[:, 0], atol=0.51)
  np.testing.assert_allclose(shown.frame, expected[:, 1:], atol=0.51)
  assert shown.frame.dtype == first.frame.dtype == jnp.uint8
  assert shown.timeout[:, -1].all() and not shown.timeout[:, :-1].any()
  assert not shown.terminal.any() and state.count.tolist() == [FRAMES] * 2


def test_without_heads_it_dreams_what_a_replay_shows():
  rng = np.random.default_rng(0)
  actions = jax.tree.map(jnp.asarray, random_actions(rng, (2, FRAMES)))
  dream = tiny_dream(heads=False, horizon=FRAMES)
  _, shown, agent, state = unroll(dream, actions)
  replay = jax.jit(
    lambda a: imagine(
      WORLD, PARAMS, BATCH, KEY, policy=Replay(a), horizon=FRAMES,
      sampling_steps=STEPS,
    )
  )(actions)  # fmt: skip
  close(shown.latents, replay.z)
  expected = decoded(shown.latents)[:, 1:]
  np.testing.assert_allclose(shown.frame, expected, atol=0.51)
  assert agent is None and state.task is None and state.pending is not None
  assert not shown.reward.any() and (shown.cont == 1).all()


def test_a_policy_in_the_loop_dreams_as_imagination_does(rollout):
  dream, policy = tiny_dream(frames=False), sample_policy(WORLD, PARAMS)

  policy = jax.jit(policy)
  reset, step = programs(dream)
  context, key = jax.random.split(KEY)
  state, _ = reset(PARAMS, BATCH, context)
  found = []
  for i in range(3):
    own = jax.random.fold_in(key, i)
    action = policy(jax.random.split(own, 3)[0], state.agent, i)
    state, shown = step(PARAMS, state, action, own)
    found.append((action, shown.latents))
  actions, z = jax.tree.map(lambda *x: np.stack(x, axis=1), *found)
  close(z, rollout.z[:, :3])
  for name, x in actions.items():
    np.testing.assert_allclose(x, rollout.actions[name][:, :3], atol=1e-6)


def test_the_end_is_drawn_or_judged():
  rng = np.random.default_rng(0)
  rows = 8
  batch = jax.tree.map(lambda x: jnp.concatenate([x] * (rows // 2)), BATCH)
  actions = jax.tree.map(jnp.asarray, random_actions(rng, (rows, 4)))
  run = lambda **kw: unroll(tiny_dream(frames=False, **kw), actions, batch)[1]
  drawn, plain = run(), run(termination='never')
  np.testing.assert_allclose(drawn.latents, plain.latents, atol=1e-6)
  assert drawn.terminal.any() and not drawn.terminal.all()
  assert not (drawn.terminal & drawn.timeout).any()
  # Once over, over; and then without reward.
  before = jnp.pad(drawn.terminal, ((0, 0), (1, 0)))[:, :-1]
  assert (drawn.terminal >= before).all()
  assert (drawn.reward[before] == 0).all()
  np.testing.assert_allclose(drawn.reward[~before], plain.reward[~before])
  middle = float(np.median(plain.cont))
  judged = run(termination=middle)
  expected = np.maximum.accumulate(plain.cont < middle, axis=1)
  np.testing.assert_array_equal(judged.terminal, expected)
  stopped = run(stop_at_event=True, termination='never').cont
  expected = plain.cont * (1 - np.clip(plain.reward, 0, 1))
  np.testing.assert_allclose(stopped, expected, atol=1e-6)


def test_a_dream_does_not_depend_on_its_neighbours():
  dream, keys = tiny_dream(), jax.random.split(jax.random.key(1), 3)
  batch = tiny_contexts(3)
  action = jax.tree.map(
    jnp.asarray, random_actions(np.random.default_rng(0), (3,))
  )

  @jax.jit
  def run(batch, action, keys):
    state, _ = dream.reset(PARAMS, batch, keys)
    return dream.step(PARAMS, state, action, keys)[1]

  one = lambda tree: jax.tree.map(lambda x: x[1:2], tree)
  alone, whole = (
    run(one(batch), one(action), keys[1:2]),
    run(batch, action, keys),
  )
  np.testing.assert_allclose(alone.latents, whole.latents[1:2], atol=1e-5)
  np.testing.assert_array_equal(alone.terminal, whole.terminal[1:2])


@pytest.mark.parametrize('heads', [True, False])
def test_some_dreams_begin_anew_and_the_others_go_on(heads):
  dream = tiny_dream(heads=heads, termination='never', horizon=4)
  keys = jax.random.split(jax.random.key(1), 2)
  fresh = tiny_contexts(2, 5).replace(frames=255 - tiny_contexts(2, 5).frames)
  which = jnp.asarray([False, True])
  rng = np.random.default_rng(0)
  actions = [
    jax.tree.map(jnp.asarray, random_actions(rng, (2,))) for _ in range(6)
  ]
  reset, step = (
    functools.partial(program, PARAMS) for program in programs(dream)
  )
  old = reset(BATCH, keys)
  for action in actions[:3]:
    old = step(old[0], action, keys)
  new = reset(fresh, keys)
  both = jax.jit(lambda now: dream.restart(PARAMS, now, which, fresh, keys))(
    old
  )
  np.testing.assert_array_equal(both[1].frame[0], old[1].frame[0])
  np.testing.assert_array_equal(both[1].frame[1], new[1].frame[1])
  for action in actions[3:]:
    old, new, both = (step(s[0], action, keys) for s in (old, new, both))
    for name in ('latents', 'reward', 'cont', 'timeout'):
      a, b, c = (getattr(s[1], name) for s in (both, old, new))
      np.testing.assert_allclose(a[0], b[0], atol=2e-5)
      np.testing.assert_allclose(a[1], c[1], atol=2e-5)
    frames = [np.asarray(s[1].frame, int) for s in (both, old, new)]
    assert np.abs(frames[0][0] - frames[1][0]).max() <= 1
    assert np.abs(frames[0][1] - frames[2][1]).max() <= 1
  assert both[0].count.tolist() == [6, 3]
  assert both[1].timeout.tolist() == [True, False]


def test_a_prompt_moves_on_where_the_reward_head_says_so():
  prompt = ((1, 1), (0, 1))
  actions = jax.tree.map(
    jnp.asarray, random_actions(np.random.default_rng(0), (2, 3))
  )
  run = lambda above: unroll(
    tiny_dream(
      prompt=prompt, event_above=above, termination='never', frames=False
    ),
    actions,
  )
  _, shown, _, state = run(1e6)
  assert state.task.tolist() == [1, 1]
  held = tiny_contexts(task=1)
  same = unroll(tiny_dream(termination='never', frames=False), actions, held)[1]
  np.testing.assert_allclose(shown.reward, same.reward, atol=1e-6)
  # Every reward is an event: the second task is held after the first frame.
  _, moved, _, state = run(-1e6)
  assert state.task.tolist() == [0, 0] and state.prompt.past.all()
  np.testing.assert_allclose(moved.reward[:, 0], shown.reward[:, 0], atol=1e-6)
  assert np.abs(moved.reward[:, 1] - shown.reward[:, 1]).max() > 1e-3
  np.testing.assert_allclose(moved.latents, shown.latents, atol=1e-5)


def test_past_frames_may_be_shown_with_another_noise():
  actions = jax.tree.map(
    jnp.asarray, random_actions(np.random.default_rng(0), (2, 2))
  )
  clear, plain = (
    unroll(tiny_dream(fields, frames=False), actions)[1].latents
    for fields in ({'dynamics.context_signal': 0.5}, {})
  )
  assert np.abs(clear - plain).max() > 1e-3


def test_how_clear_past_frames_are_can_be_said_while_it_runs():
  actions = jax.tree.map(
    jnp.asarray, random_actions(np.random.default_rng(0), (2,))
  )
  plain = tiny_dream(frames=False)
  other = tiny_dream({'dynamics.context_signal': 0.5}, frames=False)
  step = jax.jit(
    lambda dream, state: dream.step(PARAMS, state, actions, KEY),
    static_argnums=0,
  )

  def run(dream, state):
    found = []
    for _ in range(3):
      state, shown = step(dream, state)
      found.append(shown.latents)
    return jnp.stack(found)

  state, _ = jax.jit(lambda: plain.reset(PARAMS, BATCH, KEY))()
  told = run(plain, plain.at_level(state, jnp.full(2, 4, jnp.int32)))
  np.testing.assert_allclose(told, run(other, state), atol=1e-5)  # 4 of 8.
  clear = run(plain, plain.at_level(state, jnp.full(2, 7, jnp.int32)))
  assert np.abs(told - clear)[1:].max() > 1e-3


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'horizon': 0}, 'horizon = 0: must be at least 1'),
    ({'sampling_steps': 3}, 'sampling_steps = 3: must be a power of two up to'),
    ({'sampling_steps': 16}, 'max_steps = 8'),
    ({'termination': 'soon'}, "termination = 'soon': must be 'sample'"),
    ({'termination': 2.0}, 'a probability in 0..1'),
    ({'prompt': ((0, 1),), 'heads': False}, 'moves on by the reward head'),
    ({'prompt': ((0, 1),), 'stop_at_event': True}, 'give one of the two'),
  ],
)
def test_what_cannot_be_dreamed_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    tiny_dream(**settings)
  assert CONFIG.dynamics.max_steps == 8
