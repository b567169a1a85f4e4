"""SIGTERM, which schedulers send before they take a machine away."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

EXIT_CODE = 75
"""`EX_TEMPFAIL` of sysexits.h: nothing is wrong, run the same command again."""


class PreemptedError(Exception):
  """The run was asked to stop; everything is saved."""


class Sigterm:
  """Notes SIGTERM instead of dying of it; a context manager.

  Python handles signals in the main thread only, so that in another one, as in
  notebooks, SIGTERM keeps its meaning. A second SIGTERM ends the process.
  """

  def __init__(self):
    self.received = False
    self._before: Any = None
    self._installed = False

  def __enter__(self) -> Sigterm:
    if threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._note)
      self._installed = True
    return self

  def __exit__(self, *unused_error) -> None:
    self._restore()

  def _note(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    self.received = True
    self._restore()

  def _restore(self) -> None:
    if self._installed:
      # None stands for a handler that was not set from Python.
      before = signal.SIG_DFL if self._before is None else self._before
      signal.signal(signal.SIGTERM, before)
      self._installed = False
