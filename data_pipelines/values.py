"""Frames and numbers as the format requires, for all converters."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.episodes import EpisodeError


def rgb(name: str, images: Any, *, steps: bool = False) -> np.ndarray:
  """Returns what a field holds as images with three channels.

  Args:
    name: of the field, for errors.
    images: `[H, W, 1]` or `[H, W, 3]` uint8; grey is repeated.
    steps: whether there is a leading axis of steps.

  Raises:
    EpisodeError: it has another shape or dtype.
  """
  images = np.asarray(images)
  axes = (*(['steps'] if steps else []), 'height', 'width', '3')
  if (
    images.ndim != len(axes)
    or images.shape[-1] not in (1, 3)
    or images.dtype != np.uint8
  ):
    raise EpisodeError(
      f'{name}: found {images.dtype} of shape {images.shape}, expected '
      f'uint8 ({", ".join(axes)})'
    )
  return images.repeat(3, -1) if images.shape[-1] == 1 else images


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes an image `[H, W, 3]` uint8 to a height and width by averaging."""
  if image.shape[:2] == tuple(size):
    return image
  picture = Image.fromarray(image)
  return np.asarray(picture.resize(size[::-1], Image.Resampling.BOX))


def scaled(value: Any, low: Any, high: Any) -> np.ndarray:
  """Stretches values `[..., n]` from their bounds `[n]` to [-1, 1], float32.

  Where both bounds are the same the result is -1.
  """
  low, high = np.asarray(low), np.asarray(high)
  width = np.where(high > low, high - low, 1.0)
  # Rounding may overshoot the interval slightly.
  return np.clip(2 * (value - low) / width - 1, -1, 1).astype(np.float32)


def reason(error: Exception) -> str:
  """Returns a library's error as one short line."""
  return f'{type(error).__name__}: {error}'.splitlines()[0][:200]
