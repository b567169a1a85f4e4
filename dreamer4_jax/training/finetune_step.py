"""Train step of agent finetuning: world model, cloning and reward (phase 2).

Source: section 3.3 of arXiv 2509.24527. Batches are half uniform clips and
half clips in which a task is achieved, or soon after which it is. Uniform clips
are corrupted as in phase 1 and train the dynamics, except for a share of them.
That share and the relevant clips are corrupted to the context level, which is
what the agent token sees when imagining and when acting: relevant ones train
the policy, and both train reward and continuation. Clips of baselines, whose
prompt is not a task, train only the policy.
"""

from __future__ import annotations

from collections.abc import Callable

from flax import struct
import jax
import jax.numpy as jnp
import optax

from dreamer4_jax.models import Params, World, distributions
from dreamer4_jax.objectives import (
  Mean,
  TwoHot,
  multi_token_rewards,
  multi_token_targets,
)
from dreamer4_jax.training.dynamics_step import (
  Corrupted,
  corrupt_batch,
  denoise,
  frame_loss,
)
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.state import TrainState, make_state
from dreamer4_jax.training.update import Means, Metrics, Objective, make_step
from dreamer4_jax.types import Array, Batch

TERMS = ('dynamics', 'policy', 'reward', 'continuation')


@struct.dataclass
class Clips:
  """What a batch of finetuning trains.

  Attributes:
    noisy: the clips, noised.
    judged: `[B]` weight of each row in the losses of reward and continuation.
    expected: `[B]` mean of `judged` over draws: 1, or 0 where none is judged.
  """

  noisy: Corrupted
  judged: Array
  expected: Array


def init_finetune_state(
  world: World, key: Array, pretrained: Params
) -> TrainState:
  """Returns the initial state.

  Args:
    world: modules.
    key: initialises the task embedding and the heads.
    pretrained: entries `tokenizer`, `latents`, and `dynamics`, which is carried
      over as it is.
  """
  params = world.init(key, ('task', 'policy', 'reward', 'continuation'))
  params['dynamics'] = pretrained['dynamics']
  frozen = {k: v for k, v in pretrained.items() if k != 'dynamics'}
  return make_state(params, frozen, _optimizer(world), TERMS)


def _optimizer(world: World) -> optax.GradientTransformation:
  rates = {'dynamics': world.config.phases.finetune.dynamics_rate}
  return make_optimizer(world.config, 'finetune', rates)


def stand_ins(relevant: Array, share: float, key: Array) -> Array:
  """Chooses the uniform rows that go to the context level.

  Args:
    relevant: `[B]` bool.
    share: of the uniform rows; exact in expectation, and spread evenly.
    key: for all choices.

  Returns:
    `[B]` bool.
  """
  uniform = ~relevant
  count = uniform.sum()
  count_key, turn_key = jax.random.split(key)
  wanted = jnp.floor(count * share + jax.random.uniform(count_key))
  wanted = wanted.astype(jnp.int32)
  size = jnp.maximum(count, 1)
  turn = jax.random.randint(turn_key, (), 0, size)
  number = (jnp.cumsum(uniform) - 1 + turn) % size
  chosen = (number + 1) * wanted // size > number * wanted // size
  return uniform & chosen


def prepare_clips(
  world: World,
  params: Params,
  batch: Batch,
  step: Array | int,
  key: Array,
  phase: str = 'finetune',
) -> Clips:
  """Noises each row to its training levels; see the module docstring.

  Args:
    world: modules.
    params: entries `tokenizer`, `latents`, `dynamics`.
    batch: clips.
    step: `[]` int32.
    key: all randomness.
    phase: in which the losses are taken, `finetune` or `imagination`; only the
      former has clips of baselines.
  """
  settings = world.config.phases.finetune
  choice_key, key = jax.random.split(key)
  share = settings.context_share
  baselines = settings.baseline_share if phase == 'finetune' else 0.0
  moved = stand_ins(batch.relevant, share, choice_key)
  noisy = corrupt_batch(
    world, params, batch, step, key, phase=phase,
    trains=~(batch.relevant | moved),
    share=1 - settings.relevant_share - baselines,
  )  # fmt: skip
  # Those that were moved stand in for all uniform clips.
  weight = 1 / share if share else 0.0
  judged = jnp.where(batch.relevant, 1.0, jnp.where(moved, weight, 0.0))
  # A prompt that is not a task has neither reward nor continuation.
  tasks = (batch.task < world.config.num_tasks).all(axis=1)
  judged = jnp.where(tasks, judged, 0.0)
  expected = tasks & (batch.relevant | (share > 0))
  return Clips(
    noisy=noisy, judged=judged, expected=expected.astype(jnp.float32)
  )


def clip_losses(
  world: World,
  params: Params,
  clips: Clips,
  policy: str = 'policy',
) -> tuple[Means, Means]:
  """Computes all losses of phase 2.

  Args:
    world: modules.
    params: entries `dynamics`, `task`, `reward`, `continuation` and that of the
      cloned policy.
    clips: from `prepare_clips`.
    policy: name of the head that is cloned into.

  Returns:
    Terms `dynamics`, `policy`, `reward`, `continuation`; and other means.
  """
  token = world.agent_token(params, clips.noisy.batch.task)
  output = denoise(world, params, clips.noisy, token)
  dynamics, parts = frame_loss(
    output.prediction, clips.noisy, world.config.forcing
  )
  terms, others = agent_losses(world, params, output.agent, clips, policy)
  return {'dynamics': dynamics, **terms}, {**parts, **others}


def agent_losses(
  world: World,
  params: Params,
  h: Array,
  clips: Clips,
  policy: str = 'policy',
) -> tuple[Means, Means]:
  """Maximum likelihood of what lies n frames ahead, for all distances n.

  Args:
    world: modules.
    params: entries `reward`, `continuation` and that of the policy.
    h: `[B, T, D]` agent states.
    clips: targets; actions are cloned where `cloned`. Sums over rewards and
      continuations are divided by the `expected` weight: divided by what a
      small batch happens to hold, rare rows would count too little.
    policy: name of the head that is cloned into.

  Returns:
    Terms `policy`, `reward`, `continuation`; and other means.
  """
  agent, batch = world.config.agent, clips.noisy.batch
  twohot = TwoHot(agent.bins, agent.bin_limit)
  everywhere = jnp.ones(batch.cont.shape, bool)
  ids, distances = batch.segment_ids, agent.distances
  # All components share one mask.
  targets, mask = multi_token_targets(
    batch.action, batch.cloned, ids, distances
  )
  reward, seen = multi_token_rewards(batch.reward, batch.task, ids, distances)
  cont, _ = multi_token_targets(batch.cont, everywhere, ids, distances)
  logits = world.head(params, policy, h)
  log_prob = distributions.log_prob(logits, targets, world.space)
  entropy = distributions.entropy(logits, world.space)
  reward_logits = world.head(params, 'reward', h)
  cont_logits = world.head(params, 'continuation', h)
  decay = world.config.phases.finetune.distance_decay
  distance = decay ** jnp.arange(distances)[None, None]
  ahead = seen * distance
  total = (ahead * clips.expected[:, None, None]).sum()

  def judge(loss: Array) -> Mean:
    mean = Mean.of(loss, ahead * clips.judged[:, None, None])
    return mean.replace(weight=total)

  terms = {
    'policy': Mean.of(-log_prob, mask * distance),
    'reward': judge(twohot.loss(reward_logits, reward)),
    'continuation': judge(
      optax.sigmoid_binary_cross_entropy(cont_logits, cont)
    ),
  }
  error = jnp.abs(twohot.mean(reward_logits[:, :, 0]) - reward[:, :, 0])
  now = clips.judged[:, None] * everywhere
  others = {
    'policy_nll_now': Mean.of(-log_prob[..., 0], mask[..., 0]),
    'policy_entropy': Mean.of(entropy[..., 0], mask[..., 0]),
    'reward_error': Mean.of(error, now),
    'reward_error_on_events': Mean.of(error, now * (reward[:, :, 0] > 0)),
  }
  return terms, others


def finetune_loss(
  world: World,
  params: Params,
  batch: Batch,
  key: Array,
  step: Array | int = 0,
) -> tuple[Means, Means]:
  """Computes what finetuning minimises (section 3.3 of the paper).

  Args:
    world: modules.
    params: entries `tokenizer`, `latents`, `dynamics`, `task`, `policy`,
      `reward`, `continuation`.
    batch: clips.
    key: all randomness.
    step: `[]` int32, number of the train step: not all of them bootstrap.

  Returns:
    As `clip_losses`.
  """
  clips = prepare_clips(world, params, batch, step, key)
  return clip_losses(world, params, jax.lax.stop_gradient(clips))


def finetune_objective(world: World) -> Objective:
  """Returns what the phase learns."""

  def prepare(state: TrainState, batch: Batch, key: Array) -> Clips:
    return prepare_clips(world, state.all_params(), batch, state.step, key)

  def terms(params: Params, state: TrainState, clips: Clips):
    return clip_losses(world, {**state.frozen, **params}, clips)

  return Objective(
    prepare=prepare,
    terms=terms,
    weights=dict.fromkeys(TERMS, 1.0),
    report=lambda means: {f'finetune/{k}': v for k, v in means.items()},
  )


def make_finetune_step(
  world: World,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
  """Returns the pure train step `(state, batch, key) -> (state, metrics)`."""
  optimizer = _optimizer(world)
  return make_step(finetune_objective(world), optimizer, world.config)
