"""Train step of imagination: PMPO on imagined rollouts (phase 3).

Source: section 3.3 and equations 10 and 11 of arXiv 2509.24527. The
transformer is frozen: policy and value heads train on the agent states that
the rollout stored. The prior is a frozen copy of the behaviour-cloned policy.

With `world_rate` the rest trains as well, as in the footnote of the paper's
section 3.3: the losses of policy and value reach the transformer through the
agent states, and all losses of finetuning continue, with the prior in place of
the cloned policy.
"""

from __future__ import annotations

from collections.abc import Callable

from flax import struct
import jax
import jax.numpy as jnp
import optax

from dreamer4_jax.config import ImaginationPhase
from dreamer4_jax.models import Params, World, distributions
from dreamer4_jax.objectives import (
  Mean,
  TwoHot,
  lambda_returns,
  pmpo_means,
)
from dreamer4_jax.rollout import (
  arrivals,
  context_levels,
  imagine,
  sample_policy,
)
from dreamer4_jax.training.finetune_step import (
  Clips,
  clip_losses,
  prepare_clips,
)
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.state import TrainState, make_state
from dreamer4_jax.training.update import (
  Means,
  Metrics,
  Objective,
  in_parts,
  make_step,
)
from dreamer4_jax.types import Actions, Array, Batch, DreamBatch

WORLD_MODULES = ('dynamics', 'task', 'prior', 'reward', 'continuation')
"""Modules that train along with `world_rate`."""
UPKEEP = ('dynamics', 'prior', 'reward', 'continuation')
"""Terms of finetuning that then continue."""


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
    tokens: `[B, T + H, N_z, C]` context and dream as the model saw them.
    context: what conditioned the context, without frames.
    clips: what the world model trains on; None while it is frozen.
  """

  agent: Array
  actions: Actions
  reward: Array
  cont: Array
  weight: Array
  returns: Array
  value: Array
  tokens: Array
  context: Batch
  clips: Clips | None = None


def init_imagination_state(
  world: World, key: Array, finetuned: Params
) -> TrainState:
  """Returns the initial state: the policy starts as an exact copy of its prior.

  Args:
    world: modules.
    key: initialises the value head.
    finetuned: all parameters of phase 2.
  """
  params = world.init(key, ('value',))
  params['policy'] = jax.tree.map(jnp.copy, finetuned['policy'])
  frozen = {k: v for k, v in finetuned.items() if k != 'policy'}
  frozen['prior'] = finetuned['policy']
  terms = ('policy', 'value')
  if world.config.phases.imagination.world_rate:
    params |= {name: frozen.pop(name) for name in WORLD_MODULES}
    terms += UPKEEP
  return make_state(params, frozen, _optimizer(world), terms)


def _optimizer(world: World) -> optax.GradientTransformation:
  rate, rates = world.config.phases.imagination.world_rate, {}
  if rate not in (0, 1):
    rates = dict.fromkeys(WORLD_MODULES, rate)
  return make_optimizer(world.config, 'imagination', rates)


def gather_experience(
  world: World, params: Params, batch: Batch, key: Array
) -> Experience:
  """Imagines from every clip of the batch and scores what happened."""
  agent, phase = world.config.agent, world.config.phases.imagination
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
  reward, cont = arrivals(world, params, rollout)
  if phase.stop_at_event:
    # The mean reward is the probability of the event, since it is 0 or 1.
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
    tokens=rollout.noisy,
    context=batch.replace(frames=None),
  )
  # The world is data: nothing is learned by moving the dream itself.
  return jax.lax.stop_gradient(experience)


def agent_states(world: World, params: Params, e: Experience) -> Array:
  """Computes the agent states of a dream again, for the gradient through them.

  One pass over context and dream, at the levels and with the noise of the
  rollout, reproduces what the rollout found frame by frame.

  Args:
    world: modules.
    params: entries `dynamics`, `task`.
    e: the dream.

  Returns:
    `[B, H, D]`, those at which actions were drawn.
  """
  batch, horizon = e.context, e.reward.shape[1]
  held = lambda x: jnp.concatenate(
    [x, jnp.repeat(x[:, -1:], horizon, axis=1)], axis=1
  )
  join = lambda a, b: jnp.concatenate([a, b], axis=1)
  output = world.denoise(
    params,
    e.tokens,
    context_levels(world, e.tokens.shape[:2]),
    jax.tree.map(join, batch.prev_action, e.actions),
    join(batch.prev_action_mask, jnp.ones(e.reward.shape, bool)),
    agent=world.agent_token(params, held(batch.task)),
    segment_ids=held(batch.segment_ids),
  )
  return output.agent[:, -horizon - 1 : -1]


def dream_losses(
  world: World, params: Params, e: Experience
) -> tuple[Means, Means]:
  """Computes the terms of equation 11 and the value loss.

  Args:
    world: modules.
    params: entries `policy`, `prior`, `value`, and with `world_rate` `dynamics`
      and `task`.
    e: the dream.

  Returns:
    Terms `positive`, `negative`, `kl`, `value`; and other means.
  """
  agent = world.config.agent
  twohot = TwoHot(agent.bins, agent.bin_limit)
  now = lambda logits: jax.tree.map(lambda x: x[:, :, 0], logits)
  h = e.agent
  if world.config.phases.imagination.world_rate:
    h = agent_states(world, params, e)
  # The prior is cloned, not pulled towards the policy.
  prior = jax.lax.stop_gradient(now(world.head(params, 'prior', h)))
  policy = now(world.head(params, 'policy', h))
  terms = pmpo_means(
    distributions.log_prob(policy, e.actions, world.space),
    e.returns - e.value,
    e.weight,
    distributions.kl(policy, prior, world.space),
  )
  value_logits = world.head(params, 'value', h)[:, :, 0]
  terms['value'] = Mean.of(twohot.loss(value_logits, e.returns), e.weight)
  entropy = distributions.entropy(policy, world.space)
  others = {
    'positive_share': terms.pop('positive_share'),
    'entropy': Mean.of(entropy, e.weight),
    'reward_per_rollout': Mean.of((e.reward * e.weight).sum(1)),
    'return': Mean.of(e.returns, e.weight),
    'value_mean': Mean.of(e.value, e.weight),
    'cont': Mean.of(e.cont),
  }
  return terms, others


def imagination_loss(
  world: World,
  params: Params,
  contexts: Batch,
  key: Array,
) -> tuple[Means, Means]:
  """Computes what imagination minimises, without the upkeep of the world model.

  Args:
    world: modules.
    params: of all modules, including `prior` and `value`.
    contexts: clips that dreams continue.
    key: all randomness.

  Returns:
    As `dream_losses`; `dream_weights` has the weights of the terms.
  """
  e = gather_experience(world, params, contexts, key)
  return dream_losses(world, params, jax.lax.stop_gradient(e))


def dream_weights(phase: ImaginationPhase) -> dict[str, float]:
  """Returns the weight of each term of `dream_losses`."""
  return {
    'positive': -phase.alpha,
    'negative': 1 - phase.alpha,
    'kl': phase.beta,
    'value': 1.0,
  }


def imagination_objective(world: World) -> Objective:
  """Returns what the phase learns."""
  phase, parts = world.config.phases.imagination, world.config.accumulate
  weights = dream_weights(phase)
  # PMPO uses the sign of the advantage: it has no scale to remove.
  plain = ('positive', 'negative', 'kl')
  if phase.world_rate:
    weights |= dict.fromkeys(UPKEEP, 1.0)

  def prepare(state: TrainState, batch: Batch | DreamBatch, key: Array):
    if phase.world_rate:
      if isinstance(batch, Batch):
        raise TypeError(
          f'phases.imagination.world_rate = {phase.world_rate}: needs batches '
          'of the type DreamBatch, with clips beside the contexts; got a Batch'
        )
      key, clips_key = jax.random.split(key)
    contexts = batch if isinstance(batch, Batch) else batch.contexts

    def dream(part: Array, contexts: Batch) -> Experience:
      own = key if parts == 1 else jax.random.fold_in(key, part)
      return gather_experience(world, state.all_params(), contexts, own)

    e = in_parts(dream, contexts, parts)
    if not phase.world_rate:
      return e
    clips = prepare_clips(
      world, state.all_params(), batch.clips, state.step, clips_key,
      phase='imagination',
    )  # fmt: skip
    return e.replace(clips=clips)

  def terms(params: Params, state: TrainState, e: Experience):
    params = {**state.frozen, **params}
    found, others = dream_losses(world, params, e)
    if phase.world_rate:
      kept, more = clip_losses(world, params, e.clips, 'prior')
      kept['prior'] = kept.pop('policy')
      found, others = {**found, **kept}, {**others, **more}
    return found, others

  def report(means: dict[str, Array]) -> Metrics:
    policy = sum(weights[k] * means.pop(k) for k in ('positive', 'negative'))
    means['policy'] = policy + phase.beta * means['kl']
    return {f'imagination/{k}': v for k, v in means.items()}

  return Objective(
    prepare=prepare,
    terms=terms,
    weights=weights,
    report=report,
    plain=plain,
  )


def make_imagination_step(
  world: World,
) -> Callable[
  [TrainState, Batch | DreamBatch, Array], tuple[TrainState, Metrics]
]:
  """Returns the pure train step `(state, batch, key) -> (state, metrics)`.

  The batch is a `Batch` of contexts; with `world_rate` a `DreamBatch`, which
  also has clips for the losses of finetuning.
  """
  optimizer = _optimizer(world)
  return make_step(imagination_objective(world), optimizer, world.config)
