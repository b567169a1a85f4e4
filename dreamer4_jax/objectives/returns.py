"""Lambda-returns of imagined rollouts."""

from __future__ import annotations

from jax import lax
import jax.numpy as jnp

from dreamer4_jax.objectives._shapes import same_shape
from dreamer4_jax.types import Array


def lambda_returns(
  reward: Array, cont: Array, value: Array, *, gamma: float, lam: float
) -> Array:
  """Computes `R[t] = r[t+1] + γ c[t+1] ((1-λ) v[t+1] + λ R[t+1])`.

  The recursion starts from `R[H] = v[H]` (equation 10 of the paper with the
  usual index). No gradient is stopped here; the losses that use a return do.

  Args:
    reward: `[B, H]`, entry i is r[i+1], received on arriving at frame i+1.
    cont: `[B, H]`, entry i is c[i+1] in [0, 1], 0 iff frame i+1 is terminal.
    value: `[B, H+1]`, the values v[0] to v[H].
    gamma: discount in [0, 1].
    lam: share of the longer return, in [0, 1].

  Returns:
    `[B, H]` float32, the returns R[0] to R[H-1].

  Raises:
    ValueError: if the shapes do not fit.
  """
  reward, cont, value = (
    jnp.asarray(a, jnp.float32) for a in (reward, cont, value)
  )
  if value.ndim != 2:
    raise ValueError(f'value has shape {value.shape}: expected [B, H+1]')
  following = value[:, 1:]
  same_shape(reward=reward, cont=cont, value_after_the_first=following)
  discount = gamma * cont
  one_step = reward + discount * (1 - lam) * following

  def backward(later, step):
    base, decay = step
    now = base + decay * later
    return now, now

  _, returns = lax.scan(
    backward, value[:, -1], (one_step.T, (discount * lam).T), reverse=True
  )
  return returns.T
