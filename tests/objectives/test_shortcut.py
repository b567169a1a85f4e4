import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.objectives import (
  ShortcutData,
  bootstrap_velocity,
  corrupt,
  euler_step,
  prediction_losses,
)
from dreamer4_jax.types import Levels

K_MAX = 8
velocity_of = jax.jit(bootstrap_velocity, static_argnums=0)


@jax.jit
def losses_of(prediction, z1, z_tau, levels, velocity):
  data = ShortcutData(z1=z1, z_tau=z_tau, levels=levels, velocity=velocity)
  return prediction_losses(prediction, data)


def f32(x):
  return jnp.asarray(x, jnp.float32)


def latents(shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape), rng.normal(size=shape)


def every_level(max_steps=K_MAX):
  """All legal (signal_index, step_index) pairs, written out."""
  return {
    (n * max_steps // 2**s, s)
    for s in range(max_steps.bit_length())
    for n in range(2**s)
  }


def grid_batch():
  """All 15 levels for K_max = 8 as `[1, 15]`, with latents and z_tau."""
  pairs = np.array(sorted(every_level()), np.int32)
  index, step = jnp.array(pairs.T)[:, None]
  levels = Levels(index, step, K_MAX)
  z1, noise = latents(shape=(1, 15, 2, 3))
  tau = pairs[None, :, 0, None, None] / 8
  return levels, z1, noise, (1 - tau) * noise + tau * z1, tau


def linear(z, levels):
  """A denoiser that depends on all it is told: 0.7 z + 0.4 tau - 1.3 d."""
  told = 0.4 * levels.signal_level - 1.3 * levels.step_size
  return 0.7 * z + told[..., None, None]


def test_bootstrap_target_of_a_linear_denoiser():
  levels, _, _, z_tau, _ = grid_batch()
  got = velocity_of(linear, f32(z_tau), levels)
  got = np.asarray(got)
  for t, (index, s) in enumerate(sorted(every_level())):
    if s == 3:
      assert not np.any(got[0, t])
      continue
    z, tau, half = z_tau[0, t], index / 8, 2.0**-s / 2
    b1 = (0.7 * z + 0.4 * tau - 1.3 * half - z) / (1 - tau)
    z, tau = z + b1 * half, tau + half
    b2 = (0.7 * z + 0.4 * tau - 1.3 * half - z) / (1 - tau)
    np.testing.assert_allclose(got[0, t], (b1 + b2) / 2, rtol=2e-5, atol=1e-6)


def test_bootstrap_asks_for_legal_levels_and_leaves_finest_frames_alone():
  levels, _, _, z_tau, _ = grid_batch()
  calls = []

  def denoise(z, levels):
    told = (z, levels.signal_index[0], levels.step_index[0])
    calls.append([np.asarray(a) for a in told])
    return 3 * z + 1

  bootstrap_velocity(denoise, f32(z_tau), levels)
  (z_a, index_a, step_a), (z_b, index_b, step_b) = calls
  assert np.array_equal(z_a, f32(z_tau))
  for t, (index, s) in enumerate(sorted(every_level())):
    assert (index_a[t], step_a[t]) == (index, min(s + 1, 3))
    if s == 3:
      assert (index_b[t], step_b[t]) == (index, 3)
      assert np.array_equal(z_a[0, t], z_b[0, t])
    else:
      assert (index_b[t], step_b[t]) == (index + 4 // 2**s, s + 1)
      assert np.all(z_a[0, t] != z_b[0, t])
    assert (int(index_b[t]), int(step_b[t])) in every_level()


def test_bootstrap_target_of_an_oracle_points_at_the_data():
  levels, z1, _, z_tau, tau = grid_batch()
  z1 = f32(z1)
  got = velocity_of(lambda *_: z1, f32(z_tau), levels)
  coarse = np.asarray(levels.step_index[0]) < 3
  expected = (np.asarray(z1) - z_tau) / (1 - tau)
  np.testing.assert_allclose(
    got[:, coarse], expected[:, coarse], rtol=1e-4, atol=1e-5
  )
  # And the loss at the data is then zero on every frame.
  out = losses_of(z1, z1, f32(z_tau), levels, got)
  np.testing.assert_allclose(out.flow + out.bootstrap, 0, atol=1e-10)


def test_bootstrap_target_has_no_gradient():
  levels, _, _, z_tau, _ = grid_batch()

  def total(scale, z):
    denoise = lambda z, levels: scale * linear(z, levels)
    return bootstrap_velocity(denoise, z, levels).sum()

  by_scale, by_z = jax.jit(jax.grad(total, argnums=(0, 1)))(f32(1), f32(z_tau))
  assert by_scale == 0 and not np.any(by_z)


def test_losses_by_hand():
  # K_max = 8; frames: finest at tau 1/2; d = 1/2 at tau 1/2; d = 1 at 0.
  # N = 1, C = 2.
  levels = Levels(jnp.array([[4, 4, 0]]), jnp.array([[3, 1, 0]]), K_MAX)
  prediction = f32([[[[1, 2]], [[1, 2]], [[1, 2]]]])
  z1 = f32([[[[0, 0]], [[9, 9]], [[9, 9]]]])
  z_tau = f32([[[[9, 9]], [[0, 1]], [[0, 0]]]])
  target = f32([[[[9, 9]], [[1, 0]], [[3, 4]]]])
  out = losses_of(prediction, z1, z_tau, levels, target)
  # Flow: ramp 0.55 * (1 + 4) / 2 = 1.375.
  # Frame 1: velocity (1, 1) / 0.5 = (2, 2); 0.25 * (1 + 4) / 2 * 0.55.
  # Frame 2: velocity (1, 2); (4 + 4) / 2 * 0.1 = 0.4.
  np.testing.assert_allclose(out.flow, [[1.375, 0, 0]], rtol=1e-6)
  np.testing.assert_allclose(out.bootstrap, [[0, 0.34375, 0.4]], rtol=1e-6)
  assert out.is_flow.tolist() == [[True, False, False]]
  out = losses_of(prediction, z1, z_tau, levels, None)
  np.testing.assert_allclose(out.flow, [[1.375, 0, 0]], rtol=1e-6)
  assert not np.any(out.bootstrap)


def test_losses_match_the_equations_in_float64():
  levels, z1, _, z_tau, tau = grid_batch()
  prediction, target = latents(seed=3, shape=z1.shape)
  out = losses_of(*map(f32, (prediction, z1, z_tau)), levels, f32(target))
  is_flow = np.asarray(levels.step_index) == 3
  weight = 0.9 * tau[..., 0, 0] + 0.1
  flow = weight * ((prediction - z1) ** 2).mean((2, 3))
  velocity = (prediction - z_tau) / (1 - tau)
  boot = weight * ((1 - tau) ** 2 * (velocity - target) ** 2).mean((2, 3))
  np.testing.assert_allclose(out.flow, np.where(is_flow, flow, 0), rtol=1e-5)
  np.testing.assert_allclose(
    out.bootstrap, np.where(is_flow, 0, boot), rtol=1e-5
  )
  assert np.array_equal(out.is_flow, is_flow)


def test_neither_loss_reaches_the_frames_of_the_other():
  levels, z1, _, z_tau, _ = grid_batch()
  prediction, target = latents(seed=4, shape=z1.shape)
  is_flow = np.asarray(levels.step_index)[..., None, None] == 3
  # NaN wherever the frame's own loss must not look.
  z1 = f32(np.where(is_flow, z1, np.nan))
  target = f32(np.where(is_flow, np.nan, target))

  def total(p, flow, bootstrap):
    out = losses_of(p, z1, f32(z_tau), levels, target)
    return flow * out.flow.sum() + bootstrap * out.bootstrap.sum()

  grad = jax.jit(jax.grad(total))
  by_flow = np.asarray(grad(f32(prediction), 1.0, 0.0))
  by_bootstrap = np.asarray(grad(f32(prediction), 0.0, 1.0))
  assert np.all((by_flow != 0) == is_flow)
  assert np.all((by_bootstrap != 0) == ~is_flow)
  assert np.all(np.isfinite(by_flow + by_bootstrap))


@pytest.mark.parametrize('step_index', [5, 6])
def test_gradients_are_finite_at_the_last_level(step_index):
  # tau = 63/64 with the finest step, 62/64 with the next coarser one.
  index = 64 - 2 ** (6 - step_index)
  z1, noise = map(f32, latents(shape=(1, 1, 2, 3)))
  levels = Levels(jnp.array([[index]]), jnp.array([[step_index]]), 64)
  z_tau = corrupt(z1, noise, levels)

  @jax.jit
  @jax.grad
  def grad(scale):
    denoise = lambda z, levels: scale * z
    target = bootstrap_velocity(denoise, z_tau, levels)
    out = losses_of(denoise(z_tau, levels), z1, z_tau, levels, target)
    return (out.flow + out.bootstrap).sum()

  # The largest weight 1/(1-tau) = 64 must not survive into the gradient.
  assert np.isfinite(grad(0.5)) and 0 < abs(grad(0.5)) < 10


def test_low_precision_is_computed_in_float32():
  levels, z1, noise, z_tau, _ = grid_batch()
  low = [jnp.asarray(x, jnp.bfloat16) for x in (z1, noise, z_tau)]
  high = [x.astype(jnp.float32) for x in low]

  def denoise(z, *_):
    assert z.dtype == jnp.float32
    return (0.3 * z).astype(jnp.bfloat16)

  def everything(z1, noise, z_tau):
    target = bootstrap_velocity(denoise, z_tau, levels)
    losses = losses_of(noise, z1, z_tau, levels, target.astype(z1.dtype))
    return (
      corrupt(z1, noise, levels),
      euler_step(z1, noise, levels),
      target,
      losses.flow,
    )

  for a, b in zip(
    jax.jit(everything)(*low), jax.jit(everything)(*high), strict=True
  ):
    assert a.dtype == jnp.float32 and np.array_equal(a, b)
