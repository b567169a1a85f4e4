"""What changes from one frame to the next, as numbers that actions show in.

A probe of few clips cannot learn what a picture is. It is told: the change
itself, how far the whole picture moved, and what stands where something
changed, wherever that is.
"""

from __future__ import annotations

import numpy as np

FINE = 64
"""Frames are shrunk by whole factors until no side is longer."""
_COARSE = 16
_SHIFTS = {'fine': 8, 'coarse': 4}
"""Pixels by which a picture may have moved, at two resolutions."""
_PATCH, _STRIDE = 8, 2
_PLACES = 48
"""Patches around what changed most."""
_FILTERS = 128


def shrink(frames: np.ndarray, side: int = FINE) -> np.ndarray:
  """Shrinks frames by averaging blocks.

  Args:
    frames: `[T, H, W, C]` uint8, or floats from 0 to 1.
    side: no side is longer afterwards.

  Returns:
    `[T, h, w, c]` float32 from 0 to 1, c at most 3. Up to a block less one
    pixel is cut off at the right and at the bottom.
  """
  scale = 1 / 255 if frames.dtype == np.uint8 else 1.0
  count, height, width = frames.shape[:3]
  by = max(1, -(-max(height, width) // side))
  h, w = max(1, height // by), max(1, width // by)
  down, across = min(by, height), min(by, width)
  frames = frames[:, : h * down, : w * across, :3]
  if by == 1:
    return frames.astype(np.float32) * np.float32(scale)
  blocks = frames.reshape(count, h, down, w, across, frames.shape[-1])
  return blocks.mean(axis=(2, 4), dtype=np.float32) * np.float32(scale)


def still(frames: np.ndarray) -> np.ndarray:
  """Describes single frames `[T, h, w, c]` of `shrink`: `[T, m]` float32."""
  return shrink(frames, _COARSE).reshape(len(frames), -1)


def moving(frames: np.ndarray) -> np.ndarray:
  """Describes the change from each frame to the next.

  Args:
    frames: `[T, h, w, c]` of `shrink`.

  Returns:
    `[T - 1, m]` float32: the change in blocks and its size, how far things
    moved along each strip, the correlation of both frames by offset, and random
    features of patches around what changed most.
  """
  small = shrink(frames, _COARSE)
  change = small[1:] - small[:-1]
  size = shrink(abs(frames[1:] - frames[:-1]), _COARSE).mean(axis=-1)
  count = len(change)
  return np.concatenate(
    [
      change.reshape(count, -1),
      size.reshape(count, -1),
      _strips(frames[1:] - frames[:-1]),
      _offsets(frames.mean(axis=-1), _SHIFTS['fine']),
      _offsets(small.mean(axis=-1), _SHIFTS['coarse']),
      _places(frames),
    ],
    axis=1,
  )


def _strips(change: np.ndarray) -> np.ndarray:
  """Sum and first moment `[T - 1, m]` of the change along rows and columns.

  A thing of one colour that stays in its strip, as a paddle does, changes the
  moment in proportion to its way, however small it is.
  """
  found = []
  for turned in (change, change.swapaxes(1, 2)):
    along = np.linspace(-1, 1, turned.shape[1], dtype=np.float32)
    wide = max(1, turned.shape[2] // (2 * _COARSE))
    for weight in (np.ones_like(along), along):
      moment = np.einsum('h,thwc->twc', weight, turned)
      count = moment.shape[1] // wide
      strips = moment[:, : count * wide].reshape(len(change), count, wide, -1)
      found.append(strips.sum(axis=2).reshape(len(change), -1))
  return np.concatenate(found, axis=1)


def _offsets(grey: np.ndarray, reach: int) -> np.ndarray:
  """Phase correlation `[T - 1, (2 r + 1)^2]` of each frame with the next.

  It is 1 at the offset by which a whole picture moved, and 0 elsewhere.
  """
  height, width = grey.shape[1:]
  window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]
  centred = (grey - grey.mean(axis=(1, 2), keepdims=True)) * window
  spectrum = np.fft.rfft2(centred).astype(np.complex64)
  cross = spectrum[1:] * spectrum[:-1].conj()
  size = abs(cross)
  cross /= size + 1e-4 * size.mean(axis=(1, 2), keepdims=True) + 1e-12
  found = np.fft.irfft2(cross, s=(height, width)).astype(np.float32)
  down, across = min(reach, (height - 1) // 2), min(reach, (width - 1) // 2)
  found = np.roll(found, (down, across), (1, 2))
  found = found[:, : 2 * down + 1, : 2 * across + 1]
  return found.reshape(len(found), -1)


def _places(frames: np.ndarray) -> np.ndarray:
  """Random features `[T - 1, m]` of patches, where most of the change is."""
  count, height, width, channels = frames.shape
  side = min(_PATCH, height, width)
  cut = np.lib.stride_tricks.sliding_window_view(frames, (side, side), (1, 2))
  cut = cut[:, ::_STRIDE, ::_STRIDE]  # [T, p, q, c, side, side], a view.
  rows, columns = cut.shape[1:3]
  rng = np.random.default_rng(2)
  size = 2 * side * side * channels
  filters = rng.standard_normal((size, _FILTERS), np.float32) / np.sqrt(size)
  changed = abs(frames[1:] - frames[:-1]).mean(axis=-1)
  weight = _box(changed, side)[:, ::_STRIDE, ::_STRIDE].reshape(count - 1, -1)
  places = np.argsort(weight, axis=1)[:, ::-1][:, :_PLACES]
  weight = np.take_along_axis(weight, places, axis=1)
  y, x = np.divmod(places, columns)
  t = np.arange(count - 1)[:, None]
  pair = np.stack([cut[t, y, x], cut[t + 1, y, x]], axis=2)
  # One product for the whole clip: thousands of small ones keep BLAS's threads
  # waiting for each other.
  seen = (pair.reshape(-1, size) - 0.5) @ filters
  seen = np.maximum(4 * seen, 0).reshape(*places.shape, _FILTERS)
  still = weight[:, :1] <= 1e-6
  weight = np.where(
    still, 0, weight / np.where(still, 1, weight.sum(1)[:, None])
  )
  where = np.stack(
    [np.ones(y.shape), y / rows - 0.5, x / columns - 0.5], axis=1
  )
  where = (where * weight[:, None]).astype(np.float32)
  return np.einsum('twp,tpf->twf', where, seen).reshape(count - 1, -1)


def _box(x: np.ndarray, side: int) -> np.ndarray:
  """Sums of `side` x `side` windows of `[T, h, w]`."""
  total = np.pad(x, ((0, 0), (1, 0), (1, 0)))
  total = total.cumsum(1, np.float64).cumsum(2)
  return (
    total[:, side:, side:]
    - total[:, :-side, side:]
    - total[:, side:, :-side]
    + total[:, :-side, :-side]
  )
