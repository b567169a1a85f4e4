"""Episodes in memory, and what the format requires of their fields."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from dreamer4_jax.config import ActionComponent
from dreamer4_jax.data import format as fmt

_FLAGS = ('is_first', 'is_last', 'is_terminal')


class EpisodeError(ValueError):
  """An episode violates the format; the message names the field."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
  """A whole episode in memory.

  Attributes:
    steps: fields of `fmt.features` except flags and positions, time first;
      `action` is a dictionary by component, and so is `vector`, if there are
      vectors.
    terminal: whether it ended for good, not by a limit or the recording's end.
    attributes: what to remember about it: text, numbers or flags.
  """

  steps: Mapping[str, Any]
  terminal: bool
  attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Checker:
  """Checks steps against the description of a dataset."""

  def __init__(self, description: fmt.Description):
    """Takes the description."""
    self._description = description
    flat = fmt.flatten(fmt.features(description))
    self._fields = {
      name: (feature.shape[1:], np.dtype(feature.np_dtype))
      for name, feature in flat.items()
      if feature.shape and name not in _FLAGS  # `start` is a scalar.
    }

  def __call__(self, steps: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the steps by flat name, cast; raises `EpisodeError`."""
    given = fmt.flatten(steps)
    for name in given:
      if name not in self._fields:
        raise EpisodeError(
          f'{name}: no such field; expected {sorted(self._fields)}'
        )
    flat = {}
    for name, (shape, dtype) in self._fields.items():
      if name not in given:
        raise EpisodeError(f'{name}: missing; found {sorted(given)}')
      flat[name] = _cast(name, given[name], shape, dtype)
    counts = {name: len(x) for name, x in flat.items()}
    if len(set(counts.values())) != 1:
      raise EpisodeError(f'{counts}: found different numbers of steps')
    for part in self._description.actions:
      _check_action(part, flat[f'action/{part.name}'], flat['action_known'])
    if 'events' in flat and (flat['events'] > 1).any():
      raise EpisodeError(
        f'events: found {flat["events"].max()}, expected 0 or 1 for each task'
      )
    return flat


def _cast(
  name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
  """Returns the value with the dtype of the field, if nothing is lost."""
  x = np.asarray(value)
  if x.ndim != 1 + len(shape) or x.shape[1:] != shape:
    raise EpisodeError(
      f'{name}: found shape {x.shape}, expected {("steps", *shape)}'
    )
  if x.dtype == dtype:
    exact = x
  elif dtype.kind == 'f' and x.dtype.kind in 'iufb':
    exact = x.astype(dtype)
    changed = (exact.astype(np.float64) != x) & (x.dtype.kind in 'iu')
    if changed.any():
      raise EpisodeError(f'{name}: found {x[changed][0]}, too much for {dtype}')
  elif dtype.kind in 'iub' and x.dtype.kind in 'iub':
    exact = x.astype(dtype)
    if (exact.astype(x.dtype) != x).any():
      raise EpisodeError(f'{name}: found {x.max()}, too much for {dtype}')
  else:
    raise EpisodeError(f'{name}: found dtype {x.dtype}, expected {dtype}')
  if dtype.kind == 'f' and not np.isfinite(exact).all():
    step = int(np.argwhere(~np.isfinite(exact))[0][0])
    raise EpisodeError(f'{name}: found {x[step]} on a step, expected finite')
  return exact


def _check_action(
  part: ActionComponent, action: np.ndarray, known: np.ndarray
) -> None:
  """Raises `EpisodeError` if a known action is outside its space."""
  known = known.reshape(-1, *(1,) * (action.ndim - 1))
  low, high = {
    'categorical': (0, part.size - 1),
    'binary': (0, 1),
    'continuous': (part.low, part.high),
  }[part.kind]
  wrong = known & ((action < low) | (action > high))
  if wrong.any():
    raise EpisodeError(
      f'action/{part.name}: found {action[wrong][0]}, expected {low} to {high}'
    )


def plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
  """Returns attributes as plain data; raises `EpisodeError`."""
  kept = {}
  for name, value in attributes.items():
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, str | int | float | bool):
      raise EpisodeError(
        f'attribute {name}: found {type(value).__name__}, expected text, a '
        'number or a flag'
      )
    kept[name] = value
  return kept
