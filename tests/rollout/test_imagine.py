import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.rollout import (
  Replay,
  context_levels,
  imagine,
  prepare_context,
  sample_policy,
)
from tests.models.tiny_world import (
  make_batch,
  random_actions,
  random_tokens,
  world_and_params,
)
from tests.rollout.fakes import make_fake

PAST, HORIZON, STEPS = 6, 7, 2  # the ring holds 4 frames
WORLD, PARAMS = world_and_params()
BATCH = jax.tree.map(jnp.asarray, make_batch(2, PAST, starts=[(1, 4)]))


def run(world=WORLD, params=PARAMS, policy=None, seed=0, **kwargs):
  return imagine(
    world,
    params,
    BATCH,
    jax.random.key(seed),
    policy=policy or sample_policy(world, params),
    horizon=HORIZON,
    sampling_steps=STEPS,
    **kwargs,
  )


@pytest.fixture(scope='module')
def faked():
  """A rollout of the fake world, with every call on record."""
  z1 = random_tokens(0, 2, 1)
  world = make_fake(lambda z, levels: z * 0 + z1)
  with jax.disable_jit():
    rollout = run(world)
  return world.record, rollout


def test_every_frame_costs_its_passes_and_one_more(faked):
  record, rollout = faked
  assert len(record) == 1 + HORIZON * (STEPS + 1)
  assert rollout.z.shape == (2, HORIZON, 2, 8)
  assert rollout.agent.shape == (2, HORIZON + 1, 16)


def test_the_executed_action_is_the_one_every_pass_of_its_frame_saw(faked):
  record, rollout = faked
  assert len(np.unique(rollout.actions['move'])) > 1
  for i in range(HORIZON):
    calls = record[1 + i * (STEPS + 1) :][: STEPS + 1]
    for call in calls:
      assert np.all(call['known'])
      for name, value in rollout.actions.items():
        assert np.array_equal(call['action'][name][:, 0], value[:, i])


def test_context_noise_is_drawn_once_per_frame_and_labelled(faked):
  record, rollout = faked
  noises, before = [], None
  for i in range(HORIZON):
    *passes, last = record[1 + i * (STEPS + 1) :][: STEPS + 1]
    assert np.all(last['levels'].signal_index == 7)
    assert np.all(last['levels'].step_index == 3)
    noises.append((last['z'] - rollout.z[:, i : i + 1] * 7 / 8) * 8)
    # All passes of a frame have the same past.
    for call in passes:
      for a, b in zip(
        jax.tree.leaves(call['cache']),
        jax.tree.leaves(last['cache']),
        strict=True,
      ):
        assert np.array_equal(a, b)
    # What was stored for the frame before is that frame's one noisy pass.
    if i:
      slot = int(last['cache'].frame - 1) % 4
      stored = last['cache'].entries.keys[0, :, 0, 0, slot, 0]
      np.testing.assert_allclose(stored, before.mean((1, 2, 3)), atol=1e-6)
    before = last['z']
  starts = [record[1 + i * (STEPS + 1)]['z'] for i in range(HORIZON)]
  draws = np.concatenate([*noises, *starts], axis=1)
  # 14 draws of 32 numbers: standard normal, and no two the same.
  assert abs(draws.mean()) < 0.2 and abs(draws.std() - 1) < 0.15
  flat = np.moveaxis(draws, 1, 0).reshape(2 * HORIZON, -1)
  assert np.abs(np.corrcoef(flat) - np.eye(2 * HORIZON)).max() < 0.8


def test_agent_states_come_from_the_appending_passes(faked):
  record, rollout = faked
  last = [record[i * (STEPS + 1)]['z'][:, -1].mean((1, 2)) for i in range(8)]
  np.testing.assert_allclose(
    rollout.agent[:, :, 0], np.stack(last, axis=1), atol=1e-6
  )


def test_the_context_is_noised_once_and_labelled(faked):
  record, _ = faked
  call = record[0]
  assert np.all(call['levels'].signal_index == 7)
  assert np.all(call['levels'].step_index == 3)
  noise = np.asarray(call['z'] - random_tokens(5, 2, PAST) * 7 / 8) * 8
  assert abs(noise.std() - 1) < 0.15
  assert np.array_equal(call['segment_ids'], BATCH.segment_ids)


@pytest.fixture(scope='module')
def dream():
  """Returns a function (params, seed) to a rollout."""
  return jax.jit(lambda params, seed: run(params=params, seed=seed))


def test_the_dream_equals_a_pass_over_the_whole_clip(dream):
  # The dream is longer than the ring, and the second clip starts an episode
  # shortly before it.
  rollout = dream(PARAMS, 0)

  @jax.jit
  def whole(rollout):
    longer = lambda x: jnp.concatenate(
      [x, jnp.repeat(x[:, -1:], HORIZON, axis=1)], axis=1
    )
    action = jax.tree.map(
      lambda a, b: jnp.concatenate([a, b], axis=1),
      BATCH.prev_action,
      rollout.actions,
    )
    known = longer(BATCH.prev_action_mask).at[:, PAST:].set(True)
    return WORLD.denoise(
      PARAMS,
      rollout.noisy,
      context_levels(WORLD, rollout.noisy.shape[:2]),
      action,
      known,
      agent=WORLD.agent_token(PARAMS, longer(BATCH.task)),
      segment_ids=longer(BATCH.segment_ids),
    ).agent

  np.testing.assert_allclose(
    rollout.agent, whole(rollout)[:, PAST - 1 :], atol=5e-5
  )


def test_a_dream_remembers_what_the_model_saw_of_it(dream):
  rollout = dream(PARAMS, 0)
  assert rollout.noisy.shape == (2, PAST + HORIZON, 2, 8)
  noise = np.asarray(rollout.noisy[:, PAST:] - rollout.z * 7 / 8) * 8
  assert abs(noise.mean()) < 0.25 and abs(noise.std() - 1) < 0.2


def equal(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


def test_a_dream_is_a_function_of_its_key_and_policy(dream):
  first = dream(PARAMS, 0)
  assert equal(dream(PARAMS, 0), first)
  assert not equal(dream(PARAMS, 1).z, first.z)
  moved = jax.tree.map(lambda x: -x, PARAMS['policy'])
  other = dream({**PARAMS, 'policy': moved}, 0)
  assert not equal(other.actions, first.actions)


def test_policy_and_prior_with_equal_parameters_act_the_same():
  h = jnp.asarray(np.random.default_rng(0).normal(size=(64, 16)), jnp.float32)
  draw = lambda params, module: sample_policy(WORLD, params, module)(
    jax.random.key(0), h, jnp.int32(0)
  )
  policy = draw(PARAMS, 'policy')
  assert equal(policy, draw(PARAMS, 'prior'))
  moved = {**PARAMS, 'prior': jax.tree.map(lambda x: -x, PARAMS['prior'])}
  assert equal(policy, draw(moved, 'policy'))
  assert not equal(policy, draw(moved, 'prior'))


def test_given_actions_are_replayed_in_order_without_an_agent():
  actions = random_actions(np.random.default_rng(0), (2, HORIZON))
  actions = jax.tree.map(jnp.asarray, actions)

  @jax.jit
  def replay(actions):
    return run(policy=Replay(actions))

  rollout = replay(actions)
  assert rollout.agent is None and equal(rollout.actions, actions)
  moved = {**actions, 'move': actions['move'].at[:, 3].add(1) % 3}
  change = np.abs(replay(moved).z - rollout.z).max((2, 3))
  assert np.all(change[:, :3] == 0) and np.all(change[:, 3] > 1e-5)


def test_actions_that_are_not_known_have_no_effect():
  actions = random_actions(np.random.default_rng(0), (2, HORIZON))
  known = np.ones((2, HORIZON), bool)
  known[0, 3] = False

  @jax.jit
  def replay(actions):
    return run(policy=Replay(actions, jnp.asarray(known))).z

  moved = {**actions, 'move': actions['move'].copy()}
  moved['move'][:, 3] = (moved['move'][:, 3] + 1) % 3
  change = np.abs(replay(moved) - replay(actions)).max((2, 3))
  assert np.all(change[0] == 0) and np.all(change[1, 3:] > 1e-5)


def test_context_tokens_are_clean():
  world = make_fake(lambda z, levels: z)
  key = jax.random.key(0)
  got = prepare_context(world, PARAMS, BATCH, key, with_agent=False)
  assert np.array_equal(got.z, random_tokens(5, 2, PAST))
  assert got.agent is None and got.cache.frame == PAST
