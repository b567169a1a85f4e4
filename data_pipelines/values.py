"""Frames and numbers as the format requires, for all converters."""

from __future__ import annotations

from typing import Any

import numpy as np

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


def scaled(name: str, value: Any, low: Any, high: Any) -> np.ndarray:
  """Stretches values from their bounds to [-1, 1].

  Where both bounds are the same the result is -1.

  Args:
    name: of the field, for errors.
    value: `[T, n]`.
    low: `[n]` least values.
    high: `[n]` greatest values.

  Returns:
    `[T, n]` float32.

  Raises:
    EpisodeError: a value lies outside its bounds, by more than rounding.
  """
  wrong = np.argwhere(outside(value, low, high))
  if len(wrong):
    row, place = wrong[0]
    raise EpisodeError(
      f'{name}: found {np.asarray(value)[row].tolist()} in row {row}, expected '
      f'{np.asarray(low)[place]} to {np.asarray(high)[place]} at place {place}'
    )
  low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
  width = np.where(high > low, high - low, 1.0)
  # Rounding may overshoot the interval slightly.
  return np.clip(2 * (value - low) / width - 1, -1, 1).astype(np.float32)


def outside(value: Any, low: Any, high: Any) -> np.ndarray:
  """Returns where values `[T, n]` lie outside bounds `[n]`, rounding aside."""
  low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
  # Float32 keeps seven digits of the greater of the two bounds.
  slack = 1e-6 * np.maximum(np.maximum(np.abs(low), np.abs(high)), high - low)
  return (value < low - slack) | (value > high + slack)


def text(name: str, value: Any) -> str:
  """Returns what a field holds as text.

  Args:
    name: of the field, for errors.
    value: text, bytes in UTF-8, several of them, or an array of the codes of
      such bytes, with zeros behind them.

  Raises:
    EpisodeError: it is no text, such as an index or an embedding.
  """
  if isinstance(value, str):
    return value
  if isinstance(value, bytes):
    return value.decode('utf-8', 'backslashreplace')
  found = np.asarray(value)
  if found.dtype.kind in 'SUO' and found.ndim:
    several = [text(name, x) for x in found.reshape(-1).tolist()]
    return '; '.join(x for x in dict.fromkeys(several) if x)
  if found.dtype.kind in 'SU':
    return text(name, found.item())
  if found.dtype.kind in 'iu' and found.ndim == 1:
    codes = np.trim_zeros(found, 'b')
    if ((codes > 0) & (codes < 256)).all():
      spelled = bytes(codes.tolist()).decode('utf-8', 'replace')
      if (spelled.replace('\n', ' ') or ' ').isprintable():
        return spelled
  raise EpisodeError(
    f'{name}: found {found.dtype} of shape {found.shape}, expected text'
  )


def whole(name: str, value: np.ndarray) -> np.ndarray:
  """Returns floats that are whole numbers as such; raises `EpisodeError`."""
  if value.dtype.kind != 'f':
    return value
  wrong = value[value != np.round(value)]
  if wrong.size:
    raise EpisodeError(
      f'{name}: found {wrong.flat[0]}, expected whole numbers, as '
      'FIELD:CLASSES says'
    )
  return value.astype(np.int64)


def reason(error: Exception) -> str:
  """Returns a library's error as one short line."""
  return f'{type(error).__name__}: {error}'.splitlines()[0][:200]
