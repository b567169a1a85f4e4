"""Frames and numbers as the format wants them, for all converters."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Brings an image `[H, W, 3]` uint8 to a height and width by averaging."""
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
  # Rounding may leave the interval by a hair.
  return np.clip(2 * (value - low) / width - 1, -1, 1).astype(np.float32)


def reason(error: Exception) -> str:
  """Returns an error of some library in one short line."""
  return f'{type(error).__name__}: {error}'.splitlines()[0][:200]
