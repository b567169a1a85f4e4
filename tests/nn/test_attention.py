import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.nn import KeyValues, attend
from tests.nn import reference

GROUPS, PER_GROUP, HEAD = 2, 3, 4


def draw(seed, *shape, scale=1.0):
  return np.random.default_rng(seed).normal(size=shape) * scale


def run(q, blocks, soft_cap, dtype=jnp.float32):
  """`q [Q, heads, h]` and blocks of `(k, v [S, G, h], allowed [Q, S])`."""
  cast = lambda x: jnp.asarray(x, dtype)
  by_head = lambda x: jnp.moveaxis(cast(x), 0, -2)
  queries = by_head(q.reshape(len(q), GROUPS, PER_GROUP, HEAD))
  pairs = [
    (KeyValues(keys=by_head(k), values=by_head(v)), jnp.asarray(m)[None, None])
    for k, v, m in blocks
  ]
  out = jax.jit(lambda q, p: attend(q, p, soft_cap))(queries, pairs)
  return np.moveaxis(np.asarray(out, np.float32), -2, 0).reshape(q.shape)


@pytest.mark.parametrize('soft_cap', [50.0, 2.0, None])
def test_grouped_capped_attention_matches_loops(soft_cap):
  # Logits of scale 4, so that a cap of 2 bites.
  q = draw(0, 5, GROUPS * PER_GROUP, HEAD, scale=4)
  k, v = draw(1, 7, GROUPS, HEAD), draw(2, 7, GROUPS, HEAD)
  allowed = draw(3, 5, 7) > 0
  allowed[:, 2] = True
  expected = reference.attention(q, k, v, allowed, soft_cap)
  got = run(q, [(k, v, allowed)], soft_cap)
  np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize('soft_cap', [50.0, None])
def test_blocks_act_as_one_concatenated_block(soft_cap):
  q = draw(0, 5, GROUPS * PER_GROUP, HEAD, scale=4)
  k, v = draw(1, 7, GROUPS, HEAD), draw(2, 7, GROUPS, HEAD)
  allowed = draw(3, 5, 7) > 0
  allowed[:, 6] = True
  allowed[1, :3] = False  # a query for which the first block is empty
  parts = [(k[:3], v[:3], allowed[:, :3]), (k[3:], v[3:], allowed[:, 3:])]
  expected = reference.attention(q, k, v, allowed, soft_cap)
  np.testing.assert_allclose(run(q, parts, soft_cap), expected, atol=2e-5)


@pytest.mark.parametrize('soft_cap', [50.0, None])
def test_what_is_masked_has_no_influence_at_all(soft_cap):
  q = draw(0, 5, GROUPS * PER_GROUP, HEAD)
  k, v = draw(1, 7, GROUPS, HEAD), draw(2, 7, GROUPS, HEAD)
  allowed = np.ones((5, 7), bool)
  allowed[:, 4] = False
  before = run(q, [(k, v, allowed)], soft_cap)
  k[4], v[4] = 1e4, -1e4
  assert np.array_equal(run(q, [(k, v, allowed)], soft_cap), before)


def test_logits_and_softmax_are_float32_under_bfloat16():
  # Logits up to about 40: rounded to bfloat16 they would be off by 0.1 and
  # the weights by a tenth. Weights and values are rounded, 2^-9 each.
  exact = lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
  q = exact(draw(0, 5, GROUPS * PER_GROUP, HEAD, scale=16))
  k, v = exact(draw(1, 7, GROUPS, HEAD)), exact(draw(2, 7, GROUPS, HEAD))
  k[1:] = exact(k[:1] + 0.02 * k[1:])  # close calls
  allowed = np.ones((5, 7), bool)
  expected = reference.attention(q, k, v, allowed, 50.0)
  got = run(q, [(k, v, allowed)], 50.0, jnp.bfloat16)
  assert np.abs(expected).max() > 0.5
  np.testing.assert_allclose(got, expected, atol=0.015)


def plain(queries, blocks, soft_cap):
  """Concatenates, and leaves softmax and gradients to JAX."""
  join = lambda xs, axis: jnp.concatenate(xs, axis=axis)
  keys = join([b.keys for b, _ in blocks], -2)
  values = join([b.values for b, _ in blocks], -2)
  allowed = join([m for _, m in blocks], -1)
  logits = jnp.einsum('...grqh,...gsh->...grqs', queries, keys)
  logits = logits / HEAD**0.5
  if soft_cap is not None:
    logits = soft_cap * jnp.tanh(logits / soft_cap)
  weights = jax.nn.softmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
  return jnp.einsum('...grqs,...gsh->...grqh', weights, values)


@pytest.mark.parametrize('dtype, atol', [('float32', 1e-5), ('bfloat16', 2e-2)])
@pytest.mark.parametrize('soft_cap', [50.0, 2.0, None])
def test_gradients_are_those_of_a_plain_softmax(dtype, atol, soft_cap):
  # Logits of scale 10 and more: weights from 1 to e^-50.
  exact = lambda x: jnp.asarray(x, dtype)
  q = exact(draw(0, 2, GROUPS, PER_GROUP, 5, HEAD, scale=10))
  block = lambda seed, n: KeyValues(
    keys=exact(draw(seed, 2, GROUPS, n, HEAD)),
    values=exact(draw(seed + 1, 2, GROUPS, n, HEAD)),
  )
  allowed = draw(9, 2, 1, 1, 5, 7) > 0
  allowed[..., 6] = True
  allowed[:, :, :, 1, :3] = False
  blocks = [
    (block(1, 3), jnp.asarray(allowed[..., :3])),
    (block(3, 4), jnp.asarray(allowed[..., 3:])),
  ]
  to = draw(10, *q.shape)

  @functools.partial(jax.jit, static_argnums=0)
  def gradients(fn, q, pairs):
    masks = [m for _, m in pairs]
    pull = lambda q, kv: jnp.sum(
      fn(q, list(zip(kv, masks, strict=True)), soft_cap) * to
    )
    return jax.grad(pull, argnums=(0, 1))(q, [b for b, _ in pairs])

  got = gradients(attend, q, blocks)
  wide = jax.tree.map(
    lambda x: x if x.dtype == bool else x.astype(jnp.float32), (q, blocks)
  )
  expected = gradients(plain, *wide)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert a.dtype == dtype
    scale = np.abs(b).max()
    assert scale > 0.1
    np.testing.assert_allclose(
      np.asarray(a, np.float32), b, atol=atol * scale, rtol=0
    )


def test_logits_at_the_cap_neither_overflow_nor_vanish():
  # Every logit of the first query is at the cap, of the second at its
  # negative; sums and gradients reach e^50 and e^-50 in float32.
  q = np.stack([np.full((2, HEAD), 1e3), np.full((2, HEAD), -1e3)])
  q = jnp.asarray(q.reshape(1, 1, 4, HEAD)[:, :, [0, 3]], jnp.float32)
  keys = jnp.ones((1, 7, HEAD))
  values = jnp.asarray(draw(2, 1, 7, HEAD), jnp.float32)
  mask = jnp.ones((2, 7), bool)[None, None]

  def mean(values):
    out = attend(q, [(KeyValues(keys=keys, values=values), mask)], 80.0)
    return out.sum(), out

  gradient, out = jax.jit(jax.grad(mean, has_aux=True))(values)
  for row in range(2):
    np.testing.assert_allclose(
      out[0, 0, row], values[0].mean(axis=0), rtol=1e-4, atol=1e-6
    )
  np.testing.assert_allclose(gradient, np.full_like(values, 2 / 7), rtol=1e-4)


@pytest.mark.parametrize('fast_gradient', [True, False])
@pytest.mark.parametrize('cut', [7, 3])  # One block of keys, or two.
def test_without_a_cap_logits_of_a_thousand_are_exact(cut, fast_gradient):
  # Logits of 1000 in the first group and of -1000 in the second, differing
  # by about 1 within each: exponentials overflow or vanish. A key that no query
  # sees has 2000. All products are exact in float32.
  eighths = lambda x: np.round(8 * x) / 8
  q = eighths(draw(0, 2, GROUPS * PER_GROUP, HEAD))
  k, v = eighths(draw(1, 7, GROUPS, HEAD)), draw(2, 7, GROUPS, HEAD)
  q[..., 0], k[..., 0] = 1000, (2, -2)
  k[5, :, 0] = 4
  allowed = draw(3, 2, 7) > -1
  allowed[:, 5], allowed[:, 6] = False, True
  allowed[1, :3] = False  # The first of two blocks is empty.
  to = draw(4, *q.shape)

  def pull(q, k, v):
    return (reference.attention(q, k, v, allowed, None) * to).sum()

  by_head = lambda x: jnp.moveaxis(jnp.asarray(x, jnp.float32), 0, -2)
  grouped = lambda x: by_head(x.reshape(len(x), GROUPS, PER_GROUP, HEAD))

  @jax.jit
  def run(q, k, v):
    part = lambda s: (
      KeyValues(keys=k[:, s], values=v[:, s]),
      jnp.asarray(allowed[:, s])[None, None],
    )
    blocks = [part(s) for s in (slice(cut), slice(cut, 7)) if s.start != 7]
    y = attend(q, blocks, None, fast_gradient=fast_gradient)
    return (y * grouped(to)).sum(), y

  gradient = jax.grad(run, argnums=(0, 1, 2), has_aux=True)
  got, y = gradient(grouped(q), by_head(k), by_head(v))
  expected = reference.attention(q, k, v, allowed, None)
  np.testing.assert_allclose(y, grouped(expected), atol=1e-5)
  to_q, to_k, to_v = reference.slopes(pull, q, k, v)
  for a, b in zip(
    got, (grouped(to_q), by_head(to_k), by_head(to_v)), strict=True
  ):
    # Central differences are off by about 1e-7 of what they are taken from.
    np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max()))
