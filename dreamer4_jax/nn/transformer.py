"""The efficient transformer: space, space, space, time.

Source: section 3 of arXiv 2509.24527. One implementation serves the tokenizer
encoder, the tokenizer decoder and the dynamics.
"""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from dreamer4_jax.nn import fused, rope
from dreamer4_jax.nn.attention import KeyValues, attend
from dreamer4_jax.nn.backends import SequenceMask, attend_sequence
from dreamer4_jax.nn.cache import TimeCache
from dreamer4_jax.nn.config import TransformerConfig
from dreamer4_jax.nn.joined import Past, attend_joined, serves_joined
from dreamer4_jax.nn.layers import Linear, Mlp, RmsNorm
from dreamer4_jax.nn.partition import constrain
from dreamer4_jax.nn.rope import Rotation, rotate
from dreamer4_jax.types import Array

_REMAT_POLICIES = {
  'dots': jax.checkpoint_policies.dots_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


@struct.dataclass
class Context:
  """What all layers of a pass share; made by `make_context`.

  Attributes:
    space_mask: between the N tokens of a frame.
    space_rotation: of each token, `[N, 1, h]`, or None for none.
    time_mask: between the T frames.
    time_rotation: of each frame, `[T, 1, h]`.
    past: keys and values of past frames of all periods,
      `[periods, B, N, G, S, h]`; None without a cache.
    ring_mask: slots of the ring that are seen, `[B, 1, 1, 1, T, S]` bool; None
      without a cache.
  """

  space_mask: SequenceMask
  space_rotation: Rotation | None
  time_mask: SequenceMask
  time_rotation: Rotation
  past: KeyValues | None
  ring_mask: Array | None


class Attention(nn.Module):
  """Multi-head attention along axis -2 of `[..., S, D]`.

  Queries and keys are RMS-normalised over the head dimension, then rotated.
  """

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: ArrayLike | SequenceMask | None = None,
    rotation: Rotation | None = None,
    past: Past | None = None,
  ) -> tuple[Array, KeyValues]:
    """Returns the mixed tokens `[..., S, D]` and their keys and values.

    Args:
      x: `[..., S, D]`.
      mask: who sees whom; `[S, S]` bool, or as `SequenceMask` makes it. None
        lets all attend to all.
      rotation: of each token, `[S, 1, h]`, or None for none.
      past: earlier keys and values, which are seen too.

    Raises:
      ValueError: the mask is of another shape or dtype.
    """
    c = self.config
    mask = SequenceMask.of(mask, x.shape[-2])
    dtype, width = jnp.dtype(c.dtype), x.shape[-1]
    groups = c.kv_heads
    (q, k, v), joined = self._project(x, dtype)
    q = RmsNorm('head_dim', c.fast_gradient, name='query_norm')(q)
    k = RmsNorm('head_dim', c.fast_gradient, name='key_norm')(k)
    if rotation is not None:
      lead = tuple(range(x.ndim - 2))
      turn = jax.tree.map(lambda a: jnp.expand_dims(a, lead), rotation)
      q, k = rotate(q, turn), rotate(k, turn)
    q = rearrange(q, '... s (g r) h -> ... g r s h', g=groups)
    by_head = lambda a: rearrange(a, '... s g h -> ... g s h')
    own = KeyValues(keys=by_head(k), values=by_head(v))
    if joined is not None and serves_joined(
      c, mask, rotation, past is not None
    ):
      # Reads what the product leaves; what was computed of q is not needed.
      scales = self.get_variable('params', fused.QKV)['scales']
      y = attend_joined(joined, own, scales, rotation, mask, past, c)
    else:
      if past is None:
        y = attend_sequence(
          c.attention, q, own, mask, c.soft_cap, fast_gradient=c.fast_gradient
        )
      else:
        blocks = [past.block(), (own, mask.dense)]
        y = attend(q, blocks, c.soft_cap, fast_gradient=c.fast_gradient)
      y = rearrange(y, '... g r s h -> ... s (g r h)')
    y = Linear((width,), ('heads', 'embed'), dtype, name='out')(y)
    return y, own

  def _project(
    self, x: Array, dtype: jnp.dtype
  ) -> tuple[Sequence[Array], Array | None]:
    """Queries `[..., S, H, h]`, keys and values `[..., S, G, h]`; and all.

    The last is None unless the weights are joined (`nn.fuse`).
    """
    c = self.config
    head = c.width // c.num_heads
    linear = lambda name, heads, axis: Linear(
      (heads, head), ('embed', axis, 'head_dim'), dtype, name=name
    )(x)
    if self.has_variable('params', fused.QKV):
      joined = linear(fused.QKV, c.num_heads + 2 * c.kv_heads, None)
      ends = (c.num_heads, c.num_heads + c.kv_heads)
      return jnp.split(joined, ends, axis=-2), joined
    parts = (
      linear('query', c.num_heads, 'heads'),
      linear('key', c.kv_heads, 'kv_heads'),
      linear('value', c.kv_heads, 'kv_heads'),
    )
    return parts, None


class Layer(nn.Module):
  """Pre-norm attention and SwiGLU, each with a residual."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x, mask=None, rotation=None, past=None):
    """Maps `x [..., S, D]`; arguments and results as those of `Attention`."""
    c = self.config
    # The scale of a norm is in the joined weights after it.
    scaled = not fused.is_joined(self.variables.get('params', {}))
    norm = lambda name: RmsNorm(
      fast_gradient=c.fast_gradient, scaled=scaled, name=name
    )
    y, own = Attention(c, name='attention')(
      norm('attention_norm')(x), mask, rotation, past
    )
    x = constrain(x + y, ('batch',))
    mlp = Mlp(c.hidden, jnp.dtype(c.dtype), c.fast_gradient, name='mlp')
    y = mlp(norm('mlp_norm')(x))
    return constrain(x + y, ('batch',)), own


class Period(nn.Module):
  """Space layers and then a time layer, the body of the scan.

  On its own: `Period(config)(x, None, make_context(config, x.shape))`.
  """

  config: TransformerConfig

  @nn.compact
  def __call__(
    self, x: Array, period: Array | None, context: Context
  ) -> tuple[Array, KeyValues]:
    """Maps the tokens of a clip, or of the next frames of a stream.

    Args:
      x: `[B, T, N, D]`.
      period: `[]` int32, which of the stack this is; None without a cache.
      context: masks and rotations, and the past.

    Returns:
      `[B, T, N, D]`, and the time layer's keys and values `[B, N, G, T, h]`.
    """
    for i in range(self.config.time_every - 1):
      x, _ = Layer(self.config, name=f'space_{i}')(
        x, context.space_mask, context.space_rotation
      )
    past = None
    if context.past is not None:
      past = Past(context.past, period, context.ring_mask)
    x = rearrange(x, 'b t n d -> b n t d')
    x, own = Layer(self.config, name='time')(
      x, context.time_mask, context.time_rotation, past
    )
    return rearrange(x, 'b n t d -> b t n d'), own


class SpaceTimeTransformer(nn.Module):
  """A stack of periods under `nn.scan`, closed by an RMSNorm.

  In any Linen module it takes one line, and its parameters are plain arrays:
  `y, _ = SpaceTimeTransformer(TransformerConfig(width=64))(x)`.
  """

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x: Array,
    *,
    space_mask: ArrayLike | None = None,
    space_angles: Array | None = None,
    segment_ids: Array | None = None,
    cache: TimeCache | None = None,
  ) -> tuple[Array, KeyValues]:
    """Maps the tokens of a clip, or of the next frames of a stream.

    Args:
      x: `[B, T, N, D]`.
      space_mask: see `make_context`, also for the rest.
      space_angles: rotations of the space layers.
      segment_ids: segments of the frames.
      cache: past frames; read, never written (see `nn.cache.append`).

    Returns:
      `[B, T, N, D]` in the compute dtype, and the time layers' keys and values
      `[periods, B, N, G, T, h]`, ready for `append` or `fill`. There, N
      includes `config.padding(N)`.

    Raises:
      ValueError: x is not of the configured width, or as in `make_context`.
    """
    c = self.config
    if x.ndim != 4 or x.shape[-1] != c.width:
      raise ValueError(
        f'x has shape {x.shape}, expected [B, T, N, D] with D = width = '
        f'{c.width} of the config'
      )
    tokens = x.shape[2]
    if more := c.padding(tokens):
      x = jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)))
      space_mask = SequenceMask.of(space_mask, tokens).padded(more)
      if space_angles is not None:
        space_angles = jnp.pad(space_angles, ((0, more), (0, 0)))
    context = make_context(
      c,
      x.shape,
      space_mask=space_mask,
      space_angles=space_angles,
      segment_ids=segment_ids,
      cache=cache,
    )
    body, periods = Period, c.depth // c.time_every
    unroll = min(c.unroll, periods)
    if c.remat != 'none':
      keep = _REMAT_POLICIES[c.remat]
      # Without a loop, XLA would merge the recomputation with the original.
      no_loop = unroll == periods
      body = nn.remat(Period, prevent_cse=no_loop, policy=keep)
    stack = nn.scan(
      body,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, nn.broadcast),
      length=periods,
      unroll=unroll,
      metadata_params={nn.PARTITION_NAME: 'layers'},
      # No period computes what is constant for all. Checking for that would
      # trace the layers twice.
      check_constancy_invariants=False,
    )
    numbers = None if cache is None else jnp.arange(periods)
    x, new = stack(c, name='periods')(
      x.astype(jnp.dtype(c.dtype)), numbers, context
    )
    x = x[:, :, :tokens]
    return RmsNorm(fast_gradient=c.fast_gradient, name='norm')(x), new


def make_context(
  config: TransformerConfig,
  shape: Sequence[int],
  *,
  space_mask: ArrayLike | None = None,
  space_angles: Array | None = None,
  segment_ids: Array | None = None,
  cache: TimeCache | None = None,
) -> Context:
  """Returns what the layers share when they map an array of this shape.

  Args:
    config: sizes.
    shape: `(B, T, N, ...)`; with a cache, T must be at most its length.
    space_mask: `[N, N]` bool, true where row may attend to column, of NumPy or
      JAX; None lets all attend to all. Every token must see one. Kernels are
      built for a mask that is known while tracing.
    space_angles: `[N, h/2]` rotations of the space layers; None rotates
      nothing, as angles of zero do.
    segment_ids: `[B, T]` int32; frames see only their own segment. None is one
      segment, with a cache the one that is open.
    cache: past frames.

  Raises:
    ValueError: a cache is given with more frames than it holds, or the mask is
      of another shape or dtype, or hides everything from a token.
  """
  batch, frames, tokens = shape[:3]
  if cache is not None and frames > cache.length:
    raise ValueError(
      f'T = {frames}: a cache of {cache.length} frames takes at most as many '
      'at a time; use a clip without cache to prefill'
    )
  ring = None
  if cache is not None:
    if segment_ids is None:
      segment_ids = jnp.broadcast_to(cache.segment[:, None], (batch, frames))
    ring = cache.visible(segment_ids)[:, None, None, None]
  if segment_ids is None:
    segment_ids = jnp.zeros((batch, frames), jnp.int32)
  pairs = config.width // config.num_heads // 2
  first = jnp.uint32(0) if cache is None else cache.frame
  position = first + jnp.arange(frames, dtype=jnp.uint32)
  angles = rope.angles(position, pairs, config.rope_base)
  rotation = lambda a: rope.rotation(a[:, None])
  return Context(
    space_mask=SequenceMask.of(space_mask, tokens),
    space_rotation=None if space_angles is None else rotation(space_angles),
    time_mask=SequenceMask.make(
      banded_causal_mask(frames, config.context_length), segment_ids[:, None]
    ),
    time_rotation=rotation(angles),
    past=None if cache is None else cache.entries,
    ring_mask=ring,
  )


def banded_causal_mask(frames: int, context_length: int) -> np.ndarray:
  """Returns `[T, T]`, true where 0 <= row - column < context_length."""
  t = np.arange(frames)
  age = t[:, None] - t[None]
  return (age >= 0) & (age < context_length)
