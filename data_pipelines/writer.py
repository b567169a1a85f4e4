"""Writes episodes to disk in the format of `dreamer4_jax.data.format`.

A `Shard` takes episodes, whole or in pieces, and writes one array_record file
with its index beside it; `publish` makes a dataset of finished shards, all at
once. `write_dataset` does both for episodes that come from one iterator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from data_pipelines.episodes import Checker, Episode, EpisodeError, plain
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

DATASET_NAME = 'episodes'
_INFO = 'dataset_info.json'
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
_OPTIONS = 'group_size:1,zstd:1'
SHARD_BYTES = 1 << 30
"""A shard is ended once it holds more bytes of observations."""


@dataclasses.dataclass
class ShardIndex:
  """What a shard holds.

  Attributes:
    records: chunks in the file, those of abandoned episodes included.
    num_bytes: size of the file.
    first_chunks: record with which each episode begins.
    lengths: frames of each episode.
    known: steps of each episode whose action is known.
    returns: sum of each episode's rewards.
    terminal: whether each episode ended for good.
    events: `[arrival frame, task]` of each episode.
    attributes: of each episode.
  """

  records: int = 0
  num_bytes: int = 0
  first_chunks: list[int] = dataclasses.field(default_factory=list)
  lengths: list[int] = dataclasses.field(default_factory=list)
  known: list[int] = dataclasses.field(default_factory=list)
  returns: list[float] = dataclasses.field(default_factory=list)
  terminal: list[bool] = dataclasses.field(default_factory=list)
  events: list[list[list[int]]] = dataclasses.field(default_factory=list)
  attributes: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Shard:
  """Writes one file of episodes; a context manager.

  The index appears beside the file when the context is left without an error,
  and says that the file is complete.
  """

  def __init__(self, path: str | pathlib.Path, description: fmt.Description):
    """Starts `path`, replacing an incomplete file of that name."""
    self.path = pathlib.Path(path)
    self.index = ShardIndex()
    self._description = description
    self._features = fmt.features(description)
    self._serializer = ExampleSerializer(self._features.get_serialized_info())
    self._checked = Checker(description)
    self.path.unlink(missing_ok=True)
    index_path(self.path).unlink(missing_ok=True)
    self._writer = ArrayRecordWriter(str(self.path), _OPTIONS)
    self.abandon()

  def __enter__(self) -> Shard:
    return self

  def __exit__(self, kind, error, trace) -> None:
    self._writer.close()
    if kind is None:
      self.index.num_bytes = self.path.stat().st_size
      write_json(index_path(self.path), dataclasses.asdict(self.index))

  def add(self, episode: Episode) -> None:
    """Writes a whole episode.

    Raises:
      EpisodeError: a field is missing or has another shape, dtype or value;
        nothing of the episode will be read.
    """
    try:
      self.append(episode.steps)
      self.end(terminal=episode.terminal, attributes=episode.attributes)
    except EpisodeError:
      self.abandon()
      raise

  def append(self, steps: Mapping[str, Any]) -> None:
    """Takes the next steps of the current episode, any number of them.

    Raises:
      EpisodeError: as `add`; then `abandon` the episode.
    """
    flat = self._checked(steps)
    self._note_events(flat)
    self._frames += len(flat['reward'])
    self._known += int(flat['action_known'].sum())
    self._return += float(flat['reward'].sum(dtype=np.float64))
    if self._pending:
      flat = {k: np.concatenate([v, flat[k]]) for k, v in self._pending.items()}
    size = self._description.chunk_length
    # One step at least is kept back: it may be the last.
    while len(flat['reward']) > size:
      self._write({k: v[:size] for k, v in flat.items()})
      flat = {k: v[size:] for k, v in flat.items()}
    self._pending = flat

  def end(
    self, *, terminal: bool, attributes: Mapping[str, Any] | None = None
  ) -> None:
    """Ends the current episode.

    Raises:
      EpisodeError: it has no frame, its last step earned something, or an
        attribute is neither text nor number nor flag.
    """
    if not self._frames:
      raise EpisodeError('observation: found no frame, expected at least one')
    reward = float(self._pending['reward'][-1])
    late = [task for frame, task in self._events if frame >= self._frames]
    if reward or late:
      raise EpisodeError(
        f'{"reward" if reward else "events"}: found {reward or late} on the '
        'last step, whose action leads to no frame; expected 0'
      )
    kept = plain(attributes or {})
    self._write(self._pending, last=True, terminal=terminal)
    self.index.first_chunks.append(self._first)
    self.index.lengths.append(self._frames)
    self.index.known.append(self._known)
    self.index.returns.append(self._return)
    self.index.terminal.append(bool(terminal))
    self.index.events.append(self._events)
    self.index.attributes.append(kept)
    self.abandon()

  def abandon(self) -> None:
    """Forgets the current episode; what was written of it is never read."""
    self._pending: dict[str, np.ndarray] = {}
    self._frames = self._known = 0
    self._return = 0.0
    self._first = self.index.records
    self._events: list[list[int]] = []

  def forget(self, episodes: int) -> None:
    """Takes all but the first `episodes` episodes out of the index."""
    for name in ('first_chunks', *fmt.INDEX_FIELDS):
      del getattr(self.index, name)[episodes:]

  def _note_events(self, flat: Mapping[str, np.ndarray]) -> None:
    if 'events' in flat:
      step, task = np.nonzero(flat['events'])
      arrivals = np.stack([step + 1 + self._frames, task], axis=-1)
      self._events += arrivals.tolist()

  def _write(
    self, chunk: Mapping[str, np.ndarray], last: bool = False,
    terminal: bool = False,
  ) -> None:  # fmt: skip
    steps = len(chunk['reward'])
    start = (self.index.records - self._first) * self._description.chunk_length
    final = last & (np.arange(steps) == steps - 1)
    example: dict[str, Any] = {
      **fmt.unflatten(chunk),
      'is_first': np.arange(start, start + steps) == 0,
      'is_last': final,
      'is_terminal': terminal & final,
      'start': start,
    }
    if not example['action']:
      example.pop('action')
    encoded = self._features.encode_example(example)
    self._writer.write(self._serializer.serialize_example(encoded))
    self.index.records += 1


def check_output(out: str | pathlib.Path, *, overwrite: bool) -> pathlib.Path:
  """Checks, before any work, that a dataset may be written to `out`.

  Args:
    out: directory of the dataset to be.
    overwrite: whether a finished dataset there may be replaced.

  Returns:
    `out` as an absolute path.

  Raises:
    FileExistsError: there is a dataset and `overwrite` is false, or there is
      something that is not a dataset, which is never replaced.
  """
  out = pathlib.Path(out).expanduser().absolute()
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


def work_directory(out: pathlib.Path, key: Any) -> pathlib.Path:
  """Returns the directory in which work on `out` is kept until it is done.

  Args:
    out: directory of the dataset to be.
    key: plain data on which the work depends; what was done with another key
      is thrown away.
  """
  work = out.parent / f'.{out.name}.incomplete'
  seal = work / 'key.json'
  text = json.dumps(key)
  if not seal.exists() or seal.read_text() != text:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    seal.write_text(text)
  return work


def index_path(shard: pathlib.Path) -> pathlib.Path:
  """Returns where the index of a shard lies."""
  return shard.with_name(shard.name + '.index.json')


def read_index(shard: pathlib.Path) -> ShardIndex:
  """Returns the index of a finished shard."""
  return ShardIndex(**json.loads(index_path(shard).read_text()))


def write_json(path: pathlib.Path, data: Any) -> None:
  """Writes a JSON file that is there wholly or not at all."""
  new = path.with_name(path.name + '.tmp')
  new.write_text(json.dumps(data))
  os.replace(new, path)


def publish(
  out: pathlib.Path,
  work: pathlib.Path,
  description: fmt.Description,
  shards: Mapping[str, Sequence[pathlib.Path]],
  files: Mapping[str, Any] | None = None,
  order: str = '',
) -> None:
  """Makes a dataset of finished shards; `out` appears whole, replacing others.

  Args:
    out: directory of the dataset, checked by `check_output`.
    work: a directory beside it, which holds the shards and is removed.
    description: of all episodes.
    shards: finished shards by split, in the order of their episodes. Shards
      without episodes are left out.
    files: what else to write into the directory, as JSON, by file name.
    order: attribute by which episodes are sorted; empty keeps their order.

  Raises:
    EpisodeError: a split has no episode at all.
  """
  new = pathlib.Path(tempfile.mkdtemp(prefix='publish-', dir=work))
  metadata, infos = description.to_metadata(), []
  for split, paths in shards.items():
    indices = [(path, read_index(path)) for path in paths]
    indices = [(path, index) for path, index in indices if index.lengths]
    if not indices:
      raise EpisodeError(f'split {split!r}: found no episode')
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
  new.chmod(0o755)
  new.rename(out)
  shutil.rmtree(work)


def _joined(
  indices: Sequence[ShardIndex], order: str = ''
) -> dict[str, list[Any]]:
  """Returns one index for shards that follow each other."""
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

  The records go to a temporary directory beside `out`, which takes its place
  when all is written.

  Args:
    out: directory of the dataset.
    description: actions, tasks and frame shape of the episodes.
    splits: episodes by split name; iterables are consumed once, in order.
    overwrite: replace a finished dataset at `out`.

  Returns:
    The absolute path of the dataset.

  Raises:
    FileExistsError: see `check_output`.
    EpisodeError: an episode is not as the format wants it, or a split has none.
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
