"""Attention of layers with joined weights (`nn.fuse`), for play on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.nn import backends
from dreamer4_jax.nn.attention import KeyValues
from dreamer4_jax.nn.config import TransformerConfig
from dreamer4_jax.nn.partition import per_device
from dreamer4_jax.nn.rope import Rotation
from dreamer4_jax.types import Array

_MOST_FRAMES = 2  # That the kernel for rings takes at a time.


@struct.dataclass
class Past:
  """What a time layer sees of earlier frames.

  Attributes:
    entries: keys and values of all periods, `[periods, B, N, G, S, h]`. They
      stay together so that a kernel reads its own in place.
    period: `[]` int32, which period's entries to read.
    mask: slots that are seen, `[B, 1, 1, 1, T, S]` bool.
  """

  entries: KeyValues
  period: Array
  mask: Array

  def block(self) -> tuple[KeyValues, Array]:
    """Returns keys and values `[B, N, G, S, h]`, and their mask."""
    own = jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, self.period, keepdims=False),
      self.entries,
    )
    return own, self.mask


def serves_joined(
  config: TransformerConfig,
  mask: backends.SequenceMask,
  rotation: Rotation | None,
  streaming: bool,
) -> bool:
  """Whether `attend_joined` takes a layer: its heads, its mask, its length."""
  head, length = config.width // config.num_heads, mask.dense.shape[-1]
  if config.attention != 'triton' or not backends.has_gpu_kernel(
    head, config.soft_cap, config.dtype
  ):
    return False
  if streaming:
    return rotation is not None and length <= _MOST_FRAMES
  known = mask.fixed is not None and mask.segment_ids is None
  return known and length >= backends.SHORTEST['triton']


def attend_joined(
  joined: Array,
  own: KeyValues,
  scales: Array,
  rotation: Rotation | None,
  mask: backends.SequenceMask,
  past: Past | None,
  config: TransformerConfig,
) -> Array:
  """Attention on a GPU by the kernels for play; see `serves_joined`.

  Args:
    joined: `[B, T or N, S, H + 2 G, h]` queries, keys and values, neither
      normalised nor rotated.
    own: the keys and values as `attend_sequence` takes them.
    scales: of the norms of queries and keys, `[2, h]`.
    rotation: of each token, `[S, 1, h]`, or None for none.
    mask: of the sequence.
    past: earlier keys and values, for a time layer of a stream.
    config: of the transformer.

  Returns:
    `[B, T or N, S, H * h]`.
  """
  half, angles = joined.shape[-1] // 2, ()
  if rotation is not None:
    # The sines are negated in the first half.
    angles = (rotation.cos[:, 0, :half], rotation.sin[:, 0, half:])
  shared = [scales, *angles]
  if past is None:
    return _frame_joined(joined, shared, mask, config)
  return _ring_joined(joined, own, shared, mask, past, config)


def _frame_joined(
  joined: Array,
  shared: Sequence[Array],
  mask: backends.SequenceMask,
  config: TransformerConfig,
) -> Array:
  from dreamer4_jax.nn import gpu_play

  def run(x: Array, scales: Array, *angles: Array) -> Array:
    y = gpu_play.attend_frame(
      jnp.reshape(x, (-1, *x.shape[-3:])),
      scales,
      angles or None,
      mask.fixed.mask,
      config.soft_cap,
      groups=config.kv_heads,
      interpret=backends.INTERPRET,
    )
    return jnp.reshape(y, (*x.shape[:-2], -1))

  axes = [('batch',), *[()] * len(shared)]
  return per_device(run, [joined, *shared], axes, rank=joined.ndim - 1)


def _ring_joined(
  joined: Array,
  own: KeyValues,
  shared: Sequence[Array],
  mask: backends.SequenceMask,
  past: Past,
  config: TransformerConfig,
) -> Array:
  from dreamer4_jax.nn import gpu_play

  def run(x, keys, values, own_keys, own_values, slots, frames, period, *given):
    scales, *angles = given
    return gpu_play.attend_ring(
      x,
      KeyValues(keys=own_keys, values=own_values),
      scales,
      angles,
      (KeyValues(keys=keys, values=values), period),
      (slots, frames),
      config.soft_cap,
      interpret=backends.INTERPRET,
    )

  batch, frames = joined.shape[0], joined.shape[2]
  shape = (batch, 1, 1, 1, frames, frames)
  args = [
    joined, past.entries.keys, past.entries.values, own.keys, own.values,
    past.mask[:, 0, 0, 0], jnp.broadcast_to(mask.dense, shape)[:, 0, 0, 0],
    jnp.reshape(past.period, (1,)).astype(jnp.int32), *shared,
  ]  # fmt: skip
  rows, entries = ('batch',), (None, 'batch')
  axes = [rows, entries, entries, *[rows] * 4, *[()] * (1 + len(shared))]
  return per_device(run, args, axes, rank=joined.ndim - 1)
