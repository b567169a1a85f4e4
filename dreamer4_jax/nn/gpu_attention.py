"""Attention kernels for GPUs, in Pallas.

Three operations, all with a soft cap, which bounds the logits: the softmax
needs no maximum, and one pass over the keys suffices. `attend_tokens`, here, is
for training and has a backward pass; those for play are in `nn.gpu_play`. For
bfloat16 the tanh of the cap is
the hardware's, whose relative error of 2**-11 is below that of bfloat16.

On an H100 a forward kernel of this kind took half of the time of XLA's einsum
for the 264 tokens of a frame of the dynamics, and a sixth for the tokenizer's
1,472 (`docs/notes.md`). A time layer that reads no ring is left to XLA.
"""

from __future__ import annotations

import functools

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.nn.backends import Fixed
from dreamer4_jax.nn.gpu_blocks import (
  KEYS,
  Launch,
  Plan,
  dot,
  is_exact,
  size_of,
  weights_of,
)
from dreamer4_jax.types import Array


def attend_tokens(
  queries: Array,
  keys: Array,
  values: Array,
  mask: np.ndarray,
  soft_cap: float,
  *,
  interpret: bool = False,
) -> Array:
  """Attention of sequences to themselves; differentiable.

  Args:
    queries: `[X, G, R, S, h]`, R query heads share a key/value head.
    keys: `[X, G, S, h]`.
    values: `[X, G, S, h]`.
    mask: `[S, S]` bool, true where row may attend to column. What lies before
      the first key and after the last that a block of queries sees costs
      nothing.
    soft_cap: logits become `cap * tanh(logits / cap)`; at most 80.
    interpret: run on any platform, slowly.

  Returns:
    `[X, G, R, S, h]`.
  """
  seen = Fixed(np.asarray(mask, bool))
  return _attend_tokens(queries, keys, values, seen, soft_cap, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend_tokens(q, k, v, seen, cap, interpret):
  return _forward(q, k, v, seen, cap, interpret)[0]


def _forward(q, k, v, seen, cap, interpret):
  count, groups, rows, length, head = q.shape
  plan = Plan(length, seen)
  per_head, per_group, whole = _specs(q)
  kernel = functools.partial(
    _forward_kernel, plan=plan, cap=cap, exact=is_exact(q.dtype, interpret)
  )
  launch = Launch(
    'forward',
    grid=(count, groups * rows, plan.blocks),
    out=[
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((*q.shape[:-1], 1), jnp.float32),
    ],
    out_specs=[per_head(head), per_head(1)],
    flops=4 * count * groups * rows * head * plan.pairs,
    size=2 * (size_of(q) + size_of(k)),
    warps=plan.warps,
  )
  specs = [per_head(head), per_group, per_group, *map(whole, plan.inputs)]
  y, inverse = launch(kernel, [q, k, v, *plan.inputs], specs, interpret)
  return y, (q, k, v, y, inverse)


def _backward(seen, cap, interpret, residuals, gradient):
  q, k, v, y, inverse = residuals
  count, groups, rows, length, head = q.shape
  wide = gradient.astype(jnp.float32)
  slope = (wide * y.astype(jnp.float32)).sum(axis=-1, keepdims=True)
  gradient = gradient.astype(q.dtype)
  per_head, per_group, whole = _specs(q)
  exact = is_exact(q.dtype, interpret)
  pairs = count * groups * rows * head
  inputs = [q, k, v, gradient, inverse, slope]
  plan = Plan(length, seen)
  launch = Launch(
    'queries',
    grid=(count, groups * rows, plan.blocks),
    out=jax.ShapeDtypeStruct(q.shape, q.dtype),
    out_specs=per_head(head),
    flops=6 * pairs * plan.pairs,
    size=3 * size_of(q) + 2 * size_of(k),
    warps=plan.warps,
  )
  to_q = launch(
    functools.partial(_query_kernel, plan=plan, cap=cap, exact=exact),
    [*inputs, *plan.inputs],
    [
      per_head(head), per_group, per_group, per_head(head), per_head(1),
      per_head(1), *map(whole, plan.inputs),
    ],
    interpret,
  )  # fmt: skip
  plan = Plan(length, seen, flip=True)
  heads = lambda n: pl.BlockSpec(
    (None, None, rows, length, n), lambda x, g, i: (x, g, 0, 0, 0)
  )
  group = pl.BlockSpec((None, None, length, head), lambda x, g, i: (x, g, 0, 0))
  launch = Launch(
    'keys',
    grid=(count, groups, plan.blocks),
    out=[jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
    out_specs=[group, group],
    flops=8 * pairs * plan.pairs,
    size=2 * size_of(q) + 4 * size_of(k),
    warps=8 if head > 64 else 4,
  )
  to_k, to_v = launch(
    functools.partial(_key_kernel, plan=plan, cap=cap, exact=exact),
    [*inputs, *plan.inputs],
    [
      heads(head), group, group, heads(head), heads(1), heads(1),
      *map(whole, plan.inputs),
    ],
    interpret,
  )  # fmt: skip
  return to_q, to_k, to_v


_attend_tokens.defvjp(_forward, _backward)


def _forward_kernel(q_ref, k_ref, v_ref, *refs, plan, cap, exact):
  *ranges, y_ref, inverse_ref = refs
  i, head = pl.program_id(2), q_ref.shape[-1]
  q = plan.take(q_ref, i * plan.block, plan.block)

  def body(start, seen, carry):
    total, mixed = carry
    x = dot(q, plan.take(k_ref, start, KEYS).T)
    weights, _ = weights_of(x, seen, head, cap, exact)
    v = plan.take(v_ref, start, KEYS)
    mixed += dot(weights.astype(v.dtype), v)
    return total + weights.sum(axis=1), mixed

  start = (jnp.zeros(plan.block), jnp.zeros((plan.block, head)))
  total, mixed = plan.over_keys(i, ranges, body, start)
  inverse = (1 / jnp.where(plan.rows(i)[1], total, 1.0))[:, None]
  plan.put(y_ref, i * plan.block, plan.block, mixed * inverse)
  plan.put(inverse_ref, i * plan.block, plan.block, inverse)


def _query_kernel(q_ref, k_ref, v_ref, *refs, plan, cap, exact):
  g_ref, inverse_ref, slope_ref, *ranges, out_ref = refs
  i, head = pl.program_id(2), q_ref.shape[-1]
  rows = [
    plan.take(ref, i * plan.block, plan.block)
    for ref in (q_ref, g_ref, inverse_ref, slope_ref)
  ]

  def body(start, seen, total):
    keys = [plan.take(ref, start, KEYS) for ref in (k_ref, v_ref)]
    _, moved = _gradients(rows, keys, seen, cap, exact)
    return total + dot(moved, keys[0])

  total = plan.over_keys(i, ranges, body, jnp.zeros((plan.block, head)))
  plan.put(out_ref, i * plan.block, plan.block, total)


def _key_kernel(q_ref, k_ref, v_ref, *refs, plan, cap, exact):
  g_ref, inverse_ref, slope_ref, *ranges, to_k_ref, to_v_ref = refs
  i, (heads, _, head) = pl.program_id(2), q_ref.shape
  keys = [plan.take(ref, i * plan.block, plan.block) for ref in (k_ref, v_ref)]
  totals = jnp.zeros((plan.block, head)), jnp.zeros((plan.block, head))
  for number in range(heads):

    def body(start, seen, totals, number=number):
      rows = [
        plan.take(ref, start, KEYS, jnp.int32(number))
        for ref in (q_ref, g_ref, inverse_ref, slope_ref)
      ]
      q, g = rows[:2]
      # The plan's rows are keys here, and its columns queries.
      weights, moved = _gradients(rows, keys, seen.T, cap, exact)
      to_k, to_v = totals
      to_k += dot(moved.T, q)
      return to_k, to_v + dot(weights.astype(g.dtype).T, g)

    totals = plan.over_keys(i, ranges, body, totals)
  for ref, total in zip((to_k_ref, to_v_ref), totals, strict=True):
    plan.put(ref, i * plan.block, plan.block, total)


def _gradients(rows, keys, seen, cap, exact):
  """Softmax weights, and the gradient with respect to the product q k.

  Args:
    rows: queries, gradient, inverse of the weights' sum, and slope.
    keys: keys and values.
    seen: pairs that count.
    cap: the soft cap.
    exact: see `is_exact`.
  """
  (q, g, inverse, slope), (k, v) = rows, keys
  head = q.shape[-1]
  weights, bent = weights_of(dot(q, k.T), seen, head, cap, exact)
  weights *= inverse
  scale = head**-0.5
  steep = (scale - scale * bent * bent) * weights
  moved = steep * (dot(g, v.T) - slope)
  return weights, moved.astype(q.dtype)


def _specs(q: Array):
  """Blocks of `[X, G, R, S, n]` by head, of `[X, G, S, h]`, and whole ones."""
  _, _, rows, length, head = q.shape
  per_head = lambda n: pl.BlockSpec(
    (None, None, None, length, n),
    lambda x, m, i: (x, m // rows, m % rows, 0, 0),
  )
  per_group = pl.BlockSpec(
    (None, None, length, head), lambda x, m, i: (x, m // rows, 0, 0)
  )
  whole = lambda a: pl.BlockSpec(a.shape, lambda x, m, i: (0,) * a.ndim)
  return per_head, per_group, whole
