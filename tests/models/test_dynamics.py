import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.models import dynamics_cache, tokenizer_caches
from dreamer4_jax.models.dynamics import num_tokens, pack, unpack
from dreamer4_jax.nn import append, start_segment
from dreamer4_jax.types import Levels
from tests.models.tiny_world import (
  CONFIG,
  make_batch,
  random_actions,
  random_tokens,
  world_and_params,
)

FRAMES = 9
WORLD, PARAMS = world_and_params()
BATCH = jax.tree.map(jnp.asarray, make_batch(2, FRAMES, starts=[(1, 5)]))
Z = random_tokens(0, 2, FRAMES)
LEVELS = Levels(
  signal_index=jnp.asarray(
    np.random.default_rng(1).integers(0, 9, (2, FRAMES))
  ),
  step_index=jnp.asarray(np.random.default_rng(2).integers(0, 4, (2, FRAMES))),
  max_steps=8,
)
AGENT = jnp.asarray(np.random.default_rng(3).normal(size=(2, FRAMES, 16)), 'f4')


DEFAULTS = dict(
  z=Z,
  levels=LEVELS,
  prev_action=BATCH.prev_action,
  prev_action_mask=BATCH.prev_action_mask,
  agent=AGENT,
  segment_ids=BATCH.segment_ids,
)
denoise = jax.jit(lambda **kwargs: WORLD.denoise(PARAMS, **kwargs))


def run(**changes):
  return denoise(**(DEFAULTS | changes))


@pytest.fixture(scope='module')
def base():
  return run()


def test_inserting_the_agent_token_leaves_predictions_unchanged(base):
  plain = run(agent=None)
  assert plain.agent is None and base.agent.shape == (2, FRAMES, 16)
  assert base.prediction.dtype == jnp.float32
  np.testing.assert_allclose(plain.prediction, base.prediction, atol=2e-5)
  other = run(agent=AGENT + 1)
  assert np.array_equal(other.prediction, base.prediction)
  assert np.all(np.abs(other.agent - base.agent).max(-1) > 0.01)


def test_predictions_have_no_gradient_in_the_agent_token():
  def total(agent, z):
    return (run(agent=agent, z=z).prediction ** 2).sum()

  agent, z = jax.jit(jax.grad(total, (0, 1)))(AGENT, Z)
  assert not np.any(agent)
  assert np.all(np.abs(z).max((2, 3)) > 0)


def test_a_masked_action_has_no_value_and_rows_may_be_mixed(base):
  known = BATCH.prev_action_mask.at[0].set(False)  # unlabeled video
  known = known.at[1, 7].set(False)
  a = run(prev_action_mask=known)
  other = random_actions(np.random.default_rng(9), (2, FRAMES))
  swap = lambda x, y: jnp.where(
    known.reshape(known.shape + (1,) * (x.ndim - 2)), x, y
  )
  b = run(
    prev_action=jax.tree.map(swap, BATCH.prev_action, other),
    prev_action_mask=known,
  )
  assert np.array_equal(a.prediction, b.prediction)
  assert np.array_equal(a.agent, b.agent)
  # The labeled clip beside it is not touched before its gap.
  assert np.array_equal(a.prediction[1, :7], base.prediction[1, :7])
  assert np.abs(a.prediction - base.prediction)[0, 1:].max() > 0.01


@pytest.mark.parametrize('name', ['move', 'keys', 'look'])
def test_an_action_moves_the_frame_it_leads_to_and_none_before(base, name):
  action = dict(BATCH.prev_action)
  before = action[name][:, 4]
  other = {'move': (before + 1) % 3, 'keys': 1 - before, 'look': before + 1}
  action[name] = action[name].at[:, 4].set(other[name])
  change = np.abs(run(prev_action=action).prediction - base.prediction).max(
    (2, 3)
  )
  assert np.all(change[:, :4] == 0)
  assert np.all(change[:, 4] > 1e-4)
  assert np.all(change[1, 5:] == 0)  # another episode


def test_later_frames_levels_and_tokens_change_nothing_earlier(base):
  signal = LEVELS.signal_index
  other = signal.at[:, 6].set((signal[:, 6] + 1) % 9)
  out = run(z=Z.at[:, 6].add(1.0), levels=LEVELS.replace(signal_index=other))
  change = np.abs(out.prediction - base.prediction).max((2, 3))
  assert np.all(change[:, :6] == 0) and np.all(change[:, 6] > 0.01)


def test_both_indices_are_told_to_the_model(base):
  for other in (
    {'signal_index': (LEVELS.signal_index + 1) % 9},
    {'step_index': (LEVELS.step_index + 1) % 4},
  ):
    out = run(levels=LEVELS.replace(**other))
    change = np.abs(out.prediction - base.prediction).max((2, 3))
    assert np.all(change[:, 0] > 1e-4)


def test_levels_of_another_grid_are_refused():
  with pytest.raises(ValueError, match=r'levels.max_steps = 16: .* = 8; give'):
    run(levels=LEVELS.replace(max_steps=16))


def test_streaming_equals_the_whole_clip(base):
  cache = dynamics_cache(WORLD.dynamics, 2, agent=True)
  shapes = jax.tree.map(jnp.shape, cache)
  at = lambda x, t: jax.tree.map(lambda a: a[:, t : t + 1], x)
  for t in range(FRAMES):  # the ring holds 4
    cache = start_segment(cache, jnp.array([False, t == 5]))
    frame = at({k: v for k, v in DEFAULTS.items() if k != 'segment_ids'}, t)
    out = denoise(**frame, cache=cache)
    cache = append(cache, out.new)
    np.testing.assert_allclose(
      out.prediction[:, 0], base.prediction[:, t], atol=3e-5
    )
    np.testing.assert_allclose(out.agent[:, 0], base.agent[:, t], atol=3e-5)
  assert jax.tree.map(jnp.shape, cache) == shapes


def test_a_frame_has_the_tokens_of_the_specification():
  # 2 z, the action, 1 register, 1 shortcut, and the agent.
  assert num_tokens(CONFIG.dynamics, agent=False) == 5
  assert num_tokens(CONFIG.dynamics, agent=True) == 6


def test_heads_share_keys_in_the_dynamics_alone():
  (encoder, _), own = (
    tokenizer_caches(WORLD.tokenizer, 2),
    dynamics_cache(WORLD.dynamics, 2, agent=False),
  )
  # Periods, streams, tokens, key/value heads, ring, channels of a head.
  assert own.entries.keys.shape == (2, 2, 5, 1, 4, 8)
  assert encoder.entries.keys.shape == (1, 2, 4 + 6, 2, 4, 8)


def test_packing_joins_neighbouring_latents_and_round_trips():
  z = np.random.default_rng(0).normal(size=(1, 2, 512, 16)).astype(np.float32)
  packed = np.asarray(pack(jnp.asarray(z), 256))
  assert packed.shape == (1, 2, 256, 32)
  for n in (0, 1, 255):
    expected = np.concatenate([z[:, :, 2 * n], z[:, :, 2 * n + 1]], axis=-1)
    assert np.array_equal(packed[:, :, n], expected)
  assert np.array_equal(unpack(jnp.asarray(packed), 512), z)
