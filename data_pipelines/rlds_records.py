"""Reads the records of RLDS datasets, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import pathlib
import struct
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
import tensorflow_datasets as tfds

from data_pipelines import convert, values, writer
from dreamer4_jax.data import format as fmt

_MAX_RECORD = 1 << 33


def read_records(path: str | pathlib.Path) -> Iterator[bytes]:
  """Yields the records of an array_record or tfrecord file.

  Raises:
    SkipError: the file is damaged; what came before is good.
  """
  if '.array_record' in pathlib.Path(path).name:
    try:
      reader = ArrayRecordReader(str(path))
      for begin in range(0, reader.num_records(), 16):
        end = min(begin + 16, reader.num_records())
        yield from reader.read(begin, end)
      if not reader.ok():
        raise OSError('no array_record file')
    except Exception as error:
      raise convert.SkipError('damaged array_record file') from error
    return
  with open(path, 'rb') as file:
    while head := file.read(12):
      if len(head) < 12:
        raise convert.SkipError('truncated tfrecord file')
      (length,) = struct.unpack('<Q', head[:8])
      # The length's own checksum is skipped: its range and file end suffice.
      record = file.read(length + 4) if length < _MAX_RECORD else b''
      if len(record) < length + 4:
        raise convert.SkipError('truncated tfrecord file')
      yield record[:-4]


def get(step: Mapping[str, Any], field: str) -> Any:
  """Returns a field by its path, such as observation/image."""
  value: Any = step
  for name in field.split('/'):
    if not isinstance(value, Mapping) or name not in value:
      raise writer.EpisodeError(
        f'{field}: no such field; a step has {sorted(fmt.flatten(step))}'
      )
    value = value[name]
  return value


def leaves(steps: Any) -> dict[str, Any]:
  """Returns the features of a step, a nested dataset, by their paths."""
  return fmt.flatten(steps.feature)


def undecoded(features: Any, image: str) -> list[str]:
  """Returns the image's field if it holds picture files, to be left as such.

  TFDS would neither turn a picture as its camera says, nor tell its bits.
  """
  found = leaves(features['steps']).get(image)
  return [image] if isinstance(found, tfds.features.Image) else []


def parse(
  record: bytes, features: Any, skip: Sequence[str] = ()
) -> list[dict[str, Any]]:
  """Returns the steps of an episode.

  Args:
    record: as `read_records` yields it.
    features: of the dataset, among them the nested dataset `steps`.
    skip: fields of a step, such as images, that are not decoded.

  Raises:
    EpisodeError: the record is damaged.
  """
  decoders: dict[str, Any] = {}
  for field in skip:
    *groups, last = ['steps', *field.split('/')]
    node = decoders
    for group in groups:
      node = node.setdefault(group, {})
    node[last] = tfds.decode.SkipDecoding()
  try:
    example = features.deserialize_example_np(record, decoders=decoders or None)
    return list(example['steps'])
  except Exception as error:
    raise writer.EpisodeError(
      f'damaged record ({values.reason(error)})'
    ) from error
