"""The state of data iterators as text, for Grain's checkpoint handler."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np


class StateText:
  """JSON text with the interface of a Grain iterator.

  Grain's handler writes one file for each process. It asks an iterator for
  its state; this stands in for the iterators as they were when a batch was
  drawn, which may be some batches ago.
  """

  def __init__(self, text: str = ''):
    self._text = text

  @classmethod
  def of(cls, data: Any) -> StateText:
    """Encodes dicts, lists, numbers, strings and bytes."""
    return cls(json.dumps(data, default=_encode))

  def data(self) -> Any:
    """Decodes; raises `ValueError` if the text is damaged."""
    return json.loads(self._text, object_hook=_decode)

  def get_state(self) -> bytes:
    """Returns the text; called by Grain's handler."""
    return self._text.encode()

  def set_state(self, state: bytes) -> None:
    """Takes the text; called by Grain's handler."""
    self._text = state.decode()

  def start_prefetch(self) -> None:
    """Does nothing; called by Grain's handler."""


def _encode(x: Any) -> Any:
  if isinstance(x, bytes):
    return {'__bytes__': base64.b64encode(x).decode()}
  if isinstance(x, np.generic):
    return x.item()
  raise TypeError(f'iterator state: cannot save a {type(x).__name__}')


def _decode(x: dict[str, Any]) -> Any:
  return base64.b64decode(x['__bytes__']) if '__bytes__' in x else x
