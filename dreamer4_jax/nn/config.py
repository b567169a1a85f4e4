"""Sizes of a space/time transformer; plain data, made without JAX."""

from __future__ import annotations

import dataclasses
from typing import Literal

from dreamer4_jax.checks import at_least, require

Dtype = Literal['float32', 'bfloat16']
Remat = Literal['none', 'dots', 'full']
Backend = Literal['auto', 'xla', 'splash', 'tokamax']
FREE_FIELDS = ('remat', 'dtype', 'attention', 'unroll')
"""Fields of a transformer that do not change what its parameters mean."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayersConfig:
  """What the layers of a transformer are like, however many there are.

  Raises:
    ValueError: a field cannot work; the sentence names it.
  """

  width: int = 128
  """Model width D."""
  num_heads: int = 4
  """Query heads."""
  num_kv_heads: int = 4
  """Key/value heads (grouped-query attention); divides num_heads."""
  mlp_hidden: int = 384
  """Hidden width of the SwiGLU MLP."""
  time_every: int = 4
  """One layer in so many attends over time, the others within a frame; such a
  group of layers is a period."""
  context_length: int = 16
  """Frames a time layer sees, the current one included; size of the ring."""
  soft_cap: float | None = 50.0
  """Attention logits are cap * tanh(logits / cap); none leaves them as they
  are, and the softmax then takes their maximum first, which is slower."""
  rope_base: float = 10_000.0
  """Longest wavelength base of the rotary position embedding."""
  remat: Remat = 'none'
  """What the backward pass recomputes to save memory: nothing, all but the
  results of matrix products, or each period in full. With nothing, also the
  weights that are gathered over an fsdp mesh are kept."""
  dtype: Dtype = 'float32'
  """Compute dtype; parameters, softmax, norms and losses stay float32."""
  attention: Backend = 'auto'
  """What computes attention within a frame or clip: XLA, JAX's splash
  attention (TPU), tokamax (GPU), or what measures best on the platform."""
  unroll: int = 1
  """Periods that the loop over layers runs at a time. With all of them there
  is no loop: faster on CPU, and longer to compile."""

  def __post_init__(self):
    kind = type(self).__name__
    at_least(1, self, 'width', 'num_heads', 'num_kv_heads', 'mlp_hidden')
    at_least(1, self, 'context_length', 'unroll')
    at_least(2, self, 'time_every')
    require(
      self.width % (4 * self.num_heads) == 0,
      f'{kind}.width',
      self.width,
      f'must be divisible by 4 * num_heads = '
      f'{4 * self.num_heads}, since axial RoPE splits each head in '
      'quarters',
    )
    require(
      self.num_heads % self.num_kv_heads == 0,
      f'{kind}.num_kv_heads',
      self.num_kv_heads,
      f'must divide num_heads = {self.num_heads}',
    )
    require(
      self.soft_cap is None or 0 < self.soft_cap <= 80,
      f'{kind}.soft_cap',
      self.soft_cap,
      'must be positive and at most 80, whose exponential float32 holds, or '
      'none; 50 is usual',
    )

  def stack(self, depth: int) -> TransformerConfig:
    """Returns the transformer of `depth` such layers."""
    names = {f.name for f in dataclasses.fields(TransformerConfig)} - {'depth'}
    own = {name: getattr(self, name) for name in names if hasattr(self, name)}
    return TransformerConfig(depth=depth, **own)

  def _check_depth(self, field: str) -> None:
    depth = getattr(self, field)
    require(
      depth >= 1 and depth % self.time_every == 0,
      f'{type(self).__name__}.{field}',
      depth,
      f'must be a positive multiple of time_every = {self.time_every}',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(LayersConfig):
  """Efficient space/time transformer, such as `TransformerConfig(width=64)`.

  Raises:
    ValueError: a field cannot work, such as a depth that is no whole number of
      periods; the sentence names it.
  """

  depth: int = 4
  """Layers, a multiple of `time_every`."""
  fast_gradient: bool = True
  """Gradients of attention, norms and MLPs that are written by hand, and faster
  than the derived ones. Forward mode does not pass them: false for `jax.jvp`,
  `jax.jacfwd` and `jax.hessian`."""

  def __post_init__(self):
    super().__post_init__()
    self._check_depth('depth')
    require(
      self.fast_gradient or self.attention in ('auto', 'xla'),
      f'{type(self).__name__}.fast_gradient',
      self.fast_gradient,
      f'needs attention = auto or xla: the gradients of {self.attention} are '
      'its own',
    )
