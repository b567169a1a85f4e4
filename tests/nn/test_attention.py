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
  queries = cast(q).reshape(len(q), GROUPS, PER_GROUP, HEAD)
  pairs = [
    (KeyValues(keys=cast(k), values=cast(v)), jnp.asarray(m)[None, None])
    for k, v, m in blocks
  ]
  out = jax.jit(lambda q, p: attend(q, p, soft_cap=soft_cap))(queries, pairs)
  return np.asarray(out.astype(jnp.float32)).reshape(q.shape)


@pytest.mark.parametrize('soft_cap', [50.0, 2.0])
def test_grouped_capped_attention_matches_loops(soft_cap):
  # Logits of scale 4, so that a cap of 2 bites.
  q = draw(0, 5, GROUPS * PER_GROUP, HEAD, scale=4)
  k, v = draw(1, 7, GROUPS, HEAD), draw(2, 7, GROUPS, HEAD)
  allowed = draw(3, 5, 7) > 0
  allowed[:, 2] = True
  expected = reference.attention(q, k, v, allowed, soft_cap)
  got = run(q, [(k, v, allowed)], soft_cap)
  np.testing.assert_allclose(got, expected, atol=2e-5)


def test_blocks_act_as_one_concatenated_block():
  q = draw(0, 5, GROUPS * PER_GROUP, HEAD, scale=4)
  k, v = draw(1, 7, GROUPS, HEAD), draw(2, 7, GROUPS, HEAD)
  allowed = draw(3, 5, 7) > 0
  allowed[:, 6] = True
  allowed[1, :3] = False  # a query for which the first block is empty
  parts = [(k[:3], v[:3], allowed[:, :3]), (k[3:], v[3:], allowed[:, 3:])]
  expected = reference.attention(q, k, v, allowed, 50.0)
  np.testing.assert_allclose(run(q, parts, 50.0), expected, atol=2e-5)


def test_what_is_masked_has_no_influence_at_all():
  q = draw(0, 5, GROUPS * PER_GROUP, HEAD)
  k, v = draw(1, 7, GROUPS, HEAD), draw(2, 7, GROUPS, HEAD)
  allowed = np.ones((5, 7), bool)
  allowed[:, 4] = False
  before = run(q, [(k, v, allowed)], 50.0)
  k[4], v[4] = 1e4, -1e4
  assert np.array_equal(run(q, [(k, v, allowed)], 50.0), before)


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
