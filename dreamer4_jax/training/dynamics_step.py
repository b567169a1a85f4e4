"""Train step of the dynamics: shortcut forcing (equation 7).

It is `objectives.shortcut_loss` of the clips' tokens, in its two halves: what
has no gradient, for the whole batch, and the pass and its losses, which may be
taken in parts.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

from flax import struct
from jax import lax
import jax.numpy as jnp

from dreamer4_jax import sharding
from dreamer4_jax.config import ForcingConfig
from dreamer4_jax.models import DynamicsOutput, Params, World
from dreamer4_jax.objectives import (
  Mean,
  Resting,
  ShortcutData,
  ShortcutLosses,
  group_size,
  prediction_losses,
  prepare_shortcut,
)
from dreamer4_jax.rollout import context_levels
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.schedule import bootstraps
from dreamer4_jax.training.state import TrainState, make_state
from dreamer4_jax.training.update import (
  Means,
  Metrics,
  Objective,
  in_parts,
  make_step,
)
from dreamer4_jax.types import Array, Batch, Levels, PyTree


@struct.dataclass
class Corrupted(ShortcutData):
  """Noisy tokens `[B, T, N_z, C]` of a dynamics pass, and what it is to learn.

  Attributes:
    trains: `[B]` bool, the row trains the dynamics; others are at the context
      level.
    batch: the clips, without frames.
  """

  trains: Array
  batch: Batch


def corrupt_batch(
  world: World,
  params: Params,
  batch: Batch,
  step: Array | int,
  key: Array,
  *,
  trains: Array | None = None,
  share: float = 1.0,
  phase: str = 'dynamics',
) -> Corrupted:
  """Encodes a batch, draws levels and noise, and computes the bootstrap target.

  Of the frames of the rows that train the dynamics, `forcing.bootstrap_share`
  draw a coarse step, exactly in expectation: if the rows of the extra passes
  hold more frames than that, each draws one with some probability.

  Nothing here is differentiated: the target is a stop-gradient by equation 7.

  Args:
    world: modules.
    params: entries `tokenizer`, `latents`, `dynamics`.
    batch: clips.
    step: `[]` int32; the two extra passes run only on steps that bootstrap.
    key: all randomness.
    trains: `[B]` bool, rows that train the dynamics, by default all. The others
      are put at the context level.
    share: about what share of rows does, spread evenly; decides which rows the
      passes run on. If it is too low for some group, fewer frames bootstrap.
    phase: decides which steps bootstrap.
  """
  c = world.config
  z1 = in_parts(lambda _, x: world.encode_clips(params, x), batch, c.accumulate)
  rows, devices = len(z1), sharding.batch_shards()
  if trains is None:
    trains = jnp.ones((rows,), bool)
  forcing, every = c.forcing, 1
  whole = round(1 / forcing.bootstrap_share)
  if rows // devices < whole:
    # A device cannot split its rows that finely: all of them, now and then.
    forcing, every = dataclasses.replace(forcing, bootstrap_share=1.0), whole
  # No more rows at a time than the gradient takes.
  most = max(rows // devices // c.accumulate, 1)

  def extra_pass(z: Array, levels: Levels, *given: PyTree) -> Array:
    taken = len(z) // devices
    pieces = next(
      n for n in range(1, taken + 1) if taken % n == 0 and taken // n <= most
    )

    def predict(_, part: PyTree) -> Array:
      *z_and_action, segment_ids = part
      return world.denoise(
        params, *z_and_action, segment_ids=segment_ids
      ).prediction

    return in_parts(predict, (z, levels, *given), pieces)

  resting = Resting(
    trains=trains,
    levels=context_levels(world, z1.shape[:2]),
    rows_per_group=group_size(rows // devices, forcing.bootstrap_share * share),
  )
  data = prepare_shortcut(
    extra_pass, z1, key,
    batch.prev_action, batch.prev_action_mask, batch.segment_ids,
    max_steps=c.dynamics.max_steps, lead_axes=2, forcing=forcing,
    bootstraps=bootstraps(step, c, phase, every), resting=resting,
  )  # fmt: skip
  return Corrupted(
    **vars(data), trains=trains, batch=batch.replace(frames=None)
  )


def denoise(
  world: World, params: Params, data: Corrupted, agent: Array | None = None
) -> DynamicsOutput:
  """Runs the dynamics over noisy clips, with or without the agent token."""
  return world.denoise(
    params,
    data.z_tau,
    data.levels,
    data.batch.prev_action,
    data.batch.prev_action_mask,
    agent=agent,
    segment_ids=data.batch.segment_ids,
  )


def dynamics_loss(
  world: World,
  params: Params,
  batch: Batch,
  key: Array,
  step: Array | int = 0,
) -> tuple[Means, Means]:
  """Computes what the dynamics minimises (equation 7 of the paper).

  Args:
    world: modules.
    params: entries `tokenizer`, `latents`, `dynamics`.
    batch: clips.
    key: all randomness.
    step: `[]` int32, number of the train step: not all of them bootstrap.

  Returns:
    The term `dynamics`, and the means `flow` and `bootstrap`.
  """
  data = corrupt_batch(world, params, batch, step, key)
  return denoising_losses(world, params, lax.stop_gradient(data))


def denoising_losses(
  world: World, params: Params, data: Corrupted
) -> tuple[Means, Means]:
  """Does what comes after `corrupt_batch` in `dynamics_loss`."""
  prediction = denoise(world, params, data).prediction
  loss, parts = frame_loss(prediction, data, world.config.forcing)
  return {'dynamics': loss}, parts


def frame_loss(
  prediction: Array, data: Corrupted, forcing: ForcingConfig
) -> tuple[Mean, Means]:
  """Mean of equation 7 over frames, each of which has one of the two terms.

  The two terms are one loss and are normalised as one. Each divided by its own
  running RMS, they lose their common scale, and the model falls into the
  trivial solution of the bootstrap term: always predicting the same frame is
  perfectly consistent, and a flow term that grows is divided by its own growth.

  Args:
    prediction: `[B, T, N_z, C]`.
    data: what it was predicted from; rows that train the dynamics count.
    forcing: how levels are weighted.

  Returns:
    The loss, and `flow` and `bootstrap` as means over their own frames.
  """
  losses = prediction_losses(prediction, data, forcing.low_weight)
  return frame_means(losses, data.trains, event_weights(data.batch, forcing))


def event_weights(batch: Batch, forcing: ForcingConfig) -> Array:
  """Returns `[B, T]` float32, `event_weight` where something is achieved."""
  event = (batch.reward != 0).any(axis=-1)
  return jnp.where(event, forcing.event_weight, 1.0)


def frame_means(
  losses: ShortcutLosses, rows: Array, weights: Array | float = 1.0
) -> tuple[Mean, dict[str, Mean]]:
  """Takes the means of `frame_loss`.

  Args:
    losses: `[B, T]` of frames.
    rows: `[B]` bool, whose frames count.
    weights: `[B, T]` of frames, in the loss alone.
  """
  weight = jnp.broadcast_to(rows[:, None], losses.flow.shape)
  return Mean.of(losses.loss, weight * weights), {
    'flow': Mean.of(losses.flow, weight & losses.is_flow),
    'bootstrap': Mean.of(losses.bootstrap, weight & ~losses.is_flow),
  }


def init_dynamics_state(world: World, key: Array, frozen: Params) -> TrainState:
  """Returns the initial state; `frozen` has entries `tokenizer`, `latents`."""
  params = world.init(key, ('dynamics',))
  optimizer = make_optimizer(world.config, 'dynamics')
  return make_state(params, frozen, optimizer, ('dynamics',))


def dynamics_objective(world: World) -> Objective:
  """Returns what the phase learns."""

  def prepare(state: TrainState, batch: Batch, key: Array) -> Corrupted:
    return corrupt_batch(world, state.all_params(), batch, state.step, key)

  def terms(params: Params, state: TrainState, data: Corrupted):
    del state
    return denoising_losses(world, params, data)

  return Objective(
    prepare=prepare,
    terms=terms,
    weights={'dynamics': 1.0},
    report=lambda means: {
      f'dynamics/{k}': means[k] for k in ('flow', 'bootstrap')
    },
  )


def make_dynamics_step(
  world: World,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
  """Returns the pure train step `(state, batch, key) -> (state, metrics)`."""
  optimizer = make_optimizer(world.config, 'dynamics')
  return make_step(dynamics_objective(world), optimizer, world.config)
