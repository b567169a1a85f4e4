"""Symexp two-hot distributions for rewards and values."""

from __future__ import annotations

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.types import Array


def symlog(x: Array) -> Array:
  """Returns `sign(x) log(1 + |x|)` in float32, same shape as `x`."""
  x = jnp.asarray(x, jnp.float32)
  return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Array) -> Array:
  """Returns `sign(x) (exp(|x|) - 1)` in float32, the inverse of `symlog`."""
  x = jnp.asarray(x, jnp.float32)
  return jnp.sign(x) * jnp.expm1(jnp.abs(x))


@dataclasses.dataclass(frozen=True)
class TwoHot:
  """A scalar as a distribution over exponentially spaced bins.

  The centers are `symexp(linspace(-limit, limit, bins))`. A target puts its
  mass on the two centers around it so that the mean is the target itself
  (DreamerV3, arXiv 2301.04104; used by the heads of Dreamer 4, section 3.3).

  Attributes:
    bins: number of centers; odd, so that 0 is one of them.
    limit: symlog of the largest center.
  """

  bins: int = 255
  limit: float = 20.0

  def __post_init__(self):
    if self.bins < 3 or self.bins % 2 == 0:
      raise ValueError(f'bins = {self.bins}: must be odd and at least 3')
    if not 0 < self.limit <= 80:
      raise ValueError(
        f'limit = {self.limit}: must lie in (0, 80], so that float32 holds it'
      )

  def centers(self) -> np.ndarray:
    """Returns the centers, `[bins]` float32, ascending, exactly symmetric."""
    half = np.expm1(np.linspace(0.0, self.limit, self.bins // 2 + 1))
    return np.concatenate([-half[:0:-1], half]).astype(np.float32)

  def encode(self, x: Array) -> Array:
    """Spreads each value over its two neighbouring bins.

    Args:
      x: `[...]` values in the original scale (not symlog); those beyond the
        outermost centers are clipped to them.

    Returns:
      `[..., bins]` float32 probabilities whose mean is the clipped `x`.
    """
    centers = jnp.asarray(self.centers())
    x = jnp.clip(jnp.asarray(x, jnp.float32), centers[0], centers[-1])
    below = jnp.searchsorted(centers, x, side='right') - 1
    below = jnp.clip(below, 0, self.bins - 2)
    left, right = centers[below], centers[below + 1]
    # Each share from its own difference: 1 - share would lose small ones.
    on_left = ((right - x) / (right - left))[..., None]
    on_right = ((x - left) / (right - left))[..., None]
    left_bin = jax.nn.one_hot(below, self.bins, dtype=jnp.float32)
    right_bin = jax.nn.one_hot(below + 1, self.bins, dtype=jnp.float32)
    return left_bin * on_left + right_bin * on_right

  def mean(self, logits: Array) -> Array:
    """Returns the expected value, `[...]` float32, of `[..., bins]` logits.

    Opposite bins are added before anything else, so that a uniform
    distribution, such as that of a zero-initialised layer, gives exactly 0
    and not the rounding error of terms near `exp(limit)`.
    """
    self._check(logits)
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    half = self.bins // 2
    positive = probs[..., half + 1 :]
    negative = probs[..., :half][..., ::-1]
    scale = jnp.asarray(self.centers()[half + 1 :])
    # Full precision: accelerators would round the factors by default.
    return jnp.einsum(
      '...k,k->...',
      positive - negative,
      scale,
      precision=lax.Precision.HIGHEST,
    )

  def loss(self, logits: Array, x: Array) -> Array:
    """Cross-entropy of predicted bins to two-hot targets, in nats.

    Args:
      logits: `[..., bins]`, any float dtype.
      x: `[...]` targets in the original scale.

    Returns:
      `[...]` float32.

    Raises:
      ValueError: if the shapes do not fit.
    """
    self._check(logits)
    x = jnp.asarray(x, jnp.float32)
    if logits.shape[:-1] != x.shape:
      raise ValueError(
        f'logits {logits.shape} do not fit targets {x.shape}: expected '
        f'{(*x.shape, self.bins)}'
      )
    # A target is data even where a model computed it (lambda-returns).
    target = lax.stop_gradient(self.encode(x))
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(target * log_probs, axis=-1)

  def _check(self, logits: Array) -> None:
    if logits.shape[-1] != self.bins:
      raise ValueError(
        f'logits {logits.shape}: the last axis must hold {self.bins} bins'
      )
