"""Serialized `tf.train.Example` records, whose fields are read in place.

Parsing a record copies all of its frames. But records of a dataset differ in
little except the payloads of their fields: the bytes in between (tags, names
and sizes) recur. So one record is walked, and each later one of the same size
with the same bytes between the payloads has its payloads at the same places, by
the rules of the wire format.
https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import operator

Span = tuple[int, int]
"""Begin and end (exclusive) of bytes in a record."""

_MAX_LAYOUTS = 1024
# Wire types, and numbers of fields in Example's messages.
_VARINT, _BYTES = 0, 2
_NAME, _VALUE = 1, 2
_BYTES_LIST, _INT64_LIST = 1, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Where the fields of a record are.

  Attributes:
    steps: how many the record holds.
    spans: of the payload of each field.
    between: extracts the bytes between the payloads of a record.
    skeleton: these bytes.
  """

  steps: int
  spans: Mapping[str, Span]
  between: Callable[[bytes], tuple[bytes, ...]]
  skeleton: tuple[bytes, ...]


class Layouts:
  """The layouts of a dataset's records, learned as they come."""

  def __init__(self, step_bytes: Mapping[str, int]):
    """Takes the bytes of one step of each field."""
    self._step_bytes = step_bytes
    self._known: dict[int, Layout] = {}

  def find(self, record: bytes) -> Layout:
    """Returns a record's layout.

    Raises:
      ValueError: it is not an Example, or a field is too long or too short.
    """
    layout = self._known.get(len(record))
    if layout is None or layout.between(record) != layout.skeleton:
      layout = self._walk(record)
      if len(self._known) < _MAX_LAYOUTS:
        self._known[len(record)] = layout
    return layout

  def _walk(self, record: bytes) -> Layout:
    spans = dict(_payloads(record))
    sizes = {name: end - begin for name, (begin, end) in spans.items()}
    steps = sizes.get('is_first', 0)
    for name, step_bytes in self._step_bytes.items():
      if not steps or sizes.get(name) != steps * step_bytes:
        raise ValueError(
          f'found {sizes.get(name, 0)} bytes of {name}, expected '
          f'{step_bytes} for each of {steps} steps'
        )
    ends = [0, *(x for span in sorted(spans.values()) for x in span)]
    edges = zip(ends[::2], [*ends[1::2], len(record)], strict=True)
    between = operator.itemgetter(*(slice(*edge) for edge in edges))
    return Layout(
      steps=steps, spans=spans, between=between, skeleton=between(record)
    )


def read_int(record: bytes, span: Span) -> int:
  """Returns the value of a field that holds one int64."""
  return _varint(record, *span)[0]


def _payloads(record: bytes) -> Iterator[tuple[str, Span]]:
  """Yields name and span of each field of an example."""
  for _, *features in _parts(record, 0, len(record)):
    for _, *entry in _parts(record, *features):
      pair = {number: (a, b) for number, a, b in _parts(record, *entry)}
      if pair.keys() != {_NAME, _VALUE}:
        raise ValueError(f'found a field of parts {sorted(pair)}')
      name = record[slice(*pair[_NAME])].decode()
      for kind, *values in _parts(record, *pair[_VALUE]):
        if kind not in (_BYTES_LIST, _INT64_LIST):
          raise ValueError(f'found {name} as a list of kind {kind}')
        for _, *span in _parts(record, *values):
          yield name, (span[0], span[1])


def _parts(
  record: bytes, begin: int, end: int
) -> Iterator[tuple[int, int, int]]:
  """Yields number, begin and end of each field of a message."""
  while begin < end:
    key, begin = _varint(record, begin, end)
    number, kind = key >> 3, key & 7
    if kind == _BYTES:
      size, begin = _varint(record, begin, end)
      if begin + size > end:
        raise ValueError(f'ends {begin + size - end} bytes early')
    elif kind == _VARINT:
      size = _varint(record, begin, end)[1] - begin
    else:
      raise ValueError(f'wire type {kind} at byte {begin}')
    yield number, begin, begin + size
    begin += size


def _varint(record: bytes, begin: int, end: int) -> tuple[int, int]:
  """Returns a number and where the next item begins."""
  value = 0
  for place in range(begin, end):
    byte = record[place]
    value |= (byte & 127) << 7 * (place - begin)
    if byte < 128:
      return value, place + 1
  raise ValueError(f'ends within a number at byte {begin}')
