"""Policy loss from the signs of advantages, held near a prior."""

from __future__ import annotations

from flax import struct
from jax import lax
import jax.numpy as jnp

from dreamer4_jax.objectives._shapes import same_shape
from dreamer4_jax.objectives.mean import Mean
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


def pmpo_means(
  log_prob: Array, advantage: Array, weight: Array, kl: Array
) -> dict[str, Mean]:
  """Returns the means that form the loss; those of parts of a batch add up.

  Args:
    log_prob: `[B, H]` log-probability of the action taken, in nats.
    advantage: `[B, H]` return minus value.
    weight: `[B, H]` in [0, 1], 0 after an imagined termination.
    kl: `[B, H]` divergence between policy and prior, in nats.

  Returns:
    `positive` and `negative`, the log-probability over the steps of advantage
    >= 0 and over the others; `kl`; and `positive_share` of the steps.

  Raises:
    ValueError: if the shapes differ.
  """
  same_shape(log_prob=log_prob, advantage=advantage, weight=weight, kl=kl)
  # Returns, values and survival judge the policy; it must not learn to move
  # the judgement instead of the action.
  advantage = lax.stop_gradient(advantage.astype(jnp.float32))
  weight = lax.stop_gradient(weight.astype(jnp.float32))
  good = advantage >= 0
  return {
    'positive': Mean.of(log_prob, jnp.where(good, weight, 0.0)),
    'negative': Mean.of(log_prob, jnp.where(good, 0.0, weight)),
    'kl': Mean.of(kl, weight),
    'positive_share': Mean.of(good, weight),
  }


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
  means = pmpo_means(log_prob, advantage, weight, kl)
  of = {name: mean.value() for name, mean in means.items()}
  policy_term = (1 - alpha) * of['negative'] - alpha * of['positive']
  return PmpoOutput(
    loss=policy_term + beta * of['kl'],
    positive_share=of['positive_share'],
    policy_term=policy_term,
    kl_term=of['kl'],
  )
