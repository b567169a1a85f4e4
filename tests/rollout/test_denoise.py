import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.models import dynamics_cache
from dreamer4_jax.nn import append, start_segment
from dreamer4_jax.rollout import (
  FrameInput,
  append_frame,
  context_levels,
  denoise_frame,
)
from dreamer4_jax.rollout.denoise import (
  Pending,
  append_and_denoise,
  context_noise,
)
from tests.models.tiny_world import (
  CONFIG,
  random_actions,
  random_tokens,
  with_dynamics,
  world_and_params,
)
from tests.rollout.fakes import make_fake, steps_up_to

Z1, NOISE = random_tokens(0, 2, 1), random_tokens(1, 2, 1)
ALL_STEPS = steps_up_to(8)


def frame_input(seed=0):
  actions = random_actions(np.random.default_rng(seed), (2, 1))
  return FrameInput(
    prev_action=jax.tree.map(jnp.asarray, actions),
    prev_action_mask=jnp.ones((2, 1), bool),
    agent=jnp.ones((2, 1, 16)),
  )


def empty_cache():
  return dynamics_cache(world_and_params()[0].dynamics, 2, agent=True)


@pytest.mark.parametrize('steps', [0, 3, 16, -2])
def test_refuses_other_numbers_of_steps(steps):
  world = make_fake(lambda z, levels: Z1)
  with pytest.raises(ValueError, match=rf'steps = {steps}: .* 1 to 8'):
    denoise_frame(world, {}, empty_cache(), frame_input(), NOISE, steps=steps)


@pytest.mark.parametrize('steps', ALL_STEPS)
def test_an_oracle_recovers_the_data_and_is_told_the_current_level(steps):
  world = make_fake(lambda z, levels: Z1)
  with jax.disable_jit():
    got = denoise_frame(
      world, {}, empty_cache(), frame_input(), NOISE, steps=steps
    )
  np.testing.assert_allclose(got, Z1, atol=1e-6)
  assert len(world.record) == steps
  for s, call in enumerate(world.record):
    told = call['levels']
    assert np.all(told.signal_index == s * 8 // steps)
    assert np.all(told.step_index == np.log2(steps))
    assert told.signal_index.shape == told.step_index.shape == (2, 1)
    # The level it is given is that of its input.
    tau = s / steps
    np.testing.assert_allclose(
      call['z'], (1 - tau) * NOISE + tau * Z1, atol=1e-6
    )


def test_a_frame_by_hand():
  # f = z + 2 - tau: K = 2 adds 2 * 1/2, then 1.5 * (1/2) / (1/2).
  predict = lambda z, levels: z + 2 - levels.signal_level[..., None, None]
  world = make_fake(predict)
  with jax.disable_jit():
    got = denoise_frame(world, {}, empty_cache(), frame_input(), NOISE, steps=2)
  np.testing.assert_allclose(got, NOISE + 2.5, atol=1e-6)


def test_all_passes_read_one_cache_and_only_the_last_writes_it():
  world = make_fake(lambda z, levels: Z1)
  cache, inputs = empty_cache(), frame_input()
  with jax.disable_jit():
    z = denoise_frame(world, {}, cache, inputs, NOISE, steps=4)
    assert len(world.record) == 4
    h, after = append_frame(world, {}, cache, inputs, z, NOISE)
  for call in world.record:
    for name in ('action', 'agent', 'known'):
      expected = {
        'action': inputs.prev_action,
        'agent': inputs.agent,
        'known': inputs.prev_action_mask,
      }[name]
      for a, b in zip(
        jax.tree.leaves(call[name]), jax.tree.leaves(expected), strict=True
      ):
        assert np.array_equal(a, b)
    for a, b in zip(
      jax.tree.leaves(call['cache']), jax.tree.leaves(cache), strict=True
    ):
      assert np.array_equal(a, b)
  assert after.frame == 1 and cache.frame == 0
  # Index 7 of 8 is 0.9 snapped to the grid; the state is of that one pass.
  last = world.record[-1]
  assert np.all(last['levels'].signal_index == 7)
  assert np.all(last['levels'].step_index == 3)
  np.testing.assert_allclose(last['z'], z * 7 / 8 + NOISE / 8, atol=1e-6)
  np.testing.assert_allclose(h[:, 0], last['z'].mean((1, 2, 3)), atol=1e-6)
  np.testing.assert_allclose(
    after.entries.keys[0, :, 3, 0, 0, 0], last['z'].mean((1, 2, 3)), atol=1e-6
  )


def test_the_past_and_the_action_reach_the_next_frame():
  world, params = world_and_params()
  sample = jax.jit(
    lambda cache, inputs: denoise_frame(
      world, params, cache, inputs, NOISE, steps=2
    )
  )
  # A stream that has seen one frame, whose entries are all 1.
  empty = empty_cache()
  new = jax.tree.map(lambda x: x[..., :1, :] + 1, empty.entries)
  seen = append(empty, new)
  a, b = sample(empty, frame_input()), sample(seen, frame_input())
  assert np.abs(a - b).max() > 1e-3
  assert np.abs(b - sample(seen, frame_input(seed=5))).max() > 1e-3


@pytest.mark.parametrize(
  'max_steps, signal, index', [(64, 0.9, 58), (4, 0.99, 3), (256, 0.9, 230)]
)
def test_context_level_is_snapped_to_the_grid_and_labelled(
  max_steps, signal, index
):
  config = with_dynamics(CONFIG, max_steps=max_steps, context_signal=signal)
  assert config.dynamics.context_index == index
  world = make_fake(None, config)
  levels = context_levels(world, (2, 3))
  assert np.all(levels.signal_index == index)
  assert np.all(levels.step_index == np.log2(max_steps))
  assert levels.signal_index.shape == levels.step_index.shape == (2, 3)
  got = context_noise(world, Z1, NOISE)
  tau = index / max_steps
  np.testing.assert_allclose(got, tau * Z1 + (1 - tau) * NOISE, atol=1e-6)


@pytest.mark.parametrize('steps', [1, 4])
def test_a_pass_that_appends_is_part_of_the_next_frames_first(steps):
  world, params = world_and_params()
  cache = dynamics_cache(world.dynamics, 2, agent=False)
  rng = np.random.default_rng(0)

  def inputs():
    actions = random_actions(rng, (2, 1))
    return FrameInput(
      prev_action=jax.tree.map(jnp.asarray, actions),
      prev_action_mask=jnp.ones((2, 1), bool),
      agent=None,
    )

  @jax.jit
  def apart(cache, before, clean, noise, own, start):
    _, cache = append_frame(world, params, cache, before, clean, noise)
    # The second game begins anew with the next frame.
    cache = start_segment(cache, jnp.array([False, True]))
    return denoise_frame(world, params, cache, own, start, steps=steps), cache

  @jax.jit
  def together(cache, before, clean, noise, own, start):
    noisy = context_noise(world, clean, noise)
    pending = Pending(noisy=noisy, inputs=before, segment=cache.segment)
    cache = start_segment(cache, jnp.array([False, True]))
    return append_and_denoise(
      world, params, cache, pending, own, start, steps=steps
    )

  # The ring of four wraps.
  for frame in range(6):
    arrays = [random_tokens(10 * frame + i, 2, 1) for i in range(3)]
    given = (inputs(), *arrays[:2], inputs(), arrays[2])
    expected, after = apart(cache, *given)
    got, found = together(cache, *given)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(
      jax.tree.leaves(found), jax.tree.leaves(after), strict=True
    ):
      np.testing.assert_allclose(a, b, atol=1e-5)
    cache = after
  # The frame before and its noise matter to the game that goes on.
  other = (given[0], -given[1], *given[2:])
  moved = np.abs(together(cache, *other)[0] - together(cache, *given)[0])
  assert moved[0].max() > 1e-3 and not moved[1].any()
