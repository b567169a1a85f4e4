import functools

from flax import errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.nn.layers import RmsNorm, gated, rms_norm


@pytest.mark.parametrize('dtype, atol', [('float32', 1e-5), ('bfloat16', 2e-2)])
def test_rms_norm_and_its_gradient_are_those_of_the_formula(dtype, atol):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  x = (3 * draw(2, 5, 8)).at[0, 0].multiply(1e-3).astype(dtype)
  scale, to = 1 + draw(8), draw(2, 5, 8).astype(dtype)

  def formula(x, scale):
    mean = jnp.mean(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(mean + 1e-6) * scale[None, None]

  slow = functools.partial(rms_norm, fast_gradient=False)
  _, along = jax.jvp(slow, (x, scale), (to, 2 * scale))
  wide = x.astype(jnp.float32), scale
  _, expected = jax.jvp(formula, wide, (to.astype(jnp.float32), 2 * scale))
  np.testing.assert_allclose(
    np.asarray(along, np.float32), expected, atol=atol, rtol=atol
  )
  y, pull = jax.vjp(rms_norm, x, scale)
  expected, pull_ = jax.vjp(formula, x.astype(jnp.float32), scale)
  got = (y, *pull(to))
  expected = (expected, *pull_(to.astype(jnp.float32)))
  assert [a.dtype for a in got] == [dtype, dtype, jnp.float32]
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(
      np.asarray(a, np.float32), b, atol=atol, rtol=atol
    )


def test_the_gradient_of_a_gate_is_the_derived_one():
  rng = np.random.default_rng(0)
  gate, up, toward = jnp.asarray(rng.normal(0, 3, (3, 64)), jnp.float32)

  def plain(gate, up):
    return gate / (1 + jnp.exp(-gate)) * up

  # Without the fast one both are the same formula, and forward mode passes.
  slow = functools.partial(gated, fast_gradient=False)
  _, along = jax.jvp(slow, (gate, up), (up, toward))
  _, expected = jax.jvp(plain, (gate, up), (up, toward))
  np.testing.assert_allclose(along, expected, rtol=1e-5, atol=1e-5)
  for a, b in zip(
    jax.vjp(gated, gate, up)[1](toward),
    jax.vjp(plain, gate, up)[1](toward),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_parameter_of_another_shape_is_named():
  layer = RmsNorm()
  params = layer.init(jax.random.key(0), jnp.ones((1, 3)))
  with pytest.raises(errors.ScopeParamShapeError, match=r'shape \(5,\)'):
    layer.apply(params, jnp.ones((1, 5)))
