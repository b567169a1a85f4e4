"""Train step of the tokenizer: masked autoencoding of video (equation 5)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dreamer4_jax.config import TokenizerPhase
from dreamer4_jax.models import World
from dreamer4_jax.objectives import mse, patch_mask
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
  return make_state(params, {}, optimizer, ('mse', 'lpips'))


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

  def step(state: TrainState, batch: Batch, key: Array):
    mask = patch_mask(
      key, batch.frames.shape[:2], rows * cols, phase.max_mask_ratio
    )
    target = batch.frames.astype(jnp.float32) / 255.0

    def loss_fn(params):
      _, images = world.tokenizer.apply(
        {'params': params['tokenizer']},
        batch.frames,
        mask=mask,
        segment_ids=batch.segment_ids,
      )
      losses = {'mse': mse(images, target).mean()}
      if lpips is not None:
        losses['lpips'] = lpips(images, target).mean()
      scaled, rms = normalize_losses(losses, state.rms, {})
      total = scaled['mse'] + phase.lpips_weight * scaled.get('lpips', 0.0)
      metrics = {f'tokenizer/{k}': v for k, v in losses.items()}
      metrics['tokenizer/psnr'] = -10 * jnp.log10(losses['mse'])
      return total, (metrics, {**state.rms, **rms})

    return update(state, loss_fn, optimizer, phase.optimizer)

  return step


def latent_statistics(
  world: World, params, batches: list[Batch]
) -> dict[str, Array]:
  """Mean and standard deviation of the latents over a few batches.

  Args:
    world: modules.
    params: room `tokenizer`.
    batches: clips of the dataset.

  Returns:
    `mean` and `std`, each `[L, bottleneck_dim]`; std is at least 1e-3.
  """

  @jax.jit
  def moments(frames, segment_ids):
    z, _ = world.tokenizer.apply(
      {'params': params['tokenizer']},
      frames,
      segment_ids=segment_ids,
      method='encode',
    )
    return z.mean(axis=(0, 1)), jnp.square(z).mean(axis=(0, 1))

  pairs = [moments(b.frames, b.segment_ids) for b in batches]
  mean = sum(m for m, _ in pairs) / len(pairs)
  square = sum(s for _, s in pairs) / len(pairs)
  variance = jnp.maximum(square - mean**2, 0)
  return {'mean': mean, 'std': jnp.maximum(jnp.sqrt(variance), 1e-3)}
