"""Division of loss terms by their running root mean square."""

from __future__ import annotations

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from dreamer4_jax.types import Array


@struct.dataclass
class RmsState:
  """Running statistics of one loss term; part of the train state.

  Attributes:
    mean_square: scalar float32, decayed sum of squares, not bias-corrected.
    weight: scalar float32 in [0, 1), decayed sum of ones; their ratio is the
      bias-corrected mean square.
  """

  mean_square: Array
  weight: Array


def rms_init() -> RmsState:
  """Returns the state of a term that has not been seen yet."""
  return RmsState(
    mean_square=jnp.zeros((), jnp.float32), weight=jnp.zeros((), jnp.float32)
  )


def rms_normalize(
  loss: Array,
  state: RmsState,
  decay: float = 0.99,
  eps: float = 1e-6,
  active: Array | None = None,
) -> tuple[Array, RmsState]:
  """Brings a loss term to unit scale, before its weight is applied.

  `m <- decay m + (1 - decay) loss^2`, then `loss / max(sqrt(m / bias), eps)`
  with `bias = 1 - decay^n` after n updates. The current loss is part of its
  own denominator, so the first result is 1 whatever the scale. (The paper
  normalises losses but does not say how.)

  Args:
    loss: scalar.
    state: statistics before this step.
    decay: share of the old mean that is kept.
    eps: smallest denominator.
    active: scalar bool; where false the term had no data this step: the
      state stays as it is, the result and its gradient are 0.

  Returns:
    The normalised loss, scalar float32, and the new state.

  Raises:
    ValueError: if `loss` is not a scalar.
  """
  loss = jnp.asarray(loss, jnp.float32)
  if loss.ndim:
    raise ValueError(f'loss has shape {loss.shape}: must be a scalar')
  # The scale is a statistic of training, not something to optimise: with a
  # gradient through it, the normalised loss would have none on step one.
  square = lax.stop_gradient(jnp.square(loss))
  new = RmsState(
    mean_square=decay * state.mean_square + (1 - decay) * square,
    weight=decay * state.weight + (1 - decay),
  )
  scale = jnp.maximum(jnp.sqrt(new.mean_square / new.weight), eps)
  normalized = loss / scale
  if active is None:
    return normalized, new
  state = jax.tree.map(lambda n, o: jnp.where(active, n, o), new, state)
  return jnp.where(active, normalized, 0.0), state
