import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from dreamer4_jax.objectives import lambda_returns


def inputs(batch=3, horizon=7, seed=0):
  rng = np.random.default_rng(seed)
  reward = rng.normal(size=(batch, horizon))
  cont = (rng.uniform(size=(batch, horizon)) > 0.25).astype(float)
  value = rng.normal(size=(batch, horizon + 1))
  return reward, cont, value


returns = jax.jit(lambda_returns)


def run(reward, cont, value, **kwargs):
  arrays = (jnp.asarray(a, jnp.float32) for a in (reward, cont, value))
  return np.asarray(returns(*arrays, **kwargs))


def test_hand_worked():
  # gamma = lam = 1/2, r = (1, 2), c = (1, 1), v = (9, 4, 8); v[0] unused.
  # R1 = 2 + 1/2 * 8 = 6; R0 = 1 + 1/2 * (1/2 * 4 + 1/2 * 6) = 3.5.
  out = run([[1, 2]], [[1, 1]], [[9, 4, 8]], gamma=0.5, lam=0.5)
  np.testing.assert_allclose(out, [[3.5, 6.0]], rtol=1e-6)
  # Frame 1 terminal: nothing after it counts.
  out = run([[1, 2]], [[0, 1]], [[9, 4, 8]], gamma=0.5, lam=0.5)
  np.testing.assert_allclose(out, [[1.0, 6.0]], rtol=1e-6)


@pytest.mark.parametrize('gamma, lam', [(0.997, 0.95), (0.9, 0), (1, 1)])
def test_matches_a_loop_in_float64(gamma, lam):
  reward, cont, value = inputs()
  horizon = reward.shape[1]
  expected = np.zeros_like(reward)
  for b in range(len(reward)):
    later = value[b, horizon]
    for t in reversed(range(horizon)):
      bootstrap = (1 - lam) * value[b, t + 1] + lam * later
      later = reward[b, t] + gamma * cont[b, t] * bootstrap
      expected[b, t] = later
  out = run(reward, cont, value, gamma=gamma, lam=lam)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_matches_rlax():
  reward, cont, value = inputs(seed=1)
  expected = jax.vmap(rlax.lambda_returns, in_axes=(0, 0, 0, None))(
    jnp.asarray(reward),
    jnp.asarray(0.97 * cont),
    jnp.asarray(value[:, 1:]),
    0.8,
  )
  out = run(reward, cont, value, gamma=0.97, lam=0.8)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_low_precision_is_computed_in_float32():
  arrays = [jnp.asarray(a, jnp.bfloat16) for a in inputs()]
  out = returns(*arrays, gamma=0.997, lam=0.95)
  assert out.dtype == jnp.float32
  exact = run(
    *(np.asarray(a, np.float32) for a in arrays), gamma=0.997, lam=0.95
  )
  assert np.array_equal(out, exact)


def test_value_must_have_one_entry_more():
  reward, cont, value = (jnp.asarray(a) for a in inputs())
  with pytest.raises(ValueError, match='value_after_the_first'):
    lambda_returns(reward, cont, value[:, 1:], gamma=1.0, lam=1.0)
