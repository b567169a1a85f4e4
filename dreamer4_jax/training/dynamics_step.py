"""Train step of the dynamics: shortcut forcing (equation 7).

Rows of a batch are split by position: of every `n = 1 / bootstrap_rows`
neighbouring rows the first bootstraps. The split is a reshape of the leading
axis, so each device keeps its own share and nothing is resharded.
"""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.config import DynamicsPhase
from dreamer4_jax.models import Params, World
from dreamer4_jax.objectives import (
  Levels,
  ShortcutLosses,
  bootstrap_velocity,
  corrupt,
  draw_levels,
  shortcut_losses,
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
from dreamer4_jax.types import Array, Batch, PyTree


@struct.dataclass
class Corrupted:
  """Noisy input of a dynamics pass, and what it is to learn.

  Attributes:
    z1: `[B, T, N_z, C]` clean tokens.
    z_tau: `[B, T, N_z, C]` noisy tokens.
    levels: their levels `[B, T]`.
    velocity: `[B, T, N_z, C]` bootstrap target, 0 where there is none.
  """

  z1: Array
  z_tau: Array
  levels: Levels
  velocity: Array


def take_rows(x: PyTree, every: int) -> PyTree:
  """First of each `every` rows, `[B, ...] -> [B / every, ...]`."""
  split = lambda a: rearrange(a, '(b e) ... -> b e ...', e=every)[:, 0]
  return jax.tree.map(split, x)


def put_rows(x: Array, every: int) -> Array:
  """Inverts `take_rows`, with zeros in the other rows."""
  rest = jnp.zeros((x.shape[0], every - 1, *x.shape[1:]), x.dtype)
  whole = jnp.concatenate([x[:, None], rest], axis=1)
  return rearrange(whole, 'b e ... -> (b e) ...')


def corrupt_batch(
  world: World,
  params: Params,
  batch: Batch,
  phase: DynamicsPhase,
  step: Array,
  key: Array,
) -> Corrupted:
  """Encodes a batch, draws levels and noise, and computes the bootstrap target.

  Nothing here is differentiated: the target is a stop-gradient by equation 7.

  Args:
    world: modules.
    params: rooms `tokenizer`, `latents`, `dynamics`.
    batch: clips.
    phase: hyperparameters.
    step: `[]` int32; the two extra passes run only from `bootstrap_start` on.
    key: all randomness.
  """
  max_steps = world.config.dynamics.max_steps
  every = round(1 / phase.bootstrap_rows)
  level_key, noise_key = jax.random.split(key)
  z1, _ = world.encode(
    params,
    batch.frames,
    vectors=batch.vectors,
    segment_ids=batch.segment_ids,
  )
  active = step >= phase.bootstrap_start
  active &= step % phase.bootstrap_every == 0
  row = jnp.arange(z1.shape[0]) % every == 0
  levels = draw_levels(
    level_key,
    z1.shape[:2],
    (row & active)[:, None],
    max_steps,
    phase.end_share,
  )
  noise = jax.random.normal(noise_key, z1.shape)
  z_tau = corrupt(z1, noise, levels.signal_index, max_steps)
  rows = take_rows(
    (z_tau, levels, batch.prev_action, batch.prev_action_mask,
     batch.segment_ids),
    every,
  )  # fmt: skip

  def extra_passes(params, rows):
    z, levels, prev_action, known, segment_ids = rows

    def denoise(z, signal_index, step_index):
      return world.denoise(
        params, z, signal_index, step_index, prev_action, known,
        segment_ids=segment_ids,
      ).prediction  # fmt: skip

    return bootstrap_velocity(denoise, z, levels, max_steps)

  velocity = jax.lax.cond(
    active,
    extra_passes,
    lambda params, rows: jnp.zeros_like(rows[0]),
    {'dynamics': params['dynamics']},
    rows,
  )
  # Without the stop the frozen tokenizer would be differentiated in phase 2.
  return jax.lax.stop_gradient(
    Corrupted(z1, z_tau, levels, put_rows(velocity, every))
  )


def dynamics_loss(losses: ShortcutLosses, rows: Array) -> tuple[Array, Metrics]:
  """Mean of equation 7 over frames, each of which has one of the two terms.

  The two terms are one loss and are normalised as one. Divided each by its own
  running RMS they lose their common scale, and the model falls into the trivial
  solution of the bootstrap term: predicting the same frame always is perfectly
  consistent, and a flow term that grows is divided by its own growth.

  Args:
    losses: per frame.
    rows: `[B]` weight of each row.

  Returns:
    The loss, and `flow` and `bootstrap` as means over their own frames.
  """
  weight = rows[:, None].astype(jnp.float32)
  is_flow = losses.is_flow.astype(jnp.float32) * weight
  each = jnp.where(losses.is_flow, losses.flow, losses.bootstrap)
  total = masked_mean(each, weight)
  return total, {
    'flow': masked_mean(losses.flow, is_flow),
    'bootstrap': masked_mean(losses.bootstrap, weight - is_flow),
  }


def init_dynamics_state(
  world: World, phase: DynamicsPhase, key: Array, frozen: Params
) -> TrainState:
  """Returns the initial state; `frozen` has rooms `tokenizer`, `latents`."""
  params = world.init(key, ('dynamics',))
  optimizer = make_optimizer(phase.optimizer, phase.steps)
  return make_state(params, frozen, optimizer, ('dynamics',))


def make_dynamics_step(
  world: World, phase: DynamicsPhase
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
  """Returns the pure train step `(state, batch, key) -> (state, metrics)`."""
  optimizer = make_optimizer(phase.optimizer, phase.steps)
  max_steps = world.config.dynamics.max_steps

  def loss_fn(params: Params, state: TrainState, batch: Batch, key: Array):
    data = corrupt_batch(world, state.rooms(), batch, phase, state.step, key)
    prediction = world.denoise(
      params,
      data.z_tau,
      data.levels.signal_index,
      data.levels.step_index,
      batch.prev_action,
      batch.prev_action_mask,
      segment_ids=batch.segment_ids,
    ).prediction
    losses = shortcut_losses(
      prediction, data.z1, data.z_tau, data.levels, data.velocity, max_steps
    )
    everyone = jnp.ones(prediction.shape[:1])
    loss, parts = dynamics_loss(losses, everyone)
    scaled, rms = normalize_losses({'dynamics': loss}, state.rms, {})
    metrics = {f'dynamics/{k}': v for k, v in parts.items()}
    return scaled['dynamics'], (metrics, rms)

  def step(state: TrainState, batch: Batch, key: Array):
    return update(state, batch, key, loss_fn, optimizer, phase)

  return step
