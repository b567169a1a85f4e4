import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.objectives import (
  corrupt,
  draw_levels,
  euler_step,
  finest_step_index,
  ramp,
  sampling_levels,
)
from dreamer4_jax.types import Levels

K_MAX = 8
draw = jax.jit(draw_levels, static_argnums=(1, 3))
corrupted = jax.jit(corrupt)
stepped = jax.jit(euler_step)


def latents(shape=(3, 4, 2, 5)):
  return jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)), 'f4')


def every_level(max_steps=K_MAX):
  """All legal (signal_index, step_index) pairs, written out."""
  return {
    (n * max_steps // 2**s, s)
    for s in range(max_steps.bit_length())
    for n in range(2**s)
  }


@pytest.mark.parametrize('max_steps', [1, 2, 64, 1024])
def test_signal_level_and_step_size_are_exact(max_steps):
  last = finest_step_index(max_steps)
  assert 2**last == max_steps
  index = np.arange(max_steps + 1)
  levels = Levels(jnp.asarray(index), jnp.arange(last + 1), max_steps)
  tau, d = levels.signal_level, levels.step_size
  assert tau.dtype == d.dtype == jnp.float32
  assert np.array_equal(tau, index / max_steps)
  assert d.tolist() == [1 / 2**s for s in range(last + 1)]
  one = Levels(max_steps // 2, last, max_steps).broadcast((2, 3))
  assert one.step_size.tolist() == [[1 / max_steps] * 3] * 2
  assert np.all(one.signal_level == max_steps // 2 / max_steps)
  assert one.signal_index.dtype == one.step_index.dtype == jnp.int32


@pytest.mark.parametrize('bad', [0, 3, 12, -4])
def test_max_steps_must_be_a_power_of_two(bad):
  with pytest.raises(ValueError, match=f'max_steps = {bad}'):
    finest_step_index(bad)


def test_ramp_by_hand():
  np.testing.assert_allclose(
    ramp(jnp.array([0, 0.5, 1])), [0.1, 0.55, 1], rtol=1e-6
  )
  np.testing.assert_allclose(
    ramp(jnp.array([0, 0.5, 1]), 0.5), [0.5, 0.75, 1], rtol=1e-6
  )


@functools.cache
def drawn(coarse):
  levels = draw(
    jax.random.key(5), (100, 200), jnp.full((100, 1), coarse), K_MAX
  )
  assert levels.signal_index.dtype == levels.step_index.dtype == jnp.int32
  return np.asarray(levels.signal_index), np.asarray(levels.step_index)


@pytest.mark.parametrize('share', [0.25, 1.0])
def test_a_share_of_the_levels_comes_from_the_ends(share):
  levels = jax.jit(draw_levels, static_argnums=(1, 3, 4))(
    jax.random.key(6), (100, 200), jnp.full((100, 1), False), 64, share
  )
  counts = np.bincount(np.asarray(levels.signal_index).ravel(), minlength=64)
  expected = np.full(64, (1 - share) / 64)
  expected[:8] += share / 16
  expected[-8:] += share / 16
  # 20,000 frames: five standard deviations of a level's share.
  assert counts.size == 64
  assert np.all(
    abs(counts / 20_000 - expected) <= 5 * np.sqrt(expected / 20_000)
  )


@pytest.mark.parametrize('coarse', [False, True])
def test_in_clear_clips_noisy_frames_follow_clear_ones(coarse):
  levels = jax.jit(draw_levels, static_argnums=(1, 3, 4, 5))(
    jax.random.key(6), (400, 50), jnp.full((400, 1), coarse), 64, 0.0, 0.25
  )
  index, step = np.asarray(levels.signal_index), np.asarray(levels.step_index)
  clear = (index >= 56) & (step == 6)
  clips = clear[:, ::2].all(axis=1) | clear[:, 1::2].all(axis=1)
  # 400 clips: five standard deviations are 0.11.
  assert abs(clips.mean() - 0.25) < 0.11
  index, step = index[clips], step[clips]
  # Of the frames between the clear ones 3/4 are noisy: 1/4 pure noise, 1/2 at
  # any level, of which 7/8 are not clear by chance (5 sd: 0.04).
  noisy = ~clear[clips]
  assert not (noisy[:, 1:] & noisy[:, :-1]).any()
  if coarse:
    assert set(step[noisy].tolist()) == set(range(7))
  else:
    assert abs(noisy.mean() - 0.5 * (0.25 + 0.5 * 7 / 8)) < 0.04
    assert set(index[noisy].tolist()) == set(range(56))
    pure = 0.25 + 0.5 / 64
    assert abs((index == 0).mean() - 0.5 * pure) < 0.035
    assert (step == 6).all()
    assert set(index[~noisy].tolist()) == set(range(56, 64))
  # First frames are of both kinds.
  assert 0.15 < noisy[:, 0].mean() < 0.6


def test_coarse_levels_are_uniform_over_the_grid():
  index, step = drawn(True)
  pairs = set(zip(index.ravel().tolist(), step.ravel().tolist(), strict=True))
  assert pairs == every_level()
  # 20000 frames, 4 step sizes: standard error of a share 0.003.
  for s in range(4):
    assert abs((step == s).mean() - 0.25) < 0.015
    # Given d = 2^-s, 2^s levels share 5000 frames: standard error <= 0.007.
    for n in range(2**s):
      share = (index[step == s] == n * 8 // 2**s).mean()
      assert abs(share - 2**-s) < 0.03
  # Diffusion forcing: the frames of one clip draw on their own.
  for x in (index, step):
    assert np.abs(np.corrcoef(x[:, :-1].ravel(), x[:, 1:].ravel())[0, 1]) < 0.03


def test_other_rows_have_the_finest_step():
  index, step = drawn(False)
  assert np.all(step == 3)
  counts = np.bincount(index.ravel(), minlength=8) / index.size
  np.testing.assert_allclose(counts, np.full(8, 0.125), atol=0.01)
  # Per row and per frame.
  rows = jnp.array([[True], [False], [False]])
  step = np.asarray(draw(jax.random.key(0), (3, 40), rows, 64).step_index)
  assert np.any(step[0] != 6) and np.all(step[1:] == 6)
  frames = np.arange(120).reshape(3, 40) % 2 == 0
  step = np.asarray(draw(jax.random.key(1), (3, 40), frames, 64).step_index)
  assert np.all(step[~frames] == 6) and np.any(step[frames] != 6)


@pytest.mark.parametrize('max_steps', [1, 2, 8, 64])
def test_sampler_asks_only_for_levels_that_training_draws(max_steps):
  asked = set()
  for log_steps in range(max_steps.bit_length()):
    steps = 2**log_steps
    levels = sampling_levels(steps, max_steps)
    # s / K for s = 0..K-1: starts at noise, never reaches data.
    assert levels.signal_level.tolist() == [s / steps for s in range(steps)]
    assert levels.signal_index.dtype == levels.step_index.dtype == np.int32
    assert levels.step_index == log_steps and levels.max_steps == max_steps
    asked |= {(int(i), log_steps) for i in levels.signal_index}
  assert asked == every_level(max_steps)


def test_sampling_levels_by_hand_and_errors():
  levels = sampling_levels(4, 64)
  assert levels.signal_index.tolist() == [0, 16, 32, 48]
  assert levels.step_index == 2
  for bad in (0, 3, 128, -2):
    with pytest.raises(ValueError, match=f'steps = {bad}: .* from 1 to 64'):
      sampling_levels(bad, 64)


def test_corrupt_by_hand():
  z1, noise = jnp.full((1, 3, 1, 1), 4.0), jnp.full((1, 3, 1, 1), -8.0)
  index, step = jnp.array([[0, 2, 8]]), jnp.full((1, 3), 3)
  out = corrupted(z1, noise, Levels(index, step, K_MAX))
  # tau = 0, 1/4, 1: -8, 3/4 * -8 + 1/4 * 4, 4.
  assert out[0, :, 0, 0].tolist() == [-8, -5, 4]
  assert corrupted(z1, noise, Levels(2, 3, K_MAX))[0, 0, 0, 0] == -5


@pytest.mark.parametrize('max_steps', [1, 2, 8, 64])
def test_oracle_sampler_recovers_the_data_for_every_number_of_steps(max_steps):
  # On the straight path dz/dtau = z1 - noise, so f = z + (1 - tau) dz/dtau is
  # the data if, and only if, tau is the level of z.
  z1, noise = latents()
  for log_steps in range(max_steps.bit_length()):
    levels = sampling_levels(2**log_steps, max_steps)
    z = noise
    for i in levels.signal_index:
      now = levels.replace(signal_index=i)
      np.testing.assert_allclose(z, corrupted(z1, noise, now), atol=1e-5)
      clean = z + (1 - i / max_steps) * (z1 - noise)
      z = stepped(z, clean, now)
    np.testing.assert_allclose(z, z1, atol=1e-5)


def test_euler_step_by_hand():
  # d = 1/4. tau = 0: a quarter of the way; tau = 1/2: half; tau = 3/4: all.
  z, clean = jnp.full((1, 3, 1, 1), 1.0), jnp.full((1, 3, 1, 1), 5.0)
  index, step = jnp.array([[0, 4, 6]]), jnp.full((1, 3), 2)
  out = stepped(z, clean, Levels(index, step, K_MAX))
  assert out[0, :, 0, 0].tolist() == [2, 3, 5]
  assert stepped(z, clean, Levels(4, 2, K_MAX))[0, 0, 0, 0] == 3


def test_last_euler_step_is_the_prediction_to_the_bit():
  z, clean = latents()
  out = stepped(1e4 * z, clean, Levels(63, 6, 64))
  assert np.array_equal(out, clean)
