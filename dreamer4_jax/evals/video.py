"""Held-out errors of the tokenizer, and open-loop errors of the dynamics.

A mean over everything hides what is small and rare. So the worst frames, the
pixels that change and the worst region of each frame are measured as well.

A PSNR is `-10 log10` of the squared error averaged over pixels *and clips*, in
dB, of images in [0, 1] clipped to that range. (An average of per-clip PSNRs
would be infinite as soon as one still clip is repeated exactly.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses

from einops import reduce
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.data.held_out import CLIP_BATCHES
from dreamer4_jax.models import Params, World
from dreamer4_jax.rollout import Replay, imagine
from dreamer4_jax.types import Array, Batch

WORST = 16
"""Frames that are kept to be looked at."""
REGION = 8
"""Side of the regions of a frame, in pixels."""


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
  return _pixel_error(predicted, frames).mean(axis=(2, 3))


def _pixel_error(predicted: Array, frames: Array) -> Array:
  """Squared error `[B, T, H, W]` float32, the mean over channels."""
  target = frames.astype(jnp.float32) / 255.0
  return jnp.square(jnp.clip(predicted, 0, 1) - target).mean(axis=-1)


@struct.dataclass
class FrameErrors:
  """Squared errors of frames, in parts; `[...]` is `[B, T]` or `[N]`.

  Attributes:
    whole: `[...]` float32, mean over the pixels.
    region: `[...]` float32, mean over the pixels of the worst region.
    changed: `[...]` float32, sum over the pixels that changed.
    changes: `[...]` float32, how many changed.
  """

  whole: np.ndarray
  region: np.ndarray
  changed: np.ndarray
  changes: np.ndarray


def frame_errors(
  predicted: Array, frames: Array, changed: Array, side: int = REGION
) -> FrameErrors:
  """Measures predictions of frames.

  Args:
    predicted: `[B, T, H, W, C]` in [0, 1], clipped here.
    frames: `[B, T, H, W, C]` uint8.
    changed: `[B, T, H, W]` bool, pixels that changed.
    side: of the square regions in pixels; those at the lower and right edge may
      be smaller.
  """
  error = _pixel_error(predicted, frames)
  return FrameErrors(
    whole=error.mean(axis=(2, 3)),
    region=_regions(error, side).max(axis=(2, 3)),
    changed=(error * changed).sum(axis=(2, 3)),
    changes=changed.astype(jnp.float32).sum(axis=(2, 3)),
  )


def _regions(error: Array, side: int) -> Array:
  """Means `[B, T, rows, columns]` over the squares of a grid."""
  height, width = error.shape[2:]
  edge = [(0, 0), (0, 0), (0, -height % side), (0, -width % side)]

  def sums(x: Array) -> Array:
    pattern = 'b t (r y) (c x) -> b t r c'
    return reduce(jnp.pad(x, edge), pattern, 'sum', y=side, x=side)

  return sums(error) / sums(jnp.ones((1, 1, height, width)))


def summary(errors: FrameErrors) -> dict[str, float | None]:
  """Summarises errors, in dB.

  Args:
    errors: of frames.

  Returns:
    `psnr`; `psnr_worst_1pct`, of the worst hundredth of the frames, at least
    one; `psnr_changed`, of the pixels that changed, None if none did;
    `psnr_worst_regions`, of the worst region of each frame.
  """
  errors = jax.tree.map(np.asarray, errors)
  whole = np.sort(errors.whole.ravel())
  changes = np.sum(errors.changes, dtype=np.float64)
  changed = np.sum(errors.changed, dtype=np.float64)
  return {
    'psnr': psnr(whole.mean()),
    'psnr_worst_1pct': psnr(whole[-max(1, len(whole) // 100) :].mean()),
    'psnr_changed': psnr(changed / changes) if changes else None,
    'psnr_worst_regions': psnr(np.mean(errors.region)),
  }


@dataclasses.dataclass(frozen=True)
class Reconstructions:
  """What the tokenizer makes of held-out frames.

  Attributes:
    errors: `[N]` of all frames.
    worst: `[n, H, W, C]` uint8, those with the largest error, worst first.
    worst_decoded: same shape, uint8, as they are decoded.
    names: `[N, rows, columns]` int, the true tiles; None without tiles.
    names_decoded: same shape, the decoded ones.
  """

  errors: FrameErrors
  worst: np.ndarray
  worst_decoded: np.ndarray
  names: np.ndarray | None
  names_decoded: np.ndarray | None


def reconstructions(
  world: World,
  params: Params,
  batches: Sequence[Batch],
  *,
  side: int = REGION,
  name: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Reconstructions:
  """Encodes and decodes whole clips, unmasked.

  A pixel changed if it differs from the frame before in the same episode.

  Args:
    world: modules.
    params: entry `tokenizer`.
    batches: of frames, `B T` of them in each.
    side: of the regions in pixels.
    name: maps `[N, H, W, C]` uint8 to `[N, rows, columns]` numbers of tiles.
  """

  @jax.jit
  def reconstruct(params, batch):
    frames, segments = batch.frames, batch.segment_ids
    _, images = world.tokenizer.apply(
      {'params': params}, frames, vectors=batch.vectors, segment_ids=segments
    )
    same = segments[:, 1:] == segments[:, :-1]
    moved = (frames[:, 1:] != frames[:, :-1]).any(axis=-1)
    changed = jnp.pad(
      moved & same[..., None, None], [(0, 0), (1, 0), (0, 0), (0, 0)]
    )
    errors = frame_errors(images, frames, changed, side)
    return errors, jnp.round(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)

  found, names, names_decoded, worst = [], [], [], []
  for batch in batches:
    errors, decoded = jax.device_get(reconstruct(params['tokenizer'], batch))
    errors = jax.tree.map(np.ravel, errors)
    frames, decoded = (
      x.reshape(-1, *x.shape[2:]) for x in (np.asarray(batch.frames), decoded)
    )
    found.append(errors)
    # Apart from the batch, no more than these are held in memory.
    worst += [
      (errors.whole[i], frames[i], decoded[i])
      for i in np.argsort(-errors.whole, kind='stable')[:WORST]
    ]
    worst = sorted(worst, key=lambda x: -x[0])[:WORST]
    if name is not None:
      names.append(name(frames))
      names_decoded.append(name(decoded))
  return Reconstructions(
    errors=jax.tree.map(lambda *x: np.concatenate(x), *found),
    worst=np.stack([frame for _, frame, _ in worst]),
    worst_decoded=np.stack([decoded for _, _, decoded in worst]),
    names=np.concatenate(names) if names else None,
    names_decoded=np.concatenate(names_decoded) if names else None,
  )


def vector_errors(
  world: World, params: Params, batches: list[Batch]
) -> dict[str, float]:
  """Root mean squared error of unmasked vectors, in standard deviations.

  Args:
    world: modules.
    params: entry `tokenizer`.
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
  """Predictions and the truth.

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
    limit: batches to search.

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
    params: entries `tokenizer`, `latents`, `dynamics`.
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
    rollout = imagine(
      world,
      params,
      context,
      key,
      policy=Replay(*future),
      horizon=horizon,
      sampling_steps=sampling_steps,
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
  result: OpenLoop, horizons: Sequence[int], *, side: int = REGION
) -> dict[str, float | None]:
  """PSNR of frame h after the context, for every h in `horizons`.

  Args:
    result: dreams and the truth.
    horizons: frames after the context, from 1.
    side: of the regions in pixels.

  Returns:
    `psnr_h`, and the baselines `psnr_h_repeat_last`,
    `psnr_h_shuffled_actions`. For the dreams, also what `summary` names:
    `psnr_worst_1pct_h`, `psnr_worst_regions_h`, and `psnr_changed_h`, of the
    pixels that differ from the last context frame.
  """
  still = np.broadcast_to(result.last[:, None], result.frames.shape)
  changed = (result.frames != still).any(axis=-1)
  candidates = {
    '': result.dreamed,
    '_repeat_last': still,
    '_shuffled_actions': result.shuffled,
  }
  table: dict[str, float | None] = {}
  for baseline, images in candidates.items():
    for h in horizons:
      at = slice(h - 1, h)
      pixels = images[:, at].astype(np.float32) / 255.0
      errors = frame_errors(pixels, result.frames[:, at], changed[:, at], side)
      figures = summary(errors)
      table[f'psnr_{h}{baseline}'] = figures.pop('psnr')
      if not baseline:
        table |= {f'{name}_{h}': value for name, value in figures.items()}
  return table
