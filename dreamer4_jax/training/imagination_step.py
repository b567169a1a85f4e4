"""Train step of imagination: PMPO on imagined rollouts (phase 3).

Source: section 3.3 and equations 10 and 11 of arXiv 2509.24527. The
transformer is frozen; policy and value heads train on the agent states that
the rollout stored. The prior is a frozen copy of the behaviour-cloned policy.
"""

from __future__ import annotations

from collections.abc import Callable

from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.config import ImaginationPhase
from dreamer4_jax.models import Params, World, distributions
from dreamer4_jax.objectives import TwoHot, lambda_returns, pmpo_loss
from dreamer4_jax.rollout import imagine, sample_policy
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.state import (
  Metrics,
  TrainState,
  make_state,
  masked_mean,
  normalize_losses,
  update,
)
from dreamer4_jax.types import Actions, Array, Batch


@struct.dataclass
class Experience:
  """An imagined rollout, scored; no gradient flows into it.

  Attributes:
    agent: `[B, H, D]` agent states at which actions were drawn.
    actions: components `[B, H, ...]`.
    reward: `[B, H]` reward at the frame each action led to.
    cont: `[B, H]` continuation there; with `stop_at_event` an event ends it.
    weight: `[B, H]` probability that the episode was still going on.
    returns: `[B, H]` lambda-returns.
    value: `[B, H]` value at `agent`.
  """

  agent: Array
  actions: Actions
  reward: Array
  cont: Array
  weight: Array
  returns: Array
  value: Array


def init_imagination_state(
  world: World, phase: ImaginationPhase, key: Array, finetuned: Params
) -> TrainState:
  """Returns the initial state: the policy starts as an exact copy of its prior.

  Args:
    world: modules.
    phase: hyperparameters.
    key: initialises the value head.
    finetuned: all rooms of phase 2.
  """
  params = world.init(key, ('value',))
  params['policy'] = jax.tree.map(jnp.copy, finetuned['policy'])
  frozen = {k: v for k, v in finetuned.items() if k != 'policy'}
  frozen['prior'] = finetuned['policy']
  optimizer = make_optimizer(phase.optimizer, phase.steps)
  return make_state(params, frozen, optimizer, ('policy', 'value'))


def gather_experience(
  world: World,
  phase: ImaginationPhase,
  params: Params,
  batch: Batch,
  key: Array,
) -> Experience:
  """Imagines from every clip of the batch and scores what happened."""
  agent = world.config.agent
  twohot = TwoHot(agent.bins, agent.bin_limit)
  rollout = imagine(
    world,
    params,
    batch,
    key,
    policy=sample_policy(world, params),
    horizon=phase.horizon,
    sampling_steps=phase.sampling_steps,
  )
  arrived = rollout.agent[:, 1:]
  reward = twohot.mean(world.head(params, 'reward', arrived)[:, :, 0])
  cont = world.head(params, 'continuation', arrived)[:, :, 0]
  cont = jax.nn.sigmoid(cont)
  if phase.stop_at_event:
    # Its mean is the probability of the event, since that is 0 or 1.
    cont = cont * (1 - jnp.clip(reward, 0, 1))
  value = twohot.mean(world.head(params, 'value', rollout.agent)[:, :, 0])
  returns = lambda_returns(
    reward, cont, value, gamma=phase.gamma, lam=phase.lam
  )
  alive = jnp.concatenate([batch.cont[:, -1:], cont[:, :-1]], axis=1)
  experience = Experience(
    agent=rollout.agent[:, :-1],
    actions=rollout.actions,
    reward=reward,
    cont=cont,
    weight=jnp.cumprod(alive, axis=1),
    returns=returns,
    value=value[:, :-1],
  )
  # The world is data: nothing is learned by moving the dream itself.
  return jax.lax.stop_gradient(experience)


def make_imagination_step(
  world: World, phase: ImaginationPhase
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
  """Returns the pure train step `(state, batch, key) -> (state, metrics)`."""
  optimizer = make_optimizer(phase.optimizer, phase.steps)
  agent = world.config.agent
  twohot = TwoHot(agent.bins, agent.bin_limit)

  now = lambda logits: jax.tree.map(lambda x: x[:, :, 0], logits)

  def loss_fn(params: Params, state: TrainState, batch: Batch, key: Array):
    e = gather_experience(world, phase, state.rooms(), batch, key)
    prior = now(world.head(state.rooms(), 'prior', e.agent))
    policy = now(world.head(params, 'policy', e.agent))
    pair = (policy, prior)
    if phase.kl_direction == 'prior_policy':
      pair = (prior, policy)
    output = pmpo_loss(
      distributions.log_prob(policy, e.actions, world.space),
      e.returns - e.value,
      e.weight,
      alpha=phase.alpha,
      kl=distributions.kl(*pair, world.space),
      beta=phase.beta,
    )
    value_logits = world.head(params, 'value', e.agent)[:, :, 0]
    terms = {
      'policy': output.loss,
      'value': masked_mean(twohot.loss(value_logits, e.returns), e.weight),
    }
    # PMPO has no scale to remove: only the value loss is normalised.
    scaled, rms = normalize_losses({'value': terms['value']}, state.rms, {})
    total = terms['policy'] + phase.value_weight * scaled['value']
    entropy = distributions.entropy(policy, world.space)
    metrics = {
      'imagination/policy': terms['policy'],
      'imagination/value': terms['value'],
      'imagination/kl': output.kl_term,
      'imagination/positive_share': output.positive_share,
      'imagination/entropy': masked_mean(entropy, e.weight),
      'imagination/reward_per_rollout': (e.reward * e.weight).sum(1).mean(),
      'imagination/return': masked_mean(e.returns, e.weight),
      'imagination/value_mean': masked_mean(e.value, e.weight),
      'imagination/cont': e.cont.mean(),
    }
    return total, (metrics, {**state.rms, **rms})

  def step(state: TrainState, batch: Batch, key: Array):
    return update(state, batch, key, loss_fn, optimizer, phase)

  return step
