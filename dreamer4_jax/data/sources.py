"""Opens a dataset on disk, checks it, and reads stretches of episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
import pathlib
import threading
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordReader
import numpy as np
import tensorflow_datasets as tfds

from dreamer4_jax.config import ActionComponent, VectorComponent
from dreamer4_jax.data import format as fmt
from dreamer4_jax.data.records import Layouts, Span, read_int

CACHE_BYTES = 1 << 30
"""A split of fewer bytes of observations is kept in memory once read."""
MAX_OPEN = 64
"""Files that each thread keeps open."""


# Named tuples, since thousands of both are made per second.
class Stretch(NamedTuple):
  """Steps `start` to `stop` (exclusive) of one episode."""

  episode: int
  start: int
  stop: int


class Request(NamedTuple):
  """A stretch to read.

  Attributes:
    stretch: which steps.
    into: arrays `[B, T, ...]` by field, for any of `EpisodeSource.fields`.
    row: of the arrays.
    column: of the first step.
  """

  stretch: Stretch
  into: Mapping[str, np.ndarray]
  row: int = 0
  column: int = 0


Chunk = tuple[memoryview, Mapping[str, Span]]
"""A record, and where in it each field lies, time leading."""


class _Target(NamedTuple):
  """Where a field goes: the bytes of an array `[B, T, ...]`."""

  name: str
  memory: memoryview
  step_bytes: int
  columns: int


class EpisodeSource:
  """Random access to the steps of one split.

  Attributes:
    path: directory of the dataset.
    split: name of the split.
    description: what the dataset says about itself.
    index: lengths, events and attributes of all episodes.
  """

  def __init__(
    self,
    path: str | pathlib.Path,
    split: str,
    *,
    actions: Sequence[ActionComponent] | None = None,
    tasks: Sequence[str] | None = None,
    frame_shape: Sequence[int] | None = None,
    vectors: Sequence[VectorComponent] = (),
    cache_bytes: int = CACHE_BYTES,
  ):
    """Opens a split and checks it against what the run expects.

    Args:
      path: directory of the dataset.
      split: name of the split.
      actions: expected action space, or None to accept any. Video without
        actions fits every action space.
      tasks: expected task names in id order, some or all of the dataset's in
        any order; None takes the dataset's. A dataset without tasks fits every
        list. Ids and events of `index` are those of these tasks.
      frame_shape: expected height, width, channels, or None to accept any.
      vectors: those that it must have, by name and size; it may have others.
        Datasets of latents need none, since latents hold them already.
      cache_bytes: a split of fewer bytes is kept in memory.

    Raises:
      FileNotFoundError: there is no dataset at `path`.
      ValueError: the split is missing or empty, or the format or an
        expectation is not met; the message names the field, what was found
        and what was expected.
    """
    self.path = pathlib.Path(path)
    self.split = split
    builder = open_builder(path)
    metadata = dict(builder.info.metadata or {})
    self.description = read_description(path, metadata)
    for field, found, expected in (
      ('actions', self.description.actions, actions),
      ('frame_shape', self.description.frame_shape, frame_shape),
    ):
      if found and expected is not None and found != tuple(expected):
        raise ValueError(
          f'{self.path}: {field}: found {found}, expected {tuple(expected)}'
        )
    known = self.description.tasks
    unknown = [name for name in tasks or () if name not in known]
    if known and unknown:
      raise ValueError(
        f'{self.path}: tasks: found {known}, expected {tuple(tasks or ())}; it '
        f'knows nothing of {", ".join(unknown)}'
      )
    if not self.description.tokenizer:
      _check_vectors(self.path, self.description.vectors, vectors)
    self._features = fmt.features(self.description)
    _check_features(self.path, builder.info.features, self._features)
    splits = {k: v.num_examples for k, v in builder.info.splits.items()}
    if not splits.get(split):
      raise ValueError(
        f'{self.path}: split: found chunks {splits}, expected some in {split!r}'
      )
    self.index = fmt.index_from_metadata(metadata, split)
    if known and tasks is not None and tuple(tasks) != known:
      self.index = self.index.of_tasks([known.index(name) for name in tasks])
    chunks = -(-self.index.lengths // self.description.chunk_length)
    needed = int((self.index.first_chunks + chunks).max())
    if needed > splits[split]:
      raise ValueError(
        f'{self.path}: chunks of {split!r}: found {splits[split]}, expected '
        f'at least {needed} by the index'
      )
    found = builder.info.splits[split]
    self._records = _Records(found.filepaths, found.shard_lengths)
    step_bytes = {
      name: int(np.prod(shape)) * dtype.itemsize
      for name, (shape, dtype) in self.fields.items()
    }
    size = int(self.index.lengths.sum()) * sum(step_bytes.values())
    self._kept: dict[int, Chunk] | None = {} if size < cache_bytes else None
    self._layouts = Layouts(step_bytes)

  def __len__(self) -> int:
    """Returns the number of episodes."""
    return len(self.index.lengths)

  def __getitem__(self, episode: int) -> dict[str, Any]:
    """Returns a whole episode, time leading: `observation`, `action`, ..."""
    whole = Stretch(episode, 0, int(self.index.lengths[episode]))
    arrays = self.allocate((1, whole.stop))
    self.read([Request(whole, arrays)])
    return fmt.unflatten({name: x[0] for name, x in arrays.items()})

  @functools.cached_property
  def fields(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape of a step and dtype of each field.

    Actions are `action/NAME`, vectors `vector/NAME`.
    """
    return {
      name: (feature.shape[1:], np.dtype(feature.np_dtype))
      for name, feature in fmt.flatten(self._features).items()
      if feature.shape
    }

  def allocate(self, leading: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns empty arrays `[*leading, ...]` for `read`, by field."""
    return {
      name: np.empty((*leading, *shape), dtype)
      for name, (shape, dtype) in self.fields.items()
    }

  def read(self, requests: Sequence[Request]) -> None:
    """Reads stretches into arrays, all records in one go.

    Only the fields that some request wants are copied, and only once.

    Raises:
      ValueError: a record is damaged, or is not the one that the index says.
    """
    size = self.description.chunk_length
    first_chunks = self.index.first_chunks
    wanted: dict[int, int] = {}
    for (episode, start, stop), *_ in requests:
      first = int(first_chunks[episode])
      for part in range(start // size, -(-stop // size)):
        wanted[first + part] = episode
    chunks = self._chunks(wanted)
    targets: dict[int, list[_Target]] = {}
    for (episode, start, stop), into, row, column in requests:
      if id(into) not in targets:
        targets[id(into)] = [self._target(*item) for item in into.items()]
      first = int(first_chunks[episode])
      for part in range(start // size, -(-stop // size)):
        (record, spans), origin = chunks[first + part], part * size
        begin, end = max(start, origin), min(stop, origin + size)
        skip, steps, to = begin - origin, end - begin, column + begin - start
        for name, memory, step_bytes, columns in targets[id(into)]:
          here = spans[name][0] + skip * step_bytes
          there = (row * columns + to) * step_bytes
          count = steps * step_bytes
          memory[there : there + count] = record[here : here + count]

  def _target(self, name: str, array: np.ndarray) -> _Target:
    """Checks an array of a request and opens its memory."""
    shape, dtype = self.fields[name]
    whole = array.flags.c_contiguous and array.dtype == dtype
    if not whole or array.shape[2:] != shape:
      raise ValueError(
        f'{name}: found an array {array.shape} of {array.dtype} to read into, '
        f'expected contiguous [B, T, *{shape}] of {dtype}'
      )
    flat = array.reshape(-1).view(np.uint8)
    step_bytes = int(np.prod(shape)) * dtype.itemsize
    return _Target(name, memoryview(flat), step_bytes, array.shape[1])

  def _chunks(self, wanted: Mapping[int, int]) -> Mapping[int, Chunk]:
    """Returns chunks by number; `wanted` maps a number to its episode."""
    kept = {} if self._kept is None else self._kept
    missing = [number for number in wanted if number not in kept]
    if missing:
      records = self._read_records(missing)
      for number, record in zip(missing, records, strict=True):
        episode = wanted[number]
        part = number - int(self.index.first_chunks[episode])
        kept[number] = self._check(record, episode, part)
    return kept

  def _read_records(self, numbers: Sequence[int]) -> Sequence[bytes]:
    try:
      return self._records.read(numbers)
    except Exception as error:
      reason = f'{type(error).__name__}: {error}'.splitlines()[0]
      raise ValueError(
        f'{self.path}: chunks {min(numbers)} to {max(numbers)} of '
        f'{self.split!r} cannot be read ({reason})'
      ) from error

  def _check(self, record: bytes, episode: int, part: int) -> Chunk:
    """Finds the fields of a record; checks that it holds the expected steps."""
    start = part * self.description.chunk_length
    count = min(
      self.description.chunk_length, int(self.index.lengths[episode]) - start
    )
    try:
      layout = self._layouts.find(record)
      found = read_int(record, layout.spans['start'])
      if (found, layout.steps) != (start, count):
        raise ValueError(
          f'found {layout.steps} steps from {found} on, expected {count}'
        )
      return memoryview(record), layout.spans
    except (ValueError, KeyError) as error:
      raise ValueError(
        f'{self.path}: steps {start} ff. of episode {episode} of '
        f'{self.split!r}: damaged record ({type(error).__name__}: {error})'
      ) from error


class _Records:
  """The records of a split by number; each thread has readers of its own."""

  def __init__(self, paths: Sequence[Any], counts: Sequence[int]):
    """Takes the shards of a split and how many records each has."""
    self._paths = [str(path) for path in paths]
    self._ends = np.cumsum(counts)
    self._begins = self._ends - counts
    self._local = threading.local()

  def read(self, numbers: Sequence[int]) -> list[bytes]:
    """Returns records, in the order of `numbers`."""
    wanted = np.asarray(numbers)
    shards = np.searchsorted(self._ends, wanted, side='right')
    records: list[bytes] = [b''] * len(wanted)
    for shard in np.unique(shards).tolist():
      places = np.flatnonzero(shards == shard)
      local = (wanted[places] - self._begins[shard]).tolist()
      read = self._reader(shard).read(local)
      for place, record in zip(places.tolist(), read, strict=True):
        records[place] = record
    return records

  def _reader(self, shard: int) -> ArrayRecordReader:
    if not hasattr(self._local, 'open'):
      self._local.open = functools.lru_cache(MAX_OPEN)(self._open)
    return self._local.open(shard)

  def _open(self, shard: int) -> ArrayRecordReader:
    # Windows lie anywhere, so reading ahead is useless.
    reader = ArrayRecordReader(self._paths[shard], 'readahead_buffer_size:0')
    if not reader.ok():
      raise OSError(f'{self._paths[shard]}: no array_record file')
    return reader


def open_builder(path: str | pathlib.Path) -> Any:
  """Opens a TFDS directory; raises `FileNotFoundError` if there is none."""
  where = pathlib.Path(path)
  if not str(path) or not (where / 'dataset_info.json').exists():
    raise FileNotFoundError(
      f'SourceConfig.path = {str(path)!r}: no dataset there '
      '(no dataset_info.json); make one with one of the programs in '
      'data_pipelines, for example `python -m data_pipelines.collect --out DIR`'
    )
  try:
    return tfds.builder_from_directory(where)
  except Exception as error:
    reason = f'{type(error).__name__}: {error}'.splitlines()[0]
    raise ValueError(
      f'{where}: dataset_info.json and features.json cannot be read ({reason})'
    ) from error


def read_description(
  path: str | pathlib.Path, metadata: dict[str, Any]
) -> fmt.Description:
  """Returns the description; raises `ValueError` that names the dataset."""
  try:
    return fmt.Description.from_metadata(metadata)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def _check_vectors(
  path: pathlib.Path,
  found: Sequence[VectorComponent],
  expected: Sequence[VectorComponent],
) -> None:
  """Raises `ValueError` unless each expected vector is there, of its size."""
  sizes = {v.name: v.size for v in found}
  for part in expected:
    if sizes.get(part.name) != part.size:
      raise ValueError(
        f'{path}: vectors: found {sizes or "none"}, expected {part.name!r} of '
        f'{part.size} values; leave it out of `vectors`, or make the dataset '
        'with it'
      )


def _check_features(path: pathlib.Path, found: Any, expected: Any) -> None:
  """Raises `ValueError` unless features have the expected shape and dtype."""
  flat = fmt.flatten(found)
  for name, feature in fmt.flatten(expected).items():
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
