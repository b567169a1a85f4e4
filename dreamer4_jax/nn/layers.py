"""Small layers: RMSNorm, linear maps without bias, SwiGLU, embeddings.

Every parameter is float32. Its axes have logical names, which it carries if it
was made under `logical_axes`; which mesh axis a name maps to is decided in
`sharding.py` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
import math

from einops import rearrange
from flax import errors
from flax import linen as nn
import jax
import jax.numpy as jnp

from dreamer4_jax.nn.fused import GATE_UP
from dreamer4_jax.nn.partition import Axes, gather, named
from dreamer4_jax.types import Array

Init = jax.nn.initializers.Initializer
# Truncated normal with variance 1 / fan_in.
LECUN: Init = jax.nn.initializers.lecun_normal()


def rms_norm(
  x: Array, scale: Array, eps: float = 1e-6, *, fast_gradient: bool = True
) -> Array:
  """Root-mean-square normalisation over the last axis, in float32.

  Args:
    x: `[..., D]`.
    scale: `[D]` learned scale.
    eps: added to the mean square.
    fast_gradient: use the hand-written gradient: it keeps the input as it is
      and one number per row, and passes over memory half as often as the
      derived one. It does not support forward mode.

  Returns:
    `[..., D]` in the dtype of `x`.
  """
  if fast_gradient:
    return _fast_rms_norm(x, scale, eps)
  return _rms_norm(x, scale, eps)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _fast_rms_norm(x: Array, scale: Array, eps: float) -> Array:
  return _rms_norm(x, scale, eps)[0]


def _rms_norm(x: Array, scale: Array, eps: float):
  x32 = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + eps)
  y = (x32 * inverse * _like(scale, x)).astype(x.dtype)
  return y, (x, scale, inverse)


def _rms_norm_backward(eps: float, residuals, gradient: Array):
  x, scale, inverse = residuals
  x32, wide = x.astype(jnp.float32), gradient.astype(jnp.float32)
  along = wide * x32
  # Both sums as products with a vector: XLA on CPU is twice as fast with them,
  # and elsewhere turns them into sums.
  mean = _product(along, scale, 1)[..., None] * (inverse**3 / x.shape[-1])
  to_x = wide * inverse * _like(scale, x) - x32 * mean
  return to_x.astype(x.dtype), _product(inverse[..., 0], along, x.ndim - 1)


_fast_rms_norm.defvjp(_rms_norm, _rms_norm_backward)
_product = functools.partial(jnp.tensordot, precision=jax.lax.Precision.HIGHEST)


def _like(scale: Array, x: Array) -> Array:
  return jnp.expand_dims(scale, tuple(range(x.ndim - 1)))


class RmsNorm(nn.Module):
  """RMSNorm with a learned scale, `[..., D] -> [..., D]`.

  Attributes:
    axis: logical name of the scale's axis.
    fast_gradient: as in `rms_norm`.
    scaled: whether it has a scale; else it is 1.
  """

  axis: str = 'norm'
  fast_gradient: bool = True
  scaled: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if not self.scaled:
      ones = jnp.ones(x.shape[-1:])
      return rms_norm(x, ones, fast_gradient=self.fast_gradient)
    scale = _param(
      self, 'scale', nn.initializers.ones, (x.shape[-1],), (self.axis,)
    )
    return rms_norm(x, scale, fast_gradient=self.fast_gradient)


class Linear(nn.Module):
  """Linear map of the last axis to one or more axes, without bias.

  Attributes:
    shape: output axes; the map is `[..., D] -> [..., *shape]`.
    axes: logical names of `(input, *shape)`.
    dtype: compute dtype; the parameter is float32.
    init: initializer, given the kernel as a `[D, prod(shape)]` matrix.
  """

  shape: Sequence[int]
  axes: Sequence[str | None]
  dtype: jnp.dtype = jnp.float32
  init: Init = LECUN

  @nn.compact
  def __call__(self, x: Array) -> Array:
    full = (x.shape[-1], *self.shape)

    def init(key, shape, dtype):
      matrix = self.init(key, (shape[0], math.prod(shape[1:])), dtype)
      return jnp.reshape(matrix, shape)

    kernel = _param(self, 'kernel', init, full, tuple(self.axes))
    # As one product of matrices: XLA on CPU transposes what it contracts over
    # several axes, which made the backward pass twice as slow.
    flat = rearrange(x.astype(self.dtype), '... d -> (...) d')
    kernel = gather(kernel.astype(self.dtype), tuple(self.axes))
    y = flat @ jnp.reshape(kernel, (full[0], -1))
    return jnp.reshape(y, (*x.shape[:-1], *self.shape))


class Mlp(nn.Module):
  """SwiGLU: `down(silu(gate(x)) * up(x))`, `[..., D] -> [..., D]`.

  Attributes:
    hidden: width between the maps.
    dtype: compute dtype.
    fast_gradient: as in `gated`.
  """

  hidden: int
  dtype: jnp.dtype = jnp.float32
  fast_gradient: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    # Two products, not one that is then split: the gradient of the split costs
    # XLA on CPU as much as the products themselves.
    linear = lambda name, width, axis: Linear(
      (width,), ('embed', axis), self.dtype, name=name
    )(x)
    if self.has_variable('params', GATE_UP):
      gate, up = jnp.split(linear(GATE_UP, 2 * self.hidden, None), 2, axis=-1)
    else:
      gate = linear('gate', self.hidden, 'mlp')
      up = linear('up', self.hidden, 'mlp')
    hidden = gated(gate, up, fast_gradient=self.fast_gradient)
    down = Linear((x.shape[-1],), ('mlp', 'embed'), self.dtype, name='down')
    return down(hidden)


def gated(gate: Array, up: Array, *, fast_gradient: bool = True) -> Array:
  """`silu(gate) * up`, elementwise.

  Args:
    gate: any shape.
    up: of the same shape.
    fast_gradient: use the hand-written gradient: it keeps only these two
      arrays. It does not support forward mode.
  """
  return (_fast_gated if fast_gradient else _gated)(gate, up)


def _gated(gate: Array, up: Array) -> Array:
  return nn.silu(gate) * up


def _gated_forward(gate: Array, up: Array):
  return _gated(gate, up), (gate, up)


def _gated_backward(residuals, gradient: Array):
  gate, up = residuals
  # The sigmoid by another formula than in the forward pass: otherwise XLA would
  # keep that one, which costs more than recomputing it.
  share = 0.5 + 0.5 * jnp.tanh(0.5 * gate)
  bent = gate * share
  to_gate = gradient * up * (share + bent * (1 - share))
  return to_gate, gradient * bent


_fast_gated = jax.custom_vjp(_gated)
_fast_gated.defvjp(_gated_forward, _gated_backward)


class Embedding(nn.Module):
  """Learned table, `[...] int -> [..., D]`; also `table()` as a whole."""

  num: int
  width: int
  dtype: jnp.dtype = jnp.float32
  scale: float = 0.02

  def setup(self):
    init = nn.initializers.normal(self.scale)
    self.embedding = _param(
      self, 'table', init, (self.num, self.width), ('vocab', 'embed')
    )

  def __call__(self, index: Array) -> Array:
    table = gather(self.embedding, ('vocab', 'embed'))
    return jnp.take(table, index, axis=0).astype(self.dtype)

  def table(self) -> Array:
    """Returns the whole table, `[num, D]`."""
    return gather(self.embedding.astype(self.dtype), ('vocab', 'embed'))


def _param(
  module: nn.Module,
  name: str,
  init: Init,
  shape: tuple[int, ...],
  axes: Axes,
) -> Array:
  """Returns a float32 parameter of a module, made by `init` if it is not there.

  `module.param` would also trace the initializer of an existing parameter, for
  its shape: a sixth of the time that tracing a train step takes.
  """
  if not module.has_variable('params', name):
    return module.param(name, named(init, axes), shape, jnp.float32)
  value = nn.meta.unbox(module.get_variable('params', name))
  if value.shape != shape:
    path = '/'.join(module.path)
    raise errors.ScopeParamShapeError(name, path, value.shape, shape)
  return value
