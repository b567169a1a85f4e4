"""SIGTERM, which schedulers send before they take a machine away."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

EXIT_CODE = 75
"""`EX_TEMPFAIL` of sysexits.h: nothing is wrong, run the same command again."""


class PreemptedError(Exception):
  """The run was asked to stop, and has saved what there was to save."""


class Sigterm:
  """Notes SIGTERM instead of dying of it; a context manager.

  For runs of one process: with several, JAX's runtime watches the signal and
  tells all hosts (see `Checkpoints.asked_to_stop`). Python handles signals in
  the main thread only; if this is entered in another one, as in some notebooks,
  SIGTERM keeps its meaning. A second SIGTERM ends the process.

  Attributes:
    received: whether the signal has come.
  """

  def __init__(self, *, active: bool = True):
    """Takes whether to listen at all."""
    self.received = False
    self._active = active
    self._before: Any = None

  def __enter__(self) -> Sigterm:
    in_main = threading.current_thread() is threading.main_thread()
    # A handler that was not set from Python is None, and not ours to replace.
    before = signal.getsignal(signal.SIGTERM)
    if self._active and in_main and before is not None:
      self._before = before
      signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *unused_error) -> None:
    self._restore()

  def _note(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    self.received = True
    self._restore()

  def _restore(self) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)
      self._before = None
