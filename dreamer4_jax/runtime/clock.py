"""Seconds that the parts of a run took, without pauses but with killed work."""

from __future__ import annotations

import json
import os
import pathlib
import threading
import time

FILE = 'seconds.json'


class Clock:
  """Adds the seconds that a part takes to those on disk; a context manager.

  They are written every few seconds, so a kill loses no more than that. Time
  counts from construction on, but nothing is written before the clock is
  entered: a part with nothing to do leaves no trace.
  """

  def __init__(
    self,
    run_dir: str | pathlib.Path,
    part: str,
    *,
    again: bool = False,
    every: float = 2.0,
  ):
    """Starts to count.

    Args:
      run_dir: run directory, where `seconds.json` is.
      part: name of the part.
      again: the part begins anew; what it took before does not count.
      every: seconds between writes.
    """
    self._path = pathlib.Path(run_dir) / FILE
    self._part = part
    self._every = every
    self._before = 0.0 if again else seconds(run_dir).get(part, 0.0)
    self._start = time.monotonic()
    self._stop = threading.Event()
    self._thread = threading.Thread(
      target=self._write_often, name=f'clock {part}', daemon=True
    )

  def __enter__(self) -> Clock:
    self._write()
    self._thread.start()
    return self

  def __exit__(self, *unused_error) -> None:
    self._stop.set()
    self._thread.join()
    self._write()

  def _write_often(self) -> None:
    while not self._stop.wait(self._every):
      self._write()

  def _write(self) -> None:
    spent = self._before + time.monotonic() - self._start
    known = seconds(self._path.parent) | {self._part: round(spent, 3)}
    self._path.parent.mkdir(parents=True, exist_ok=True)
    temporary = self._path.with_suffix('.tmp')
    temporary.write_text(json.dumps(known, indent=2) + '\n')
    os.replace(temporary, self._path)


def seconds(run_dir: str | pathlib.Path) -> dict[str, float]:
  """Returns the seconds of each part of a run, as far as they are known."""
  try:
    return json.loads((pathlib.Path(run_dir) / FILE).read_text())
  except (FileNotFoundError, ValueError):
    return {}
