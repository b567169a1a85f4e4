"""Grouped-query attention, with or without a soft cap, over key blocks.

A capped logit lies within the cap, so its exponential is a float32 of ordinary
size, and the softmax needs no maximum: the products are read once, and the
weights are normalised after the product with the values. Without a cap the
largest logit of each query, over all blocks, is subtracted first. Heads come
before the sequence, so that all products are of whole, contiguous matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools

from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.types import Array


@struct.dataclass
class KeyValues:
  """A block of keys and values.

  Attributes:
    keys: `[..., G, S, h]`, G key/value heads of dimension h.
    values: `[..., G, S, h]`.
  """

  keys: Array
  values: Array


Blocks = Sequence[tuple[KeyValues, Array]]


def attend(
  queries: Array,
  blocks: Blocks,
  soft_cap: float | None,
  *,
  fast_gradient: bool = True,
) -> Array:
  """Softmax attention over the concatenation of key blocks.

  Blocks are never concatenated in memory, so a ring cache is read in place.
  Logits, soft cap and softmax are float32 whatever the compute dtype, forward
  and backward; products are of the compute dtype and accumulate in float32.

  Args:
    queries: `[..., G, R, Q, h]`, R query heads share a key/value head.
    blocks: pairs of keys/values `[..., G, S, h]` and a boolean mask that
      broadcasts to `[..., G, R, Q, S]`, true where attention is allowed. Every
      query must be allowed at least one key.
    soft_cap: logits become `cap * tanh(logits / cap)`; at most 80. None leaves
      them as they are.
    fast_gradient: use the hand-written gradient below, which does not support
      forward mode (`jax.jvp`, `jax.hessian`); else the derived one.

  Returns:
    `[..., G, R, Q, h]`.
  """
  if fast_gradient:
    return _attend(queries, blocks, soft_cap)
  return _forward(queries, blocks, soft_cap)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(queries: Array, blocks: Blocks, soft_cap: float | None) -> Array:
  return _forward(queries, blocks, soft_cap)[0]


def _forward(queries: Array, blocks: Blocks, soft_cap: float | None):
  scale, dtype = queries.shape[-1] ** -0.5, queries.dtype
  rows = queries.shape[-3:-1]
  bent, mixed, total = [], 0.0, 0.0
  for block, _ in blocks:
    x = _product('...qh,...sh->...qs', _flat(queries), block.keys)
    x = _split(x, rows)
    capped = soft_cap is not None
    bent.append(jnp.tanh(x * (scale / soft_cap)) if capped else x * scale)
  top = _top(bent, blocks) if soft_cap is None else None
  for (block, mask), x in zip(blocks, bent, strict=True):
    weights = _weights(x, mask, soft_cap, top)
    total += weights.sum(axis=-1, keepdims=True)
    weights = _flat(weights.astype(dtype))
    mixed += _product('...qs,...sh->...qh', weights, block.values)
  inverse = 1 / total
  y = _split(mixed, rows) * inverse
  return y.astype(dtype), (queries, blocks, bent, top, inverse, y)


def _backward(soft_cap: float | None, residuals, gradient: Array):
  queries, blocks, bent, top, inverse, y = residuals
  scale, dtype = queries.shape[-1] ** -0.5, queries.dtype
  rows = queries.shape[-3:-1]
  slope = (gradient.astype(jnp.float32) * y).sum(axis=-1, keepdims=True)
  gradient = _flat(gradient)
  to_queries, to_blocks = 0.0, []
  for (block, mask), x in zip(blocks, bent, strict=True):
    weights = _weights(x, mask, soft_cap, top) * inverse
    x = (scale if soft_cap is None else scale - scale * x * x) * weights
    weights = _flat(weights.astype(dtype))
    values = _product('...qs,...qh->...sh', weights, gradient)
    moved = _product('...qh,...sh->...qs', gradient, block.values)
    moved = _flat((x * (_split(moved, rows) - slope)).astype(dtype))
    keys = _product('...qs,...qh->...sh', moved, _flat(queries))
    to_queries += _product('...qs,...sh->...qh', moved, block.keys)
    given = KeyValues(keys=keys.astype(dtype), values=values.astype(dtype))
    to_blocks.append((given, None))
  return _split(to_queries, rows).astype(dtype), to_blocks


_attend.defvjp(_forward, _backward)
_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _top(logits: Sequence[Array], blocks: Blocks) -> Array:
  """The largest logit of each query; the softmax is the same for any shift."""
  shown = zip(logits, blocks, strict=True)
  tops = [
    jnp.where(mask, x, -jnp.inf).max(axis=-1, keepdims=True)
    for x, (_, mask) in shown
  ]
  return jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))


def _weights(
  bent: Array, mask: Array, soft_cap: float | None, top: Array | None
) -> Array:
  if soft_cap is None:
    # Masked logits may exceed the top: they must not reach the exponential.
    return jnp.exp(jnp.where(mask, bent - top, -jnp.inf))
  return jnp.where(mask, jnp.exp(soft_cap * bent), 0.0)


def _flat(x: Array) -> Array:
  """`[..., R, Q, n]` to `[..., R Q, n]`: XLA does not do so by itself."""
  return jnp.reshape(x, (*x.shape[:-3], -1, x.shape[-1]))


def _split(x: Array, rows: tuple[int, int]) -> Array:
  """Inverts `_flat`."""
  return jnp.reshape(x, (*x.shape[:-2], *rows, x.shape[-1]))
