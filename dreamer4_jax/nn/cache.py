"""Ring caches of the time layers.

The ring holds the last `context_length` frames of every time layer; slot s
holds the newest frame whose number is s modulo `context_length`. Memory is
constant, a rollout may have any length, and a frame that has left the training
context is never attended to.
"""

from __future__ import annotations

from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.nn import rope
from dreamer4_jax.nn.attention import KeyValues
from dreamer4_jax.nn.config import TransformerConfig
from dreamer4_jax.nn.partition import constrain
from dreamer4_jax.types import Array

NO_SEGMENT = -1
"""Segment of a slot that holds no frame; no frame sees it."""


@struct.dataclass
class TimeCache:
  """Keys and values of past frames, for every time layer of a transformer.

  Attributes:
    entries: keys already rotated to their frame, values; each
      `[periods, B, N, G, S, h]` with S = context_length and N tokens, those of
      padding included.
    slot_segments: `[B, S]` int32 segment of the frame in each slot, -1 if none.
    segment: `[B]` int32 segment of the frames to come.
    slot: `[]` int32 slot that the next frame is written to. Counted separately,
      since `frame % length` jumps when `frame` overflows.
    frame: `[]` uint32 counter of frames appended so far; may overflow.
  """

  entries: KeyValues
  slot_segments: Array
  segment: Array
  slot: Array
  frame: Array

  @property
  def length(self) -> int:
    """Slots of the ring."""
    return self.slot_segments.shape[-1]

  def visible(self, segments: Array | None = None) -> Array:
    """Slots that the next frames may attend to, `[B, T, S]` bool.

    The slots that the next frames will overwrite are `context_length` frames
    old by then, one more than training saw, and are left out: one for the first
    of them, two for the second, and so on.

    Args:
      segments: `[B, T]` int32 segments of the next T frames; None is one frame
        of the open segment.
    """
    if segments is None:
      segments = self.segment[:, None]
    age = (jnp.arange(self.length) - self.slot) % self.length  # 0: the oldest
    fresh = age[None] > jnp.arange(segments.shape[1])[:, None]
    slots = self.slot_segments[:, None]
    same = (slots == segments[..., None]) & (slots != NO_SEGMENT)
    return same & fresh[None]


def init_cache(config: TransformerConfig, batch: int, tokens: int) -> TimeCache:
  """Returns an empty cache for `batch` streams of `tokens` tokens a frame."""
  head = config.width // config.num_heads
  length = config.context_length
  shape = (
    config.depth // config.time_every,
    batch,
    tokens + config.padding(tokens),
    config.kv_heads,
    length,
    head,
  )
  zeros = jnp.zeros(shape, jnp.dtype(config.dtype))
  zeros = constrain(zeros, (None, 'batch', None, 'kv_heads'))
  return TimeCache(
    entries=KeyValues(keys=zeros, values=zeros),
    slot_segments=jnp.full((batch, length), NO_SEGMENT, jnp.int32),
    segment=jnp.zeros((batch,), jnp.int32),
    slot=jnp.zeros((), jnp.int32),
    frame=jnp.zeros((), jnp.uint32),
  )


def start_segment(cache: TimeCache, where: Array) -> TimeCache:
  """Forgets the past of the streams where `where [B]` is true."""
  return cache.replace(segment=cache.segment + where.astype(jnp.int32))


def append(
  cache: TimeCache, new: KeyValues, segment: Array | None = None
) -> TimeCache:
  """Appends the finished frame, overwriting the oldest one.

  Args:
    cache: the cache the frame was computed with.
    new: `[periods, B, N, G, T, h]`, as returned by the transformer; of several
      frames the first is appended.
    segment: `[B]` int32 of the frame; None is the open segment.
  """
  if segment is None:
    segment = cache.segment
  slot = cache.slot
  write = lambda ring, x: ring.at[..., slot, :].set(x[..., 0, :])
  return cache.replace(
    entries=KeyValues(
      keys=write(cache.entries.keys, new.keys),
      values=write(cache.entries.values, new.values),
    ),
    slot_segments=cache.slot_segments.at[:, slot].set(segment),
    slot=(slot + 1) % cache.length,
    frame=cache.frame + jnp.uint32(1),
  )


def forget_last(cache: TimeCache) -> TimeCache:
  """Takes back the frame that was appended last.

  The entry that it overwrote is not restored: no frame to come would see it.
  """
  slot = (cache.slot - 1) % cache.length
  return cache.replace(
    slot_segments=cache.slot_segments.at[:, slot].set(NO_SEGMENT),
    slot=slot,
    frame=cache.frame - jnp.uint32(1),
  )


def splice(
  cache: TimeCache, other: TimeCache, where: Array, *, rope_base: float
) -> TimeCache:
  """Puts the past of some streams in the place of that of others.

  All streams of a cache share a clock. Only distances between frames count, so
  the other past is turned to this clock: the frame that would come next there
  comes next here.

  Args:
    cache: goes on where `where` is false.
    other: of the same shape, whatever its clock.
    where: `[B]` bool, the streams that are taken from `other`.
    rope_base: of the transformer.
  """
  keys, values = other.entries.keys, other.entries.values
  moved = cache.frame - other.frame  # Wraps, as positions do.
  turn = rope.rotation(rope.angles(moved, keys.shape[-1] // 2, rope_base))
  turn = jax.tree.map(lambda x: x.reshape(*(1,) * (keys.ndim - 1), -1), turn)
  slots = cache.slot - other.slot

  def pick(new: Array, old: Array, axis: int) -> Array:
    shape = [1] * new.ndim
    shape[axis] = -1
    return jnp.where(where.reshape(shape), new, old)

  ring = lambda x, axis: jnp.roll(x, slots, axis=axis)
  return cache.replace(
    entries=KeyValues(
      keys=pick(ring(rope.rotate(keys, turn), -2), cache.entries.keys, 1),
      values=pick(ring(values, -2), cache.entries.values, 1),
    ),
    slot_segments=pick(ring(other.slot_segments, -1), cache.slot_segments, 0),
    segment=pick(other.segment, cache.segment, 0),
  )


def fill(cache: TimeCache, new: KeyValues, segment_ids: Array) -> TimeCache:
  """Fills an empty cache with a whole clip (prefill).

  Args:
    cache: a cache made by `init_cache`, nothing appended yet.
    new: `[periods, B, N, G, T, h]` of a clip computed without a cache.
    segment_ids: `[B, T]` int32 of the clip; the last one stays open.
  """
  frames, length = segment_ids.shape[1], cache.length
  kept = min(frames, length)
  slots = jnp.arange(frames - kept, frames) % length
  write = lambda ring, x: ring.at[..., slots, :].set(x[..., -kept:, :])
  return cache.replace(
    entries=KeyValues(
      keys=write(cache.entries.keys, new.keys),
      values=write(cache.entries.values, new.values),
    ),
    slot_segments=cache.slot_segments.at[:, slots].set(segment_ids[:, -kept:]),
    segment=segment_ids[:, -1],
    slot=jnp.int32(frames % length),
    frame=jnp.uint32(frames),
  )
