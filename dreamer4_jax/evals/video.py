"""Held-out PSNR of the tokenizer, and open-loop PSNR of the dynamics.

A PSNR is `-10 log10` of the squared error averaged over pixels *and clips*, in
dB, of images in [0, 1] clipped to that range. (Averaging per-clip PSNRs would
be infinite as soon as one still clip is repeated exactly.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.models import Params, World
from dreamer4_jax.rollout import fixed_actions, imagine
from dreamer4_jax.types import Array, Batch

CLIP_BATCHES = 200
"""Batches that are looked through for clips within one episode."""


def psnr(squared_error: float) -> float:
  """Peak signal-to-noise ratio in dB of images in [0, 1]."""
  return float(-10 * np.log10(max(float(squared_error), 1e-10)))


def squared_error(predicted: Array, frames: Array) -> Array:
  """Mean squared error per frame.

  Args:
    predicted: `[B, T, H, W, C]` in [0, 1], clipped here.
    frames: `[B, T, H, W, C]` uint8.

  Returns:
    `[B, T]` float32.
  """
  target = frames.astype(jnp.float32) / 255.0
  error = jnp.square(jnp.clip(predicted, 0, 1) - target)
  return error.mean(axis=(2, 3, 4))


def tokenizer_psnr(world: World, params: Params, batches: list[Batch]) -> float:
  """PSNR of unmasked reconstruction over whole clips, in dB."""

  @jax.jit
  def reconstruct(params, batch):
    _, images = world.tokenizer.apply(
      {'params': params},
      batch.frames,
      vectors=batch.vectors,
      segment_ids=batch.segment_ids,
    )
    return squared_error(images, batch.frames).mean()

  errors = [reconstruct(params['tokenizer'], batch) for batch in batches]
  return psnr(np.mean(jax.device_get(errors)))


def vector_errors(
  world: World, params: Params, batches: list[Batch]
) -> dict[str, float]:
  """Root mean squared error of unmasked vectors, in standard deviations.

  Args:
    world: modules.
    params: room `tokenizer`.
    batches: of frames and vectors.

  Returns:
    By name; empty without vectors.
  """

  @jax.jit
  def reconstruct(params, batch):
    _, decoded = world.tokenizer.apply(
      {'params': params},
      batch.frames,
      vectors=batch.vectors,
      segment_ids=batch.segment_ids,
      method='reconstruct',
    )
    errors = {}
    for part in world.config.vectors:
      off = decoded.vectors[part.name] - batch.vectors[part.name]
      std = jnp.asarray(part.std, jnp.float32)[None, None]
      errors[part.name] = jnp.square(off / std).mean()
    return errors

  if not world.config.vectors:
    return {}
  errors = [reconstruct(params['tokenizer'], batch) for batch in batches]
  return jax.tree.map(
    lambda *x: float(np.sqrt(np.mean(x))), *jax.device_get(errors)
  )


@struct.dataclass
class OpenLoop:
  """Predictions beside the truth.

  Attributes:
    frames: `[B, H, H, W, C]` uint8 true frames after the context.
    dreamed: same shape, uint8, the model given the true actions.
    shuffled: same shape, uint8, given the actions of other clips.
    last: `[B, H, W, C]` uint8 last context frame.
  """

  frames: np.ndarray
  dreamed: np.ndarray
  shuffled: np.ndarray
  last: np.ndarray


def one_episode_clips(
  batches: Iterator[Batch], clips: int, limit: int = CLIP_BATCHES
) -> Batch:
  """Collects clips that stay in one episode.

  Args:
    batches: loader of the held-out split.
    clips: number of clips wanted.
    limit: batches to look through.

  Raises:
    ValueError: fewer such clips were found than wanted.
  """
  found: list[Batch] = []
  for _, batch in zip(range(limit), batches, strict=False):
    whole = (batch.segment_ids == batch.segment_ids[:, :1]).all(axis=1)
    for row in np.flatnonzero(whole):
      found.append(jax.tree.map(lambda x, r=row: x[r], batch))
    if len(found) >= clips:
      return jax.tree.map(lambda *x: np.stack(x), *found[:clips])
  raise ValueError(
    f'eval.clips = {clips}: only {len(found)} held-out clips of '
    f'{batch.frames.shape[1]} frames lie within one episode; use shorter '
    'horizons, fewer clips or longer episodes'
  )


def open_loop(
  world: World,
  params: Params,
  clips: Batch,
  key: Array,
  *,
  context_frames: int,
  sampling_steps: int,
) -> OpenLoop:
  """Predicts the end of each clip from its beginning and the actions.

  Args:
    world: modules.
    params: rooms `tokenizer`, `latents`, `dynamics`.
    clips: `[B, context + horizon, ...]`, each within one episode.
    key: all randomness; the same for true and shuffled actions.
    context_frames: real frames given.
    sampling_steps: K.
  """
  horizon = clips.frames.shape[1] - context_frames
  context = jax.tree.map(
    lambda x: x[:, :context_frames] if x.ndim > 1 else x, clips
  )
  future = jax.tree.map(
    lambda x: x[:, context_frames:], (clips.prev_action, clips.prev_action_mask)
  )

  @jax.jit
  def dream(params, context, future):
    actions, known = future
    rollout = imagine(
      world,
      params,
      context,
      key,
      policy=fixed_actions(actions),
      horizon=horizon,
      sampling_steps=sampling_steps,
      with_agent=False,
      known=known,
    )
    past = world.encode_clips(params, context)
    z = jnp.concatenate([past, rollout.z], axis=1)
    images, _ = world.decode(params, z)
    images = jnp.clip(images[:, context_frames:], 0, 1)
    return jnp.round(images * 255).astype(jnp.uint8)

  others = jax.tree.map(lambda x: np.roll(x, 1, axis=0), future)
  return OpenLoop(
    frames=clips.frames[:, context_frames:],
    dreamed=jax.device_get(dream(params, context, future)),
    shuffled=jax.device_get(dream(params, context, others)),
    last=clips.frames[:, context_frames - 1],
  )


def open_loop_psnr(
  result: OpenLoop, horizons: Sequence[int]
) -> dict[str, float]:
  """PSNR of frame h after the context, for every h in `horizons`.

  Returns:
    `psnr_h`, and the baselines `psnr_h_repeat_last`,
    `psnr_h_shuffled_actions`.
  """
  still = np.broadcast_to(result.last[:, None], result.frames.shape)
  candidates = {
    '': result.dreamed,
    '_repeat_last': still,
    '_shuffled_actions': result.shuffled,
  }
  table = {}
  for name, images in candidates.items():
    pixels = images.astype(np.float32) / 255.0
    error = np.asarray(squared_error(pixels, result.frames)).mean(axis=0)
    for h in horizons:
      table[f'psnr_{h}{name}'] = psnr(error[h - 1])
  return table
