"""Train step of agent finetuning: world model, cloning and reward (phase 2).

Source: section 3.3 of arXiv 2509.24527. Batches are half uniform clips and
half clips in which a task is achieved. Uniform clips are corrupted as in
phase 1 and train the dynamics. Relevant clips are corrupted to the context
level, which is what the agent token sees when imagining and when acting, and
train the policy. Reward and continuation learn from both.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dreamer4_jax.config import FinetunePhase
from dreamer4_jax.models import Params, World, distributions
from dreamer4_jax.objectives import (
  TwoHot,
  corrupt,
  finest,
  multi_token_targets,
  shortcut_losses,
)
from dreamer4_jax.training.dynamics_step import (
  Corrupted,
  corrupt_batch,
  dynamics_loss,
)
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.state import (
  Metrics,
  TrainState,
  make_state,
  masked_mean,
  normalize_losses,
  update,
)
from dreamer4_jax.types import Array, Batch

TERMS = ('dynamics', 'policy', 'reward', 'continuation')


def init_finetune_state(
  world: World, phase: FinetunePhase, key: Array, pretrained: Params
) -> TrainState:
  """Returns the initial state.

  Args:
    world: modules.
    phase: hyperparameters.
    key: initialises the task embedding and the heads.
    pretrained: rooms `tokenizer`, `latents`, and `dynamics`, which is carried
      over as it is.
  """
  rooms = ('task', 'policy', 'reward', 'continuation')
  params = world.init(key, rooms)
  params['dynamics'] = pretrained['dynamics']
  frozen = {room: pretrained[room] for room in ('tokenizer', 'latents')}
  optimizer = _optimizer(phase)
  return make_state(params, frozen, optimizer, TERMS)


def _optimizer(phase: FinetunePhase) -> optax.GradientTransformation:
  rates = {'dynamics': phase.dynamics_rate}
  return make_optimizer(phase.optimizer, phase.steps, rates)


def agent_losses(
  world: World,
  phase: FinetunePhase,
  params: Params,
  h: Array,
  batch: Batch,
) -> tuple[dict[str, Array], Metrics]:
  """Likelihoods of the heads with multi-token prediction.

  Args:
    world: modules.
    phase: hyperparameters.
    params: rooms `policy`, `reward`, `continuation`.
    h: `[B, T, D]` agent states.
    batch: targets; behaviour is cloned from rows with `relevant`.

  Returns:
    Terms `policy`, `reward`, `continuation`; and metrics.
  """
  agent = world.config.agent
  twohot = TwoHot(agent.bins, agent.bin_limit)
  everywhere = jnp.ones(batch.reward.shape, bool)

  def ahead(x, valid):
    return multi_token_targets(x, valid, batch.segment_ids, agent.distances)

  # All components share one mask; it is the same for each.
  cloned = batch.action_mask & batch.relevant[:, None]
  targets, mask = {}, None
  for name, action in batch.action.items():
    targets[name], mask = ahead(action, cloned)
  logits = world.head(params, 'policy', h)
  log_prob = distributions.log_prob(logits, targets, world.space)
  reward, seen = ahead(batch.reward, everywhere)
  reward_logits = world.head(params, 'reward', h)
  cont, _ = ahead(batch.cont, everywhere)
  cont_logits = world.head(params, 'continuation', h)
  entropy = distributions.entropy(logits, world.space)
  distance = phase.distance_decay ** jnp.arange(agent.distances)[None, None]
  terms = {
    'policy': masked_mean(-log_prob, mask * distance),
    'reward': masked_mean(twohot.loss(reward_logits, reward), seen * distance),
    'continuation': masked_mean(
      optax.sigmoid_binary_cross_entropy(cont_logits, cont), seen * distance
    ),
  }
  error = jnp.abs(twohot.mean(reward_logits[:, :, 0]) - batch.reward)
  metrics = {
    'finetune/policy_nll_now': masked_mean(-log_prob[..., 0], mask[..., 0]),
    'finetune/policy_entropy': masked_mean(entropy[..., 0], mask[..., 0]),
    'finetune/reward_error': error.mean(),
    'finetune/reward_error_on_events': masked_mean(error, batch.reward > 0),
  }
  return terms, metrics


def _relevant_at_context(
  world: World, data: Corrupted, relevant: Array, key: Array
) -> Corrupted:
  """Puts rows with `relevant [B]` at the context level."""
  c = world.config.dynamics
  index, last = c.context_index, finest(c.max_steps)
  noise = jax.random.normal(key, data.z1.shape)
  z = corrupt(data.z1, noise, jnp.full(noise.shape[:2], index), c.max_steps)
  frame = relevant[:, None]
  levels = data.levels.replace(
    signal_index=jnp.where(frame, index, data.levels.signal_index),
    step_index=jnp.where(frame, last, data.levels.step_index),
  )
  z_tau = jnp.where(relevant[:, None, None, None], z, data.z_tau)
  return data.replace(z_tau=z_tau, levels=levels)


def make_finetune_step(
  world: World, phase: FinetunePhase
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
  """Returns the pure train step `(state, batch, key) -> (state, metrics)`."""
  optimizer = _optimizer(phase)
  max_steps = world.config.dynamics.max_steps
  weights = {
    'dynamics': phase.dynamics_weight,
    'policy': phase.policy_weight,
    'reward': phase.reward_weight,
    'continuation': phase.cont_weight,
  }

  def loss_fn(params: Params, state: TrainState, batch: Batch, key: Array):
    key, context_key = jax.random.split(key)
    data = corrupt_batch(world, state.rooms(), batch, phase, state.step, key)
    data = _relevant_at_context(world, data, batch.relevant, context_key)
    output = world.denoise(
      params,
      data.z_tau,
      data.levels.signal_index,
      data.levels.step_index,
      batch.prev_action,
      batch.prev_action_mask,
      agent=world.agent_token(params, batch.task),
      segment_ids=batch.segment_ids,
    )
    losses = shortcut_losses(
      output.prediction, data.z1, data.z_tau, data.levels, data.velocity,
      max_steps,
    )  # fmt: skip
    uniform = 1.0 - batch.relevant.astype(jnp.float32)
    dynamics, parts = dynamics_loss(losses, uniform)
    terms, metrics = agent_losses(world, phase, params, output.agent, batch)
    terms['dynamics'] = dynamics
    active = {
      'dynamics': uniform.sum() > 0,
      'policy': (batch.relevant[:, None] & batch.action_mask).any(),
    }
    scaled, rms = normalize_losses(terms, state.rms, active)
    metrics.update({f'finetune/{k}': v for k, v in {**terms, **parts}.items()})
    total = sum(weights[k] * v for k, v in scaled.items())
    return total, (metrics, rms)

  def step(state: TrainState, batch: Batch, key: Array):
    return update(state, batch, key, loss_fn, optimizer, phase)

  return step
