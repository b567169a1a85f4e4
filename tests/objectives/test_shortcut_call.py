"""Shortcut forcing in one call: any callable, any trailing axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.config import ForcingConfig
from dreamer4_jax.objectives import (
  Resting,
  prepare_shortcut,
  sample,
  shortcut_loss,
)

K_MAX = 8
KEY = jax.random.key(0)


def data(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), 'f4')


def coarse(share):
  """Settings with a share of frames that bootstrap."""
  return ForcingConfig(bootstrap_share=share)


def per(level, z):
  """A level for every number of z."""
  return level.reshape(level.shape + (1,) * (z.ndim - level.ndim))


def linear(z, levels):
  told = 0.4 * levels.signal_level - 1.3 * levels.step_size
  return 0.7 * z + per(told, z)


class Recording:
  """A denoiser that keeps what it is called with; for calls without jit."""

  def __init__(self, function=linear):
    self.function, self.calls = function, []

  def __call__(self, z, levels, *given):
    self.calls.append((z, levels, *given))
    return self.function(z, levels)


@pytest.mark.parametrize(
  'shape, lead_axes',
  [
    ((64,), 1),
    ((64, 2), 1),
    ((64, 3, 2), 1),
    ((16, 5, 2), 2),
    ((8, 4, 3, 2), 2),
  ],
)
def test_the_losses_are_those_of_the_equations(shape, lead_axes):
  z1, denoise = data(*shape), Recording()
  losses = shortcut_loss(
    denoise, z1, KEY, max_steps=K_MAX, lead_axes=lead_axes, forcing=coarse(0.5)
  )
  *_, (z_tau, levels) = denoise.calls
  lead = shape[:lead_axes]
  assert levels.signal_index.shape == levels.step_index.shape == lead
  assert losses.loss.shape == losses.is_flow.shape == lead
  bootstrapped, noises = 0, []
  for at in np.ndindex(*lead):
    x, x1 = np.float64(z_tau[at]), np.float64(z1[at])
    tau, d = levels.signal_index[at] / K_MAX, 2.0 ** -levels.step_index[at]
    f = lambda x, tau, d: 0.7 * x + 0.4 * tau - 1.3 * d
    noises += [(x - tau * x1) / (1 - tau)]
    goal = x1
    if d > 1 / K_MAX:
      bootstrapped += 1
      b1 = (f(x, tau, d / 2) - x) / (1 - tau)
      half = x + b1 * d / 2
      b2 = (f(half, tau + d / 2, d / 2) - half) / (1 - tau - d / 2)
      goal = x + (1 - tau) * (b1 + b2) / 2
    expected = (0.9 * tau + 0.1) * np.mean((f(x, tau, d) - goal) ** 2)
    np.testing.assert_allclose(losses.loss[at], expected, rtol=1e-4, atol=1e-6)
    kind = losses.bootstrap if d > 1 / K_MAX else losses.flow
    assert kind[at] == losses.loss[at]
  assert bootstrapped > 2
  # The level is that of the noise: 32 draws or more, of deviation 1.
  assert 0.6 < np.std(noises) < 1.4


def test_rows_bootstrap_with_what_they_are_given():
  z1, rows, denoise = data(8, 3, 2), jnp.arange(8), Recording()
  shortcut_loss(
    denoise, z1, KEY, {'row': rows}, max_steps=K_MAX, forcing=coarse(0.25)
  )
  first, second, every = denoise.calls
  z_tau, levels, given = every
  assert given['row'].tolist() == [*range(8)]
  for z, told, given in (first, second):
    assert z.shape == (2, 3, 2) and told.signal_index.shape == (2,)
    assert given['row'].tolist() == [0, 4]
  assert np.array_equal(first[0], z_tau[::4])
  assert np.array_equal(first[1].signal_index, levels.signal_index[::4])
  assert (levels.step_index == 3).tolist()[1:4] == [True] * 3


# 999 rows divide into groups of three (a third), but not of four (a quarter).
@pytest.mark.parametrize('share', [0.25, 1 / 3, 1.0])
def test_the_share_that_bootstraps_is_exact_on_average(share):
  denoise = lambda z, levels: z
  losses = jax.jit(
    lambda key: (
      shortcut_loss(
        denoise, data(999, 2), key, max_steps=K_MAX, forcing=coarse(share)
      ).is_flow
    )
  )
  keys = jax.random.split(KEY, 20)
  found = np.mean([~losses(key) for key in keys])
  # One of four step sizes is the finest; 19,980 examples, five deviations.
  assert abs(found - share * 3 / 4) < 5 * np.sqrt(0.19 / 19_980)


def test_without_bootstrapping_every_step_is_the_finest():
  denoise = Recording()
  losses = shortcut_loss(
    denoise, data(8, 2), KEY, max_steps=K_MAX, bootstraps=False
  )
  assert len(denoise.calls) == 1 and losses.is_flow.all()
  traced = jax.jit(
    lambda now: shortcut_loss(
      linear, data(8, 2), KEY, max_steps=K_MAX, bootstraps=now
    )
  )
  np.testing.assert_allclose(traced(False).loss, losses.loss, rtol=1e-6)
  assert not traced(True).is_flow.all()


def test_the_gradient_is_that_of_the_last_pass():
  z1 = data(32, 2)

  def total(own, target):
    calls = iter([target, target, own])
    denoise = lambda z, levels: next(calls) * linear(z, levels)
    return shortcut_loss(denoise, z1, KEY, max_steps=K_MAX).loss.mean()

  by_own, by_target = jax.grad(total, (0, 1))(1.0, 1.0)
  assert by_own != 0 and by_target == 0
  assert abs(total(1.0, 1.1) - total(1.0, 1.0)) > 1e-4


def test_rows_that_rest_stand_where_they_are_put():
  trains = jnp.arange(16) % 2 == 1
  denoise = Recording()
  levels = prepare_shortcut(
    denoise, data(16, 2), KEY, max_steps=K_MAX, bootstraps=False
  ).levels.replace(signal_index=jnp.full(16, 5))
  found = prepare_shortcut(
    denoise, data(16, 2), KEY, max_steps=K_MAX, forcing=coarse(1.0),
    resting=Resting(trains=trains, levels=levels, rows_per_group=4),
  )  # fmt: skip
  moves = found.levels.step_index < 3
  assert set(np.flatnonzero(moves)) <= {1, 5, 9, 13} and moves.any()
  assert (found.levels.signal_index[~trains] == 5).all()
  assert np.array_equal(np.abs(found.velocity).max(1) > 0, moves)


def test_the_weight_of_pure_noise_is_that_of_the_settings():
  run = lambda forcing: shortcut_loss(
    linear, data(64, 2), KEY, max_steps=K_MAX, forcing=forcing
  )
  even, paper = run(ForcingConfig(low_weight=1.0)), run(None)
  ramp = paper.loss / even.loss
  at_noise, share = ramp.min(), np.unique(np.round(ramp, 4))
  np.testing.assert_allclose(at_noise, 0.1, rtol=1e-4)
  np.testing.assert_allclose(share, 0.1 + 0.9 * np.arange(8) / 8, rtol=1e-3)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'max_steps': 12}, 'max_steps = 12: must be a power of two'),
    ({'lead_axes': 0}, r'lead_axes = 0: must lie in 1\.\.2, for z1 has'),
    ({'lead_axes': 3}, r'lead_axes = 3: .* shape \(4, 2\)'),
    (
      {'forcing': ForcingConfig(clear_share=0.5)},
      r'clear_share = 0.5: needs clips, .* not \(4,\)',
    ),
  ],
)
def test_a_wrong_argument_is_named(changes, message):
  with pytest.raises(ValueError, match=message):
    shortcut_loss(linear, data(4, 2), KEY, **{'max_steps': 8} | changes)


def test_a_wrong_shape_is_named():
  run = lambda denoise, *given: shortcut_loss(
    denoise, data(4, 2), KEY, *given, max_steps=K_MAX
  )
  with pytest.raises(ValueError, match=r'clean \(1,\)'):
    run(lambda z, levels: z[:, 0])
  with pytest.raises(ValueError, match=r'shape \(3, 2\): must lead .* 4 rows'):
    run(lambda z, levels, given: z, data(3, 2))


@pytest.mark.parametrize('steps', [1, 2, 8])
@pytest.mark.parametrize(
  'shape, lead_axes', [((5,), 1), ((5, 2), 1), ((3, 1, 4, 2), 2)]
)
def test_an_oracle_is_sampled_whatever_the_shape(shape, lead_axes, steps):
  z1, noise = data(*shape), data(*shape, seed=1)
  denoise, given = Recording(lambda z, levels: z1), jnp.arange(shape[0])
  with jax.disable_jit():
    found = sample(
      denoise, noise, given, steps=steps, max_steps=K_MAX, lead_axes=lead_axes
    )
  assert np.array_equal(found, z1) and len(denoise.calls) == steps
  for s, (z, levels, told) in enumerate(denoise.calls):
    assert told is given and levels.max_steps == K_MAX
    assert levels.signal_level.shape == shape[:lead_axes]
    assert (levels.signal_level == s / steps).all()
    assert (levels.step_size == 1 / steps).all()
    np.testing.assert_allclose(
      z, noise + (z1 - noise) * s / steps, rtol=1e-5, atol=1e-6
    )


def test_a_sampler_by_hand_and_its_errors():
  # f = z + 2 - tau: K = 2 adds 2 * 1/2, then 1.5 * (1/2) / (1/2).
  denoise = lambda z, levels: z + 2 - per(levels.signal_level, z)
  noise = data(4, 2).astype(jnp.bfloat16)
  found = sample(denoise, noise, steps=2, max_steps=K_MAX)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, noise.astype('f4') + 2.5, rtol=1e-6)
  for steps, max_steps, message in (
    (3, 8, 'steps = 3: must be a power of two from 1 to 8'),
    (16, 8, 'steps = 16: .* from 1 to 8'),
    (4, 10, 'max_steps = 10: must be a power of two'),
  ):
    with pytest.raises(ValueError, match=message):
      sample(denoise, noise, steps=steps, max_steps=max_steps)
  with pytest.raises(ValueError, match=r'lead_axes = 4: .* for noise has'):
    sample(denoise, noise, steps=2, max_steps=8, lead_axes=4)
