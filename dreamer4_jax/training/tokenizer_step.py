"""Train step of the tokenizer: masked autoencoding of video (equation 5)."""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import TokenizerPhase
from dreamer4_jax.models import Params, World
from dreamer4_jax.objectives import mse, patch_mask, vector_mse
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.state import (
  Metrics,
  TrainState,
  make_state,
  normalize_losses,
  update,
)
from dreamer4_jax.types import Array, Batch

Lpips = Callable[[Array, Array], Array]


def init_tokenizer_state(
  world: World, phase: TokenizerPhase, key: Array
) -> TrainState:
  """Returns the initial state (with logical-axis boxes)."""
  params = world.init(key, ('tokenizer',))
  optimizer = make_optimizer(phase.optimizer, phase.steps)
  terms = ('mse', 'lpips', *(('vectors',) if world.config.vectors else ()))
  return make_state(params, {}, optimizer, terms)


def make_tokenizer_step(
  world: World, phase: TokenizerPhase, lpips: Lpips | None = None
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
  """Returns the pure train step `(state, batch, key) -> (state, metrics)`.

  Args:
    world: modules.
    phase: hyperparameters.
    lpips: perceptual distance of images `[B, T, H, W, C]` in [0, 1] to
      `[B, T]`; None leaves the term out.
  """
  optimizer = make_optimizer(phase.optimizer, phase.steps)
  rows, cols = world.config.tokenizer.grid
  spread = {v.name: v.std for v in world.config.vectors}

  def loss_fn(params: Params, state: TrainState, batch: Batch, key: Array):
    mask = patch_mask(
      key,
      batch.frames.shape[:2],
      rows * cols + len(spread),
      phase.max_mask_ratio,
    )
    target = batch.frames.astype(jnp.float32) / 255.0
    _, decoded = world.tokenizer.apply(
      {'params': params['tokenizer']},
      batch.frames,
      vectors=batch.vectors,
      mask=mask,
      segment_ids=batch.segment_ids,
      method='reconstruct',
    )
    images = decoded.images
    losses = {'mse': mse(images, target).mean()}
    if lpips is not None:
      losses['lpips'] = lpips(images, target).mean()
    if spread:
      error = vector_mse(decoded.vectors, batch.vectors, spread)
      losses['vectors'] = error.mean()
    scaled, rms = normalize_losses(losses, state.rms, {})
    total = scaled['mse'] + phase.lpips_weight * scaled.get('lpips', 0.0)
    if spread:
      total += phase.vector_weight * scaled['vectors']
    metrics = {f'tokenizer/{k}': v for k, v in losses.items()}
    metrics['tokenizer/psnr'] = -10 * jnp.log10(losses['mse'])
    return total, (metrics, {**state.rms, **rms})

  def step(state: TrainState, batch: Batch, key: Array):
    return update(state, batch, key, loss_fn, optimizer, phase)

  return step


def latent_statistics(
  world: World, params, batches: list[Batch]
) -> dict[str, Array]:
  """Statistics of the latents, by which the dynamics sees them standardised.

  Standardised values of a small tokenizer are anything but independent: a few
  things, like walls, fill most of them, and what an action changes stands in
  directions of little variance, of which the flow loss takes no notice. With
  `dynamics.whitening_floor` f > 0, their correlation `U diag(s) U^T` is
  removed too, by `U diag(s + f)^(-1/2) U^T` (ZCA whitening).

  Args:
    world: modules.
    params: room `tokenizer`.
    batches: clips of the dataset, of each process its own; whitening needs
      many more frames than a frame has values.

  Returns:
    `mean` and `std`, each `[L, bottleneck_dim]`; std is at least 1e-3. If
    whitening is on, also `whiten` and its inverse `colour`, each
    `[L bottleneck_dim, L bottleneck_dim]`.
  """

  @jax.jit
  def encode(frames, vectors, segment_ids):
    z, _ = world.latents(
      params, frames, vectors=vectors, segment_ids=segment_ids
    )
    return rearrange(z, 'b t l c -> (b t) (l c)')

  total, square, count = 0.0, 0.0, 0
  for batch in batches:
    z = encode(batch.frames, batch.vectors, batch.segment_ids)
    z = np.asarray(z, np.float64)
    total, square, count = total + z.sum(0), square + z.T @ z, count + len(z)
  total, square, count = map(_over_processes, (total, square, count))
  mean = total / count
  covariance = square / count - np.outer(mean, mean)
  std = np.maximum(np.sqrt(np.maximum(np.diag(covariance), 0)), 1e-3)
  t = world.config.tokenizer
  table = lambda x: jnp.asarray(x, jnp.float32)
  shape = (t.num_latents, t.bottleneck_dim)
  stats = {'mean': table(mean.reshape(shape)), 'std': table(std.reshape(shape))}
  floor = world.config.dynamics.whitening_floor
  if floor:
    variance, basis = np.linalg.eigh(covariance / np.outer(std, std))
    scale = np.sqrt(np.maximum(variance, 0) + floor)
    stats['whiten'] = table((basis / scale) @ basis.T)
    stats['colour'] = table((basis * scale) @ basis.T)
  return stats


def _over_processes(x: np.ndarray | float) -> np.ndarray:
  """Sums what each process has found, so that all have the same."""
  x = np.ascontiguousarray(x, np.float64)
  if jax.process_count() == 1:
    return x
  # As bits: JAX would round to float32.
  bits = x.reshape(-1).view(np.uint32)
  everywhere = np.asarray(multihost_utils.process_allgather(bits))
  return everywhere.view(np.float64).sum(axis=0).reshape(x.shape)
