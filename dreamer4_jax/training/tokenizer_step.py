"""Train step of the tokenizer: masked autoencoding of video (equation 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from einops import rearrange
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import TokenizerPhase
from dreamer4_jax.models import Params, Tokenizer, World
from dreamer4_jax.objectives import (
  Mean,
  load_lpips,
  mse,
  patch_mask,
  vector_mse,
)
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.state import TrainState, make_state
from dreamer4_jax.training.update import Means, Metrics, Objective, make_step
from dreamer4_jax.types import Array, Batch, Vectors

Lpips = Callable[[Array, Array], Array]
LPIPS_WEIGHT = 0.2


def init_tokenizer_state(
  world: World, key: Array, given: Params | None = None
) -> TrainState:
  """Returns the initial state, with logical-axis boxes."""
  del given
  params = world.init(key, ('tokenizer',))
  optimizer = make_optimizer(world.config, 'tokenizer')
  terms = ('mse', 'lpips', *(('vectors',) if world.config.vectors else ()))
  return make_state(params, {}, optimizer, terms)


def tokenizer_loss(
  tokenizer: Tokenizer,
  params: Params,
  frames: Array,
  key: Array,
  *,
  vectors: Vectors | None = None,
  segment_ids: Array | None = None,
  phase: TokenizerPhase | None = None,
  lpips: Lpips | None = None,
) -> tuple[Means, Means]:
  """Computes what the tokenizer minimises (equation 5 of the paper).

  Args:
    tokenizer: the module.
    params: its parameters.
    frames: `[B, T, H, W, C]` uint8.
    key: all randomness: which patches are hidden, noise on the latents.
    vectors: what is observed along with the frames, components `[B, T, n]`.
    segment_ids: `[B, T]` int32; frames see only their own segment.
    phase: hyperparameters, by default those of the paper.
    lpips: perceptual distance of images `[B, T, H, W, C]` in [0, 1] to
      `[B, T]`; None leaves the term out.

  Returns:
    Terms, from which `total` makes the loss: `mse` and, where they apply,
    `lpips` and `vectors`; and no other means.
  """
  phase = phase or TokenizerPhase()
  mask, noise = corruption(tokenizer, phase, frames.shape[:2], key)
  data = frames, vectors, mask, segment_ids, noise
  return reconstruction_losses(tokenizer, phase, params, data, lpips)


def corruption(
  tokenizer: Tokenizer, phase: TokenizerPhase, lead: tuple[int, int], key: Array
) -> tuple[Array, Array | None]:
  """Draws what is hidden from the encoder, and noise for the decoder.

  Args:
    tokenizer: the module.
    phase: hyperparameters.
    lead: `(B, T)`.
    key: all randomness.

  Returns:
    Mask `[B, T, patches + vectors]` bool, and noise `[B, T, L,
    bottleneck_dim]`, or None without `latent_noise`.
  """
  c = tokenizer.config
  mask_key, noise_key = jax.random.split(key)
  tokens = c.grid[0] * c.grid[1] + len(tokenizer.vectors)
  mask = patch_mask(mask_key, lead, tokens, phase.max_mask_ratio)
  if not phase.latent_noise:
    return mask, None
  shape = (*lead, c.num_latents, c.bottleneck_dim)
  return mask, frame_noise(noise_key, shape, phase.latent_noise)


def reconstruction_losses(
  tokenizer: Tokenizer,
  phase: TokenizerPhase,
  params: Params,
  data: tuple[Any, ...],
  lpips: Lpips | None = None,
) -> tuple[Means, Means]:
  """Does what comes after `corruption` in `tokenizer_loss`.

  Args:
    tokenizer: the module.
    phase: hyperparameters.
    params: of the tokenizer.
    data: frames, vectors, mask, segment ids, noise.
    lpips: as in `tokenizer_loss`.
  """
  frames, vectors, mask, segment_ids, noise = data
  _, decoded = tokenizer.apply(
    {'params': params},
    frames,
    vectors=vectors,
    mask=mask,
    segment_ids=segment_ids,
    noise=noise,
    method='reconstruct',
  )
  images = decoded.images
  target = frames.astype(jnp.float32) / 255.0
  terms = {'mse': Mean.of(mse(images, target))}
  if lpips is not None:
    terms['lpips'] = Mean.of(lpips(images, target))
  spread = {v.name: v.std for v in tokenizer.vectors}
  if spread:
    error = vector_mse(decoded.vectors, vectors, spread)
    terms['vectors'] = Mean.of(error)
  return terms, {}


def tokenizer_objective(world: World, lpips: Lpips | None = None) -> Objective:
  """Returns what the phase learns; arguments as in `make_tokenizer_step`."""
  tokenizer, phase = world.tokenizer, world.config.phases.tokenizer

  def prepare(state: TrainState, batch: Batch, key: Array):
    del state
    lead = batch.frames.shape[:2]
    mask, noise = corruption(tokenizer, phase, lead, key)
    return batch.frames, batch.vectors, mask, batch.segment_ids, noise

  def terms(params: Params, state: TrainState, data: tuple[Any, ...]):
    del state
    own = params['tokenizer']
    return reconstruction_losses(tokenizer, phase, own, data, lpips)

  def report(means: dict[str, Array]) -> Metrics:
    metrics = {f'tokenizer/{k}': v for k, v in means.items()}
    return {**metrics, 'tokenizer/psnr': -10 * jnp.log10(means['mse'])}

  weights = {'mse': 1.0}
  if lpips is not None:
    weights['lpips'] = LPIPS_WEIGHT
  if tokenizer.vectors:
    weights['vectors'] = 1.0
  return Objective(prepare=prepare, terms=terms, weights=weights, report=report)


def frame_noise(key: Array, shape: tuple[int, ...], most: float) -> Array:
  """Returns Gaussian noise, with an amount of its own for each frame.

  Args:
    key: all randomness.
    shape: `[B, T, ...]`.
    most: its standard deviation is drawn uniformly from 0 to this.
  """
  amount_key, key = jax.random.split(key)
  lead = (*shape[:2], *(1 for _ in shape[2:]))
  amount = jax.random.uniform(amount_key, lead, maxval=most)
  return amount * jax.random.normal(key, shape)


def make_tokenizer_step(
  world: World, lpips: Lpips | None = None
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
  """Returns the pure train step `(state, batch, key) -> (state, metrics)`.

  Args:
    world: modules.
    lpips: as in `tokenizer_loss`; by default that of
      `phases.tokenizer.lpips_path`.
  """
  path = world.config.phases.tokenizer.lpips_path
  if lpips is None and path:
    lpips = load_lpips(path)
  optimizer = make_optimizer(world.config, 'tokenizer')
  objective = tokenizer_objective(world, lpips)
  return make_step(objective, optimizer, world.config)


def latent_statistics(
  world: World, params, batches: list[Batch]
) -> dict[str, Array]:
  """Returns statistics of the latents, to standardise them for the dynamics.

  Args:
    world: modules.
    params: entry `tokenizer`.
    batches: clips of the dataset; each process has its own.

  Returns:
    `mean` and `std`, each `[L, bottleneck_dim]`; std is at least 1e-3.
  """

  @jax.jit
  def encode(frames, vectors, segment_ids):
    z, _ = world.latents(
      params, frames, vectors=vectors, segment_ids=segment_ids
    )
    return rearrange(z, 'b t l c -> (b t) l c')

  total, square, count = 0.0, 0.0, 0
  for batch in batches:
    z = encode(batch.frames, batch.vectors, batch.segment_ids)
    z = np.asarray(z, np.float64)
    total, square = total + z.sum(0), square + np.square(z).sum(0)
    count += len(z)
  total, square, count = map(_over_processes, (total, square, count))
  mean = total / count
  variance = square / count - mean**2
  std = np.maximum(np.sqrt(np.maximum(variance, 0)), 1e-3)
  table = lambda x: jnp.asarray(x, jnp.float32)
  return {'mean': table(mean), 'std': table(std)}


def _over_processes(x: np.ndarray | float) -> np.ndarray:
  """Sums what each process has found, so that all have the same."""
  x = np.ascontiguousarray(x, np.float64)
  if jax.process_count() == 1:
    return x
  # As bits: JAX would round to float32.
  bits = x.reshape(-1).view(np.uint32)
  everywhere = np.asarray(multihost_utils.process_allgather(bits))
  return everywhere.view(np.float64).sum(axis=0).reshape(x.shape)
