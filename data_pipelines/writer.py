"""Writes episodes to disk in the format of `dreamer4_jax.data.format`.

A `Shard` takes episodes, whole or in pieces, and writes one array_record file
with its index beside it; `publish` makes a dataset of finished shards, all at
once. `write_dataset` does both for episodes that come from one iterator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import fcntl
import itertools
import json
import logging
import os
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.episodes import Episode, EpisodeError
from data_pipelines.shards import (
  Shard,
  ShardIndex,
  index_path,
  read_index,
  write_json,
)
from dreamer4_jax.data import format as fmt

__all__ = [
  'Episode',
  'EpisodeError',
  'Shard',
  'ShardIndex',
  'check_output',
  'index_path',
  'publish',
  'read_index',
  'work_directory',
  'write_dataset',
  'write_json',
]

_LOG = logging.getLogger(__name__)
DATASET_NAME = 'episodes'
_INFO = 'dataset_info.json'
_CONFIG, _OF_A_RUN = 'config.json', {'tokenizer', 'dynamics', 'phases'}
"""The file that holds a run's config, and fields by which it is recognised."""
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
SHARD_BYTES = 1 << 30
"""A shard ends once it holds more bytes of observations than this."""
_CLAIMS: dict[pathlib.Path, int] = {}
"""Work directories that this process has locked, with their descriptors."""


def check_output(
  out: str | pathlib.Path, *, overwrite: bool, in_run: bool = False
) -> pathlib.Path:
  """Checks, before any work, that a dataset may be written to `out`.

  Args:
    out: directory of the dataset to be.
    overwrite: whether a finished dataset there may be replaced.
    in_run: whether it may lie in a run's directory, as latents do.

  Returns:
    `out` as an absolute path.

  Raises:
    FileExistsError: there is a dataset and `overwrite` is false, or there is
      something that is not a dataset, which is never replaced.
    ValueError: `out` lies in a run's directory, or holds a run.
  """
  out = pathlib.Path(out).expanduser().absolute()
  inside = [] if in_run else [p for p in out.parents if _is_run(p)]
  if inside:
    raise ValueError(
      f'{out}: lies in the directory of a run, {inside[0]}; choose a directory '
      'of its own for the dataset'
    )
  below = [p.parent for p in sorted(out.rglob(_CONFIG)) if _is_run(p.parent)]
  if below:
    raise ValueError(
      f'{out}: holds a run, {below[0]}, and is never replaced; choose another '
      'directory'
    )
  if (out / _INFO).exists():
    if not overwrite:
      raise FileExistsError(
        f'{out}: there is a finished dataset; pass overwrite=True '
        '(--overwrite) to replace it, or choose another directory'
      )
  elif out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise FileExistsError(
      f'{out}: exists and is not a dataset; choose another directory'
    )
  return out


def _is_run(directory: pathlib.Path) -> bool:
  """Returns whether a training run has left its config there."""
  try:
    config = json.loads((directory / _CONFIG).read_bytes())
  except (OSError, ValueError):
    return False
  return isinstance(config, dict) and _OF_A_RUN <= set(config)


def work_directory(out: pathlib.Path, key: Any) -> pathlib.Path:
  """Returns the directory in which work on `out` is kept until it is done.

  It belongs to this process until `publish`, or until the process ends.

  Args:
    out: directory of the dataset to be.
    key: plain data on which the work depends; work done with another key is
      discarded.

  Raises:
    FileExistsError: another process is working on it.
  """
  work = out.parent / f'.{out.name}.incomplete'
  _claim(work, out)
  seal = work / 'key.json'
  text = json.dumps(key)
  if not seal.exists() or seal.read_text() != text:
    lost = len([*work.glob(index_path(work / '*').name)])
    if lost:
      _LOG.warning(
        '%s: the settings or the inputs have changed since this was begun; the '
        'finished parts, %d of them, are made again',
        out,
        lost,
      )
    # The directory itself stays: the lock is on it.
    for path in work.iterdir():
      shutil.rmtree(path) if path.is_dir() else path.unlink()
    seal.write_text(text)
  return work


def _claim(work: pathlib.Path, out: pathlib.Path) -> None:
  """Locks a work directory for this process, and creates it if needed."""
  work.mkdir(parents=True, exist_ok=True)
  if work in _CLAIMS:
    if os.path.samestat(os.fstat(_CLAIMS[work]), os.stat(work)):
      return
    os.close(_CLAIMS.pop(work))
  descriptor = os.open(work, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(descriptor)
    raise FileExistsError(
      f'{out}: another process is writing this dataset; wait for it, or choose '
      'another directory'
    ) from None
  except OSError:
    pass  # A file system without locks.
  _CLAIMS[work] = descriptor


def publish(
  out: pathlib.Path,
  work: pathlib.Path,
  description: fmt.Description,
  shards: Mapping[str, Sequence[pathlib.Path]],
  files: Mapping[str, Any] | None = None,
  order: str = '',
) -> None:
  """Makes a dataset of finished shards; creates or replaces `out` as a whole.

  Args:
    out: directory of the dataset, checked by `check_output`.
    work: a directory beside it, which holds the shards and is removed.
    description: of all episodes; the mean and standard deviation of its
      vectors, over all splits, are filled in here.
    shards: finished shards by split, in the order of their episodes. Shards
      without episodes are left out.
    files: other contents to write into the directory, as JSON, by file name.
    order: attribute by which episodes are sorted; empty keeps their order.

  Raises:
    EpisodeError: a split has no episode at all.
  """
  # Not a temporary directory, which only its owner could read.
  new = work / 'new'
  shutil.rmtree(new, ignore_errors=True)
  new.mkdir()
  found = {}
  for split, paths in shards.items():
    indices = [(path, read_index(path)) for path in paths]
    found[split] = [(path, index) for path, index in indices if index.lengths]
    if not found[split]:
      raise EpisodeError(f'split {split!r}: found no episode')
  description = _measured(
    description, [index for pairs in found.values() for _, index in pairs]
  )
  metadata, infos = description.to_metadata(), []
  for split, indices in found.items():
    template = tfds.core.ShardedFileTemplate(
      data_dir=new,
      template=_TEMPLATE,
      dataset_name=DATASET_NAME,
      split=split,
      filetype_suffix='array_record',
    )
    for i, (path, _) in enumerate(indices):
      target = template.sharded_filepath(shard_index=i, num_shards=len(indices))
      os.link(path, target)
    metadata['splits'][split] = _joined([i for _, i in indices], order)
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[index.records for _, index in indices],
        num_bytes=sum(index.num_bytes for _, index in indices),
        filename_template=template,
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=new,
    features=fmt.features(description),
    split_infos=infos,
    filename_template=_TEMPLATE,
    check_data=False,
    description='Chunks of episodes for dreamer4_jax.',
    metadata=tfds.core.MetadataDict(metadata),
    disable_shuffling=True,
  )
  for name, content in (files or {}).items():
    (new / name).write_text(json.dumps(content, indent=2))
  if out.exists():
    old = work / 'replaced'
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
  new.rename(out)
  shutil.rmtree(work)
  if work in _CLAIMS:
    os.close(_CLAIMS.pop(work))


def _measured(
  description: fmt.Description, indices: Sequence[ShardIndex]
) -> fmt.Description:
  """Fills in the vectors' mean and standard deviation over all steps."""
  steps = sum(sum(index.lengths) for index in indices)
  # As many digits as float32 distinguishes.
  rounded = lambda x: tuple(float(f'{value:.9g}') for value in x)
  vectors = []
  for part in description.vectors:
    sums = [np.asarray(m[part.name]) for i in indices for m in i.moments]
    mean, square = np.sum(sums, axis=0) / steps
    std = np.sqrt(np.maximum(square - mean**2, 0))
    # Constants are only shifted to 0; a smaller deviation is rounding error.
    std = np.where(std > 1e-7 * np.abs(mean), std, 1.0)
    vectors.append(
      dataclasses.replace(part, mean=rounded(mean), std=rounded(std))
    )
  return dataclasses.replace(description, vectors=tuple(vectors))


def _joined(
  indices: Sequence[ShardIndex], order: str = ''
) -> dict[str, list[Any]]:
  """Returns one index for consecutive shards."""
  before = itertools.accumulate((i.records for i in indices), initial=0)
  joined: dict[str, list[Any]] = {
    'first_chunks': [
      offset + first
      for offset, index in zip(before, indices, strict=False)
      for first in index.first_chunks
    ]
  }
  for name in fmt.INDEX_FIELDS:
    joined[name] = [x for index in indices for x in getattr(index, name)]
  if order:
    keys = [attributes[order] for attributes in joined['attributes']]
    places = sorted(range(len(keys)), key=keys.__getitem__)
    joined = {k: [v[i] for i in places] for k, v in joined.items()}
  return joined


def _write_split(
  directory: pathlib.Path,
  description: fmt.Description,
  episodes: Iterable[Episode],
) -> list[pathlib.Path]:
  """Writes episodes to shards of about `SHARD_BYTES`."""
  directory.mkdir()
  paths: list[pathlib.Path] = []
  shape, dtype = description.observation
  step_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
  rest = iter(episodes)
  following = next(rest, None)
  while following is not None:
    paths.append(directory / f'{len(paths):05d}')
    with Shard(paths[-1], description) as shard:
      while following is not None:
        shard.add(following)
        following = next(rest, None)
        if sum(shard.index.lengths) * step_bytes > SHARD_BYTES:
          break
  return paths


def write_dataset(
  out: str | pathlib.Path,
  *,
  description: fmt.Description,
  splits: Mapping[str, Iterable[Episode]],
  overwrite: bool = False,
) -> pathlib.Path:
  """Writes a whole dataset, or nothing.

  The records go to a temporary directory beside `out`, and are moved to `out`
  when all are written.

  Args:
    out: directory of the dataset.
    description: actions, tasks and frame shape of the episodes.
    splits: episodes by split name; iterables are consumed once, in order.
    overwrite: replace a finished dataset at `out`.

  Returns:
    The absolute path of the dataset.

  Raises:
    FileExistsError: see `check_output`.
    EpisodeError: an episode violates the format, or a split has none.
  """
  out = check_output(out, overwrite=overwrite)
  out.parent.mkdir(parents=True, exist_ok=True)
  work = pathlib.Path(
    tempfile.mkdtemp(prefix=f'.{out.name}.incomplete-', dir=out.parent)
  )
  try:
    shards: dict[str, list[pathlib.Path]] = {}
    for split, episodes in splits.items():
      shards[split] = _write_split(work / split, description, episodes)
    publish(out, work, description, shards)
  finally:
    shutil.rmtree(work, ignore_errors=True)
  return out
