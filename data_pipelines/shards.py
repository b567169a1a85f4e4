"""Shards: files of episodes, each with the index that says it is complete."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from data_pipelines.episodes import Checker, Episode, EpisodeError, plain
from dreamer4_jax.data import format as fmt

_OPTIONS = 'group_size:1,zstd:1'


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
    moments: sums of each episode's vectors and of their squares, by name.
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
  moments: list[dict[str, list[list[float]]]] = dataclasses.field(
    default_factory=list
  )


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
        none of the episode will be read.
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
    for name, sums in self._sums.items():
      x = flat[f'vector/{name}'].astype(np.float64)
      sums += np.stack([x.sum(axis=0), np.square(x).sum(axis=0)])
    if self._pending:
      flat = {k: np.concatenate([v, flat[k]]) for k, v in self._pending.items()}
    size = self._description.chunk_length
    # At least one step is kept back: it may be the last.
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
    self.index.moments.append({k: x.tolist() for k, x in self._sums.items()})
    self.abandon()

  def abandon(self) -> None:
    """Forgets the current episode; what was written of it is never read."""
    self._pending: dict[str, np.ndarray] = {}
    self._frames = self._known = 0
    self._return = 0.0
    self._sums = {
      v.name: np.zeros((2, v.size)) for v in self._description.vectors
    }
    self._first = self.index.records
    self._events: list[list[int]] = []

  def forget(self, episodes: int) -> None:
    """Removes all but the first `episodes` episodes from the index."""
    for name in ('first_chunks', 'moments', *fmt.INDEX_FIELDS):
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


def index_path(shard: pathlib.Path) -> pathlib.Path:
  """Returns the path of a shard's index."""
  return shard.with_name(shard.name + '.index.json')


def read_index(shard: pathlib.Path) -> ShardIndex:
  """Returns the index of a finished shard."""
  return ShardIndex(**json.loads(index_path(shard).read_text()))


def write_json(path: pathlib.Path, data: Any) -> None:
  """Writes a JSON file atomically."""
  new = path.with_name(path.name + '.tmp')
  new.write_text(json.dumps(data))
  os.replace(new, path)
