import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.objectives import TwoHot, symexp, symlog

# Centers symexp((-2, -1, 0, 1, 2) log 2) = (-3, -1, 0, 1, 3).
SMALL = TwoHot(bins=5, limit=2 * np.log(2))
FULL = TwoHot()
encode = jax.jit(FULL.encode)
mean = jax.jit(FULL.mean)
loss = jax.jit(FULL.loss)


def centers64(bins=255, limit=20.0):
  s = np.linspace(-limit, limit, bins)
  return np.sign(s) * np.expm1(np.abs(s))


def encode64(x):
  """Two-hot in float64, one value at a time."""
  centers = centers64()
  out = np.zeros((len(x), 255))
  for row, value in zip(out, np.clip(x, centers[0], centers[-1]), strict=True):
    k = min(np.flatnonzero(centers <= value)[-1], 253)
    share = (value - centers[k]) / (centers[k + 1] - centers[k])
    row[k], row[k + 1] = 1 - share, share
  return out


def wide_values():
  rng = np.random.default_rng(0)
  x = np.sign(rng.normal(size=60)) * np.expm1(rng.uniform(0, 19.9, 60))
  return np.concatenate([x, rng.normal(size=20), [0.0, 1.0, -1e-3]])


def test_symlog_symexp_by_hand_and_inverse():
  x = jnp.array([-(np.e - 1), 0.0, np.e - 1, 3.0])
  np.testing.assert_allclose(symlog(x), [-1, 0, 1, 2 * np.log(2)], rtol=1e-6)
  np.testing.assert_allclose(symexp(symlog(x)), x, rtol=1e-5)
  tiny = jnp.array([1e-8, -1e-8])
  np.testing.assert_allclose(symexp(tiny), tiny, rtol=1e-6)
  np.testing.assert_allclose(symlog(tiny), tiny, rtol=1e-6)


def test_centers():
  np.testing.assert_allclose(SMALL.centers(), [-3, -1, 0, 1, 3], rtol=1e-6)
  full = FULL.centers()
  assert full.shape == (255,) and full.dtype == np.float32
  np.testing.assert_allclose(full, centers64(), rtol=1e-6)
  assert np.array_equal(full, -full[::-1]) and full[127] == 0


def test_encode_by_hand():
  got = jax.jit(SMALL.encode)(
    jnp.array([[2.0, -0.25], [1.0, 0.0], [7.0, -np.inf]])
  )
  expected = [
    [[0, 0, 0, 0.5, 0.5], [0, 0.25, 0.75, 0, 0]],
    [[0, 0, 0, 1, 0], [0, 0, 1, 0, 0]],
    [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]],
  ]
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_encode_matches_float64():
  x = wide_values()
  got = encode(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(got, encode64(x), atol=3e-6)
  np.testing.assert_allclose(np.sum(got, -1), 1, rtol=1e-6)
  assert np.all(np.count_nonzero(got, axis=-1) <= 2)


def test_round_trip():
  x = wide_values()
  back = mean(jnp.log(encode(jnp.asarray(x, jnp.float32))))
  np.testing.assert_allclose(back, x, rtol=2e-6)
  # Centers are one-hot exactly.
  centers = jnp.asarray(FULL.centers())
  assert np.array_equal(encode(centers), np.eye(255))
  assert np.array_equal(mean(np.log(np.eye(255) + 1e-38)), centers)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('compiled', [False, True])
def test_uniform_distributions_have_mean_exactly_zero(dtype, compiled):
  levels = jnp.array([[0.0, 0.37, -5.1], [88.0, -1e4, 3.0]], dtype)
  logits = jnp.repeat(levels[..., None], 255, axis=-1)
  out = (mean if compiled else FULL.mean)(logits)
  assert out.dtype == jnp.float32 and np.array_equal(out, np.zeros((2, 3)))


def test_mean_matches_float64():
  logits = np.random.default_rng(1).normal(size=(6, 255))
  logits -= 0.3 * np.abs(np.arange(255) - 140)
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(
    mean(jnp.asarray(logits, jnp.float32)),
    probs @ centers64(),
    rtol=1e-4,
  )


def test_loss_by_hand_and_in_float64():
  # x = 2 is half at 1 and half at 3; logits (0, 0, 0, log 2, 0) give
  # probabilities (1, 1, 1, 2, 1) / 6: -(log(2/6) + log(1/6)) / 2.
  logits = jnp.array([0, 0, 0, np.log(2), 0], jnp.float32)
  expected = -(np.log(2 / 6) + np.log(1 / 6)) / 2
  np.testing.assert_allclose(
    jax.jit(SMALL.loss)(logits, jnp.float32(2)), expected, rtol=1e-6
  )
  x, rng = wide_values(), np.random.default_rng(2)
  logits = rng.normal(size=(len(x), 255))
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  np.testing.assert_allclose(
    loss(jnp.asarray(logits, jnp.float32), jnp.asarray(x, jnp.float32)),
    -(encode64(x) * log_probs).sum(-1),
    rtol=1e-5,
  )


def test_loss_has_gradient_for_logits_only():
  logits, x = jnp.zeros(5), jnp.float32(2)
  # softmax - target.
  np.testing.assert_allclose(
    jax.jit(jax.grad(SMALL.loss))(logits, x),
    [0.2, 0.2, 0.2, -0.3, -0.3],
    atol=1e-6,
  )
  uneven = jnp.arange(5.0)
  assert jax.jit(jax.grad(SMALL.loss, argnums=1))(uneven, x) == 0


def test_low_precision_logits_are_computed_in_float32():
  logits = np.random.default_rng(3).normal(size=(4, 255))
  logits = jnp.asarray(logits, jnp.bfloat16)
  x = jnp.array([1.0, -3.0, 0.5, 100.0])
  for f in (mean, lambda l: loss(l, x)):
    assert np.array_equal(f(logits), f(logits.astype(jnp.float32)))


def test_errors_name_the_fault():
  with pytest.raises(ValueError, match='bins = 4'):
    TwoHot(bins=4)
  with pytest.raises(ValueError, match='limit = 0'):
    TwoHot(limit=0)
  with pytest.raises(ValueError, match='255 bins'):
    FULL.mean(jnp.zeros((2, 5)))
  with pytest.raises(ValueError, match=r'\(3, 5\)'):
    SMALL.loss(jnp.zeros((2, 5)), jnp.zeros(3))
