"""Sizes of a space/time transformer; plain data, made without JAX."""

from __future__ import annotations

import dataclasses
from typing import Literal

from dreamer4_jax.checks import at_least, require

Dtype = Literal['float32', 'bfloat16']
Remat = Literal['none', 'dots', 'full']
Backend = Literal['auto', 'xla', 'splash', 'triton']
_GPU_ROWS, _LEAST_PADDED = 8, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
  """How layers are computed; it does not change what parameters mean."""

  dtype: Dtype = 'float32'
  """Compute dtype; parameters, softmax, norms and losses stay float32."""
  remat: Remat = 'none'
  """What the backward pass recomputes to save memory: nothing, all but the
  results of matrix products, or each period in full. With nothing, the weights
  that are gathered over an fsdp mesh are kept as well."""
  attention: Backend = 'auto'
  """What computes attention: XLA, JAX's splash attention (TPU), this project's
  kernels for GPU (`nn.gpu_attention`), or what is best on the platform."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayersConfig:
  """Settings of the layers of a transformer.

  Raises:
    ValueError: a field cannot work; the message names it.
  """

  width: int = 128
  """Model width D."""
  num_heads: int = 4
  """Query heads."""
  depth: int = 4
  """Layers, a multiple of `time_every`."""
  time_every: int = 4
  """One layer in this many attends over time, the others within a frame; such a
  group of layers is a period."""
  context_length: int = 16
  """Frames a time layer sees, the current one included; size of the ring."""
  rope_base: float = 10_000.0
  """Longest wavelength base of the rotary position embedding."""

  def __post_init__(self):
    kind = type(self).__name__
    at_least(1, self, 'width', 'num_heads', 'context_length')
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
      self.depth >= 1 and self.depth % self.time_every == 0,
      f'{kind}.depth',
      self.depth,
      f'must be a positive multiple of time_every = {self.time_every}',
    )

  def transformer(
    self, compute: ComputeConfig, num_kv_heads: int | None = None
  ) -> TransformerConfig:
    """Returns the transformer of these layers."""
    own = {
      f.name: getattr(self, f.name) for f in dataclasses.fields(LayersConfig)
    }
    periods = self.depth // self.time_every
    # Two periods compile in little more time than a loop of them, and a loop on
    # a GPU copies what it keeps for the backward pass. A longer one takes one
    # period at a time: what is left over would be cut off the weights, which
    # copies them in every pass.
    short = 3 if compute.attention == 'triton' else 2
    return TransformerConfig(
      **own,
      **dataclasses.asdict(compute),
      num_kv_heads=num_kv_heads,
      unroll=periods if periods <= short else 1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(LayersConfig, ComputeConfig):
  """Efficient space/time transformer, such as `TransformerConfig(width=64)`.

  Raises:
    ValueError: a field cannot work, such as a depth that is not a whole number
      of periods; the message names it.
  """

  num_kv_heads: int | None = None
  """Key/value heads (grouped-query attention), a divisor of num_heads; none
  takes as many as num_heads."""
  mlp_hidden: int | None = None
  """Hidden width of the SwiGLU MLP; none takes 8/3 of the width, rounded up to
  a multiple of 64."""
  soft_cap: float | None = 50.0
  """Attention logits are cap * tanh(logits / cap); none leaves them as they
  are, and the softmax then subtracts their maximum first, which is slower."""
  fast_gradient: bool = True
  """Hand-written gradients of attention, norms and MLPs, faster than the
  derived ones. They do not support forward mode: use false for `jax.jvp`,
  `jax.jacfwd` and `jax.hessian`."""
  unroll: int = 1
  """Periods that the loop over layers runs at a time. With all of them there
  is no loop: faster on CPU, but slower to compile."""

  def __post_init__(self):
    super().__post_init__()
    kind = type(self).__name__
    at_least(1, self, 'unroll')
    require(
      self.kv_heads >= 1 and self.num_heads % self.kv_heads == 0,
      f'{kind}.num_kv_heads',
      self.num_kv_heads,
      f'must divide num_heads = {self.num_heads}, or be none',
    )
    require(
      self.mlp_hidden is None or self.mlp_hidden >= 1,
      f'{kind}.mlp_hidden',
      self.mlp_hidden,
      'must be at least 1, or none',
    )
    require(
      self.soft_cap is None or 0 < self.soft_cap <= 80,
      f'{kind}.soft_cap',
      self.soft_cap,
      'must be positive and at most 80, whose exponential float32 holds, or '
      'none; 50 is usual',
    )
    require(
      self.fast_gradient or self.attention in ('auto', 'xla'),
      f'{kind}.fast_gradient',
      self.fast_gradient,
      f'needs attention = auto or xla: the gradients of {self.attention} are '
      'its own',
    )

  @property
  def kv_heads(self) -> int:
    """Key/value heads."""
    return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

  def padding(self, tokens: int) -> int:
    """Tokens added to a frame of `tokens` to make a multiple of 8.

    A GPU's products of a number of rows that 8 does not divide take two more
    kernels each, to pad and to crop (`docs/notes.md`). To frames of few tokens
    nothing is added: it would be much of them.
    """
    pads = self.attention == 'triton' and tokens >= _LEAST_PADDED
    return -tokens % _GPU_ROWS if pads else 0

  @property
  def hidden(self) -> int:
    """Hidden width of the MLP."""
    return self.mlp_hidden or -(-self.width * 8 // (3 * 64)) * 64
