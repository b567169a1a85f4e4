"""Grouped-query attention with a soft cap, over one or more key blocks."""

from __future__ import annotations

from collections.abc import Sequence

from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.types import Array


@struct.dataclass
class KeyValues:
  """A block of keys and values.

  Attributes:
    keys: `[..., S, G, h]`, G key/value heads of dimension h.
    values: `[..., S, G, h]`.
  """

  keys: Array
  values: Array


def attend(
  queries: Array,
  blocks: Sequence[tuple[KeyValues, Array]],
  *,
  soft_cap: float,
) -> Array:
  """Softmax attention over the concatenation of key blocks.

  Blocks are never concatenated in memory, so a ring cache is read in place.
  Logits, soft cap and softmax are float32 whatever the compute dtype.

  Args:
    queries: `[..., Q, G, R, h]`, R query heads share a key/value head.
    blocks: pairs of keys/values `[..., S, G, h]` and a boolean mask that
      broadcasts to `[..., G, R, Q, S]`, true where attention is allowed. Every
      query must be allowed at least one key.
    soft_cap: logits become `cap * tanh(logits / cap)`.

  Returns:
    `[..., Q, G, R, h]`.
  """
  scale = queries.shape[-1] ** -0.5
  logits = []
  for block, mask in blocks:
    x = jnp.einsum(
      '...qgrh,...sgh->...grqs',
      queries,
      block.keys,
      preferred_element_type=jnp.float32,
    )
    x = soft_cap * jnp.tanh(x * (scale / soft_cap))
    logits.append(jnp.where(mask, x, jnp.finfo(jnp.float32).min))
  top = jnp.stack([x.max(axis=-1) for x in logits]).max(axis=0)[..., None]
  weights = [jnp.exp(x - jax.lax.stop_gradient(top)) for x in logits]
  total = sum(w.sum(axis=-1, keepdims=True) for w in weights)
  dtype = queries.dtype
  return sum(
    jnp.einsum('...grqs,...sgh->...qgrh', (w / total).astype(dtype), b.values)
    for w, (b, _) in zip(weights, blocks, strict=True)
  )
