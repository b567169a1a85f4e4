"""Opens a dataset on disk, checks it, and hands out whole episodes."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dreamer4_jax.config import ActionComponent
from dreamer4_jax.data import format as fmt

CACHE_BYTES = 1 << 30
"""A split of fewer bytes of frames is kept in memory once read."""


class EpisodeSource:
  """Random access to the episodes of one split.

  Attributes:
    path: directory of the dataset.
    split: name of the split.
    description: what the dataset says about itself.
    index: lengths and events of all episodes.
  """

  def __init__(
    self,
    path: str | pathlib.Path,
    split: str,
    *,
    actions: Sequence[ActionComponent] | None = None,
    tasks: Sequence[str] | None = None,
    frame_shape: Sequence[int] | None = None,
  ):
    """Opens a split and checks it against what the run expects.

    Args:
      path: directory of the dataset.
      split: name of the split.
      actions: expected action space, or None to accept any.
      tasks: expected task names in id order, or None to accept any.
      frame_shape: expected height, width, channels, or None to accept any.

    Raises:
      FileNotFoundError: there is no dataset at `path`.
      ValueError: the split is missing or empty, or the format or an
        expectation is not met; the message names the field, what was found
        and what was expected.
    """
    self.path = pathlib.Path(path)
    self.split = split
    if not str(path) or not (self.path / 'dataset_info.json').exists():
      raise FileNotFoundError(
        f'DataConfig.path = {str(path)!r}: no dataset there '
        '(no dataset_info.json); make one with '
        '`python -m data_pipelines.collect --out DIR`'
      )
    builder = tfds.builder_from_directory(self.path)
    metadata = dict(builder.info.metadata or {})
    try:
      self.description = fmt.Description.from_metadata(metadata)
    except ValueError as error:
      raise ValueError(f'{self.path}: {error}') from error
    for field, found, expected in (
      ('actions', self.description.actions, actions),
      ('tasks', self.description.tasks, tasks),
      ('frame_shape', self.description.frame_shape, frame_shape),
    ):
      if expected is not None and found != tuple(expected):
        raise ValueError(
          f'{self.path}: {field}: found {found}, expected {tuple(expected)}'
        )
    _check_features(
      self.path, builder.info.features, fmt.features(self.description)
    )
    splits = {k: v.num_examples for k, v in builder.info.splits.items()}
    if not splits.get(split):
      raise ValueError(
        f'{self.path}: split: found episodes {splits}, expected some in '
        f'{split!r}'
      )
    self.index = fmt.index_from_metadata(metadata, split)
    if len(self.index.lengths) != splits[split]:
      raise ValueError(
        f'{self.path}: episodes in the index of {split!r}: found '
        f'{len(self.index.lengths)}, expected {splits[split]}'
      )
    self._source = builder.as_data_source(split=split)
    frame_bytes = int(np.prod(self.description.frame_shape))
    self._keep = int(self.index.lengths.sum()) * frame_bytes < CACHE_BYTES
    self._kept: list[dict[str, Any] | None] = [None] * len(self)

  def __len__(self) -> int:
    """Returns the number of episodes."""
    return len(self.index.lengths)

  def __getitem__(self, episode: int) -> dict[str, Any]:
    """Returns an episode, as `fmt.features`; do not write to its arrays.

    Raises:
      ValueError: the record does not have the length that the index says.
    """
    steps = self._kept[episode]
    if steps is None:
      steps = self._source[episode]
      expected = int(self.index.lengths[episode])
      if len(steps['is_first']) != expected:
        raise ValueError(
          f'{self.path}: frames of episode {episode} of {self.split!r}: found '
          f'{len(steps["is_first"])}, expected {expected} by the index'
        )
      if self._keep:
        self._kept[episode] = steps
    return steps


def _check_features(path: pathlib.Path, found: Any, expected: Any) -> None:
  """Raises `ValueError` unless each expected feature is there, as expected."""
  flat = {'/'.join(k): v for k, v in _flatten(found)}
  for keys, feature in _flatten(expected):
    name = '/'.join(keys)
    if name not in flat:
      raise ValueError(
        f'{path}: {name}: found no such field among {sorted(flat)}, expected '
        f'shape {feature.shape} of {feature.np_dtype}'
      )
    has = flat[name]
    if has.shape != feature.shape or has.np_dtype != feature.np_dtype:
      raise ValueError(
        f'{path}: {name}: found shape {has.shape} of {has.np_dtype}, '
        f'expected shape {feature.shape} of {feature.np_dtype}'
      )


def _flatten(features: Any, prefix: tuple[str, ...] = ()):
  for name, feature in features.items():
    if isinstance(feature, tfds.features.FeaturesDict):
      yield from _flatten(feature, (*prefix, name))
    else:
      yield (*prefix, name), feature
