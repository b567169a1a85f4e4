"""Weighted means that can be accumulated in parts."""

from __future__ import annotations

from flax import struct
import jax.numpy as jnp

from dreamer4_jax.types import Array


@struct.dataclass
class Mean:
  """A weighted mean, as the sum and the weight it consists of.

  The means of two parts of a batch, added (`jax.tree.map(jnp.add, a, b)`), are
  the mean of both together, whatever the weights.

  Attributes:
    total: scalar float32, weighted sum.
    weight: scalar float32, sum of the weights.
  """

  total: Array
  weight: Array

  @classmethod
  def of(cls, x: Array, weight: Array | float = 1.0) -> Mean:
    """Takes the mean over all axes.

    Args:
      x: any shape. Entries without weight may hold anything, NaN included:
        they reach neither the mean nor its gradient.
      weight: at least 0, broadcast to `x`.
    """
    x = jnp.asarray(x).astype(jnp.float32)
    weight = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), x.shape)
    kept = jnp.where(weight > 0, x, 0.0)
    return cls(total=(weight * kept).sum(), weight=weight.sum())

  def value(self) -> Array:
    """Returns the mean, a scalar; 0 where nothing has weight."""
    return self.total / jnp.where(self.weight > 0, self.weight, 1.0)
