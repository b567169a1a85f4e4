"""Policy loss from the signs of advantages, held near a prior."""

from __future__ import annotations

from flax import struct
from jax import lax
import jax.numpy as jnp

from dreamer4_jax.objectives._shapes import same_shape
from dreamer4_jax.types import Array


@struct.dataclass
class PmpoOutput:
  """Policy loss and its parts, scalars in float32.

  Attributes:
    loss: `policy_term + beta * kl_term`.
    positive_share: weighted share of steps with advantage >= 0, in [0, 1].
    policy_term: `(1-alpha) mean_{D-} log pi - alpha mean_{D+} log pi`.
    kl_term: weighted mean KL in nats, before `beta`.
  """

  loss: Array
  positive_share: Array
  policy_term: Array
  kl_term: Array


def _weighted_mean(x: Array, weight: Array) -> Array:
  """Returns the scalar mean of `x` under `weight`, 0 where all weight is 0.

  Entries without weight may hold anything, NaN included; they reach neither
  the mean nor its gradient.
  """
  total = jnp.sum(weight)
  kept = jnp.where(weight > 0, x, 0.0)
  return jnp.sum(weight * kept) / jnp.where(total > 0, total, 1.0)


def pmpo_loss(
  log_prob: Array,
  advantage: Array,
  weight: Array,
  *,
  alpha: float,
  kl: Array,
  beta: float,
) -> PmpoOutput:
  """Raises the likelihood of good actions and lowers that of bad ones.

  With D+ the steps of advantage >= 0 and D- the others, over batch and time
  together (equation 11 of the paper):
  `(1-alpha) mean_{D-} log pi(a) - alpha mean_{D+} log pi(a) + beta mean KL`.
  Each set has its own mean, so its size does not matter, and only the sign
  of an advantage does. An empty set contributes exactly 0.

  Args:
    log_prob: `[B, H]` log-probability of the action taken, in nats.
    advantage: `[B, H]` return minus value.
    weight: `[B, H]` in [0, 1], 0 after an imagined termination.
    alpha: weight of D+, in [0, 1]; D- has 1 - alpha.
    kl: `[B, H]` divergence between policy and prior, in nats.
    beta: weight of the divergence.

  Returns:
    The loss and its parts.

  Raises:
    ValueError: if the shapes differ.
  """
  same_shape(log_prob=log_prob, advantage=advantage, weight=weight, kl=kl)
  log_prob, advantage, weight, kl = (
    a.astype(jnp.float32) for a in (log_prob, advantage, weight, kl)
  )
  # Returns, values and survival judge the policy; it must not learn to move
  # the judgement instead of the action.
  advantage = lax.stop_gradient(advantage)
  weight = lax.stop_gradient(weight)
  good = jnp.where(advantage >= 0, weight, 0.0)
  bad = jnp.where(advantage >= 0, 0.0, weight)
  policy_term = (1 - alpha) * _weighted_mean(
    log_prob, bad
  ) - alpha * _weighted_mean(log_prob, good)
  kl_term = _weighted_mean(kl, weight)
  return PmpoOutput(
    loss=policy_term + beta * kl_term,
    positive_share=_weighted_mean((advantage >= 0).astype(jnp.float32), weight),
    policy_term=policy_term,
    kl_term=kl_term,
  )
