"""Train step of the dynamics: shortcut forcing (equation 7).

The two extra passes of the bootstrap target run on part of the rows only. A
batch is cut into groups of neighbouring rows, of each of which one bootstraps:
that is a reshape of the leading axis, so each device keeps its own share and
nothing is resharded.
"""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax import sharding
from dreamer4_jax.config import DynamicsPhase
from dreamer4_jax.models import DynamicsOutput, Params, World
from dreamer4_jax.objectives import (
  Mean,
  ShortcutLosses,
  bootstrap_velocity,
  corrupt,
  draw_levels,
  shortcut_losses,
)
from dreamer4_jax.rollout import context_levels
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.schedule import bootstraps
from dreamer4_jax.training.state import TrainState, make_state
from dreamer4_jax.training.update import Metrics, Objective, in_parts, update
from dreamer4_jax.types import Array, Batch, Levels, PyTree


@struct.dataclass
class Corrupted:
  """Noisy input of a dynamics pass, and what it is to learn.

  Attributes:
    z1: `[B, T, N_z, C]` clean tokens.
    z_tau: `[B, T, N_z, C]` noisy tokens.
    levels: their levels `[B, T]`.
    velocity: `[B, T, N_z, C]` bootstrap target, 0 where there is none.
    trains: `[B]` bool, the row trains the dynamics; others stand at the
      context level.
    batch: the clips, without frames.
  """

  z1: Array
  z_tau: Array
  levels: Levels
  velocity: Array
  trains: Array
  batch: Batch


def group_size(phase: DynamicsPhase, rows: int, share: float = 1.0) -> int:
  """Returns the size of the groups of which one row bootstraps.

  Args:
    phase: hyperparameters.
    rows: of a batch on one device.
    share: of the rows that train the dynamics.

  Returns:
    The largest divisor of `rows` that leaves a group no more such rows than
    `1 / bootstrap_rows`.
  """
  most = rows if share <= 0 else 1 / (phase.bootstrap_rows * share) + 1e-6
  return max(
    n for n in range(1, rows + 1) if rows % n == 0 and n <= max(most, 1)
  )


def take_rows(x: PyTree, place: Array) -> PyTree:
  """Takes one row of each group, `[B, ...] -> [G, ...]`.

  Args:
    x: tree of arrays.
    place: `[G]` int, which row of its group.
  """

  def take(a: Array) -> Array:
    groups = rearrange(a, '(g e) ... -> g e ...', g=len(place))
    index = place.reshape(-1, *(1,) * (groups.ndim - 1))
    return jnp.take_along_axis(groups, index, axis=1)[:, 0]

  return jax.tree.map(take, x)


def put_rows(x: Array, place: Array, size: int) -> Array:
  """Inverts `take_rows` of groups of `size`, with zeros in the other rows."""
  own = jnp.arange(size)[None] == place[:, None]
  own = own.reshape(*own.shape, *(1,) * (x.ndim - 1))
  whole = jnp.where(own, x[:, None], jnp.zeros((), x.dtype))
  return rearrange(whole, 'g e ... -> (g e) ...')


def corrupt_batch(
  world: World,
  params: Params,
  batch: Batch,
  phase: DynamicsPhase,
  step: Array,
  key: Array,
  *,
  trains: Array | None = None,
  share: float = 1.0,
) -> Corrupted:
  """Encodes a batch, draws levels and noise, and computes the bootstrap target.

  Of the frames of the rows that train the dynamics, a share `bootstrap_rows`
  draws a coarse step, in expectation exactly: where rows for the extra passes
  hold more frames than that, each of them does with a probability.

  Nothing here is differentiated: the target is a stop-gradient by equation 7.

  Args:
    world: modules.
    params: rooms `tokenizer`, `latents`, `dynamics`.
    batch: clips.
    phase: hyperparameters.
    step: `[]` int32; the two extra passes run only on steps that bootstrap.
    key: all randomness.
    trains: `[B]` bool, rows that train the dynamics, by default all. The others
      are put at the context level.
    share: about how many do, spread evenly; settles which rows the passes run
      on. Where it is too low for some group, fewer frames bootstrap.
  """
  c, parts = world.config.dynamics, phase.accumulate
  level_key, noise_key, row_key = jax.random.split(key, 3)
  z1 = in_parts(lambda _, x: world.encode_clips(params, x), batch, parts)
  rows = len(z1)
  if trains is None:
    trains = jnp.ones((rows,), bool)
  own_rows = rows // sharding.batch_shards()
  size = group_size(phase, own_rows, share)
  groups = rearrange(trains, '(g e) -> g e', e=size)
  place = jnp.argmax(groups, axis=1)
  chosen = trains & put_rows(groups.any(axis=1), place, size)
  frames = jnp.maximum(chosen.sum(), 1)
  drawn = jax.random.bernoulli(
    row_key, phase.bootstrap_rows * trains.sum() / frames, z1.shape[:2]
  )
  active = bootstraps(step, phase)
  levels = draw_levels(
    level_key,
    z1.shape[:2],
    chosen[:, None] & drawn & active,
    c.max_steps,
    phase.end_share,
    phase.clear_share,
  )
  frame = trains[:, None]
  levels = jax.tree.map(
    lambda own, other: jnp.where(frame, own, other),
    levels,
    context_levels(world, z1.shape[:2]),
  )
  noise = jax.random.normal(noise_key, z1.shape)
  z_tau = corrupt(z1, noise, levels)

  def extra_passes(params, rows):
    def velocity(_, rows):
      z, levels, prev_action, known, segment_ids = rows

      def denoise(z, levels):
        return world.denoise(
          params, z, levels, prev_action, known, segment_ids=segment_ids
        ).prediction

      return bootstrap_velocity(denoise, z, levels)

    # No more rows at a time than the gradient takes.
    taken = own_rows // size
    most = max(own_rows // parts, 1)
    pieces = next(
      n for n in range(1, taken + 1) if taken % n == 0 and taken // n <= most
    )
    return in_parts(velocity, rows, pieces)

  velocity = jax.lax.cond(
    active,
    extra_passes,
    lambda params, rows: jnp.zeros_like(rows[0]),
    {'dynamics': params['dynamics']},
    take_rows(
      (z_tau, levels, batch.prev_action, batch.prev_action_mask,
       batch.segment_ids),
      place,
    ),
  )  # fmt: skip
  return Corrupted(
    z1=z1,
    z_tau=z_tau,
    levels=levels,
    velocity=put_rows(velocity, place, size),
    trains=trains,
    batch=batch.replace(frames=None),
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
  world: World, phase: DynamicsPhase, prediction: Array, data: Corrupted
) -> tuple[Mean, dict[str, Mean]]:
  """Mean of equation 7 over frames, each of which has one of the two terms.

  The two terms are one loss and are normalised as one. Divided each by its own
  running RMS they lose their common scale, and the model falls into the trivial
  solution of the bootstrap term: predicting the same frame always is perfectly
  consistent, and a flow term that grows is divided by its own growth.

  Args:
    world: modules.
    phase: hyperparameters.
    prediction: `[B, T, N_z, C]`.
    data: what it was predicted from; rows that train the dynamics count.

  Returns:
    The loss, and `flow` and `bootstrap` as means over their own frames.
  """
  losses = shortcut_losses(
    prediction, data.z1, data.z_tau, data.levels, data.velocity,
    phase.low_weight,
  )  # fmt: skip
  return frame_means(losses, data.trains)


def frame_means(
  losses: ShortcutLosses, rows: Array
) -> tuple[Mean, dict[str, Mean]]:
  """Takes the means of `dynamics_loss` over the frames of `rows [B]`."""
  weight = jnp.broadcast_to(rows[:, None], losses.flow.shape)
  each = jnp.where(losses.is_flow, losses.flow, losses.bootstrap)
  return Mean.of(each, weight), {
    'flow': Mean.of(losses.flow, weight & losses.is_flow),
    'bootstrap': Mean.of(losses.bootstrap, weight & ~losses.is_flow),
  }


def init_dynamics_state(
  world: World, phase: DynamicsPhase, key: Array, frozen: Params
) -> TrainState:
  """Returns the initial state; `frozen` has rooms `tokenizer`, `latents`."""
  params = world.init(key, ('dynamics',))
  optimizer = make_optimizer(phase.optimizer, phase.steps)
  return make_state(params, frozen, optimizer, ('dynamics',))


def dynamics_objective(world: World, phase: DynamicsPhase) -> Objective:
  """Returns what the phase learns."""

  def prepare(state: TrainState, batch: Batch, key: Array) -> Corrupted:
    return corrupt_batch(world, state.rooms(), batch, phase, state.step, key)

  def terms(params: Params, state: TrainState, data: Corrupted):
    del state
    prediction = denoise(world, params, data).prediction
    loss, parts = dynamics_loss(world, phase, prediction, data)
    return {'dynamics': loss}, parts

  return Objective(
    prepare=prepare,
    terms=terms,
    weights={'dynamics': 1.0},
    report=lambda means: {
      f'dynamics/{k}': means[k] for k in ('flow', 'bootstrap')
    },
  )


def make_dynamics_step(
  world: World, phase: DynamicsPhase
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
  """Returns the pure train step `(state, batch, key) -> (state, metrics)`."""
  optimizer = make_optimizer(phase.optimizer, phase.steps)
  objective = dynamics_objective(world, phase)

  def step(state: TrainState, batch: Batch, key: Array):
    return update(state, batch, key, objective, optimizer, phase)

  return step
