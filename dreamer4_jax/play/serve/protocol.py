"""What page and server say to each other.

A player sends JSON objects with a `type`; anything else is refused with the
reason. The server answers with JSON, and with frames: a byte 1, the length of a
JSON text as 4 bytes, little-endian, that text, and a PNG or JPEG; beside a real
game a second one, of as many bytes as `real` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import json
import math
import struct
from typing import Any

import numpy as np

from dreamer4_jax.play.serve.lobby import Refusal
from dreamer4_jax.play.serve.timeline import Seen

MOST_BYTES = 2048
"""Length of a message from a player."""
_FRAME = 1
_HEAD = struct.Struct('<BI')
Check = Callable[[Any], bool]


def _whole(low: int, high: int) -> tuple[Check, str]:
  fits = lambda x: type(x) is int and low <= x <= high
  return fits, f'must be a whole number in {low}..{high}'


def _number(low: float, high: float) -> tuple[Check, str]:
  fits = lambda x: type(x) in (int, float) and low <= x <= high
  return fits, f'must be a number in {low:g}..{high:g}'


def _text(most: int) -> tuple[Check, str]:
  fits = lambda x: type(x) is str and 0 < len(x) <= most
  return fits, f'must be a text of 1 to {most} characters'


_FLAG = (lambda x: type(x) is bool), 'must be true or false'
_VALUES = (
  lambda x: (
    type(x) is list
    and 0 < len(x) <= 64
    and all(type(v) in (int, float) and math.isfinite(v) for v in x)
  ),
  'must be a list of 1 to 64 finite numbers',
)
_COUNT = 2**31 - 1
_FIELDS: dict[str, dict[str, tuple[Check, str]]] = {
  'hello': {'session': _text(64)},
  'ping': {'t': _number(-1e15, 1e15)},
  'press': {'control': _text(200), 'seq': _whole(0, 2**53)},
  'release': {'control': _text(200)},
  'steer': {'part': _text(200), 'values': _VALUES},
  'move': {'part': _text(200), 'x': _number(-4, 4), 'y': _number(-4, 4)},
  'blur': {},
  'set': {
    'mode': _text(10),
    'world': _text(10),
    'steps': _whole(1, 1024),
    'level': _whole(0, _COUNT),
    'task': _whole(0, _COUNT),
    'rate': _number(0, 1000),
    'paused': _FLAG,
  },
  'step': {},
  'rewind': {'frame': _whole(0, _COUNT)},
  'reset': {},
  'start': {'index': _whole(-1, _COUNT)},
  'attempt': {'index': _whole(0, _COUNT)},
  'branch': {'index': _whole(0, _COUNT)},
  'record': {'on': _FLAG},
}
_OPTIONAL = {'hello': {'session'}, 'set': {*_FIELDS['set']}, 'press': {'seq'}}


def parse(text: str | bytes) -> dict[str, Any]:
  """Reads a message.

  Args:
    text: JSON.

  Returns:
    The object: a known `type`, all fields of it, of the right types, and no
    others.

  Raises:
    Refusal: it is no such message; the reason names what is wrong.
  """
  if not isinstance(text, str):
    raise Refusal('message: must be text, not bytes')
  if len(text) > MOST_BYTES:
    raise Refusal(f'message: must be at most {MOST_BYTES} characters')
  try:
    message = json.loads(text)
  except (ValueError, RecursionError):
    raise Refusal('message: must be JSON') from None
  if not isinstance(message, dict):
    raise Refusal('message: must be a JSON object')
  kind = message.get('type')
  if not isinstance(kind, str) or kind not in _FIELDS:
    raise Refusal(f'type: must be one of {", ".join(_FIELDS)}')
  fields = _FIELDS[kind]
  for name, value in message.items():
    if name == 'type':
      continue
    if name not in fields:
      raise Refusal(f'{kind}: has no field {name[:40]!r}')
    fits, sentence = fields[name]
    if not fits(value):
      raise Refusal(f'{kind}.{name}: {sentence}')
  missing = {*fields} - {*message} - _OPTIONAL.get(kind, set())
  if missing:
    raise Refusal(f'{kind}: needs {", ".join(sorted(missing))}')
  return message


def pack_frame(seen: Seen) -> bytes:
  """Returns a frame as bytes."""
  shown = seen.shown
  finite = lambda x: round(x, 4) if math.isfinite(x) else None
  said: dict[str, Any] = {
    'n': seen.number,
    'reward': finite(shown.reward),
    'value': finite(shown.value),
    'cont': finite(shown.cont),
    'psnr': finite(shown.psnr),
    'by': shown.by,
    'ms': round(1000 * seen.seconds, 1),
    'seq': seen.seq,
    'over': shown.over,
    'stage': shown.stage,
    'world': shown.ask.world if shown.ask else 'dream',
    'real': len(shown.real),
    'dropped': seen.dropped,
    'action': _plain(shown.ask.action if shown.ask else {}),
  }
  text = json.dumps(said, separators=(',', ':')).encode()
  return b''.join(
    (_HEAD.pack(_FRAME, len(text)), text, shown.picture, shown.real)
  )


def unpack_frame(data: bytes) -> tuple[dict[str, Any], bytes]:
  """Returns what was said of a frame, and its picture.

  Raises:
    ValueError: it is no frame.
  """
  kind, length = _HEAD.unpack_from(data)
  if kind != _FRAME:
    raise ValueError(f'kind = {kind}: no frame')
  end = _HEAD.size + length
  return json.loads(data[_HEAD.size : end]), data[end:]


def _plain(action: Mapping[str, np.ndarray]) -> dict[str, Any]:
  return {
    name: np.round(np.asarray(x, np.float64), 3).tolist()
    for name, x in action.items()
  }
