"""Metrics on disk: JSON lines, and TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import json
import os
import pathlib
import time

import jax
import numpy as np
import tensorboardX


class MetricWriter:
  """Writes flat `module/name` scalars to `metrics.jsonl` and TensorBoard.

  A line is `{"step": int, "time": seconds since the epoch, "module/name":
  float, ...}`. Standard JSON has no NaN or infinity; Python's reader accepts
  the `NaN` and `Infinity` that are written here. Of several processes, which
  have the same metrics, only the first writes.
  """

  def __init__(self, directory: str | pathlib.Path, *, resume_step: int = 0):
    """Opens the files in `directory`, created if needed.

    Args:
      directory: where `metrics.jsonl` and `tensorboard/` are.
      resume_step: train steps done. Lines of later steps, which a run that
        was cut short left behind, are dropped.
    """
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / 'metrics.jsonl'
    if path.exists():
      kept = list(_lines_until(path.read_text().splitlines(), resume_step))
      new = path.with_suffix('.tmp')
      new.write_text(''.join(line + '\n' for line in kept))
      os.replace(new, path)
    self._file = path.open('a')
    self._board = tensorboardX.SummaryWriter(
      str(directory / 'tensorboard'), purge_step=resume_step + 1
    )

  def __enter__(self) -> MetricWriter:
    return self

  def __exit__(self, *unused_error) -> None:
    self.close()

  def write(self, step: int, metrics: Mapping[str, float | np.ndarray]) -> None:
    """Writes one line.

    Args:
      step: train steps done.
      metrics: scalars by `module/name`.

    Raises:
      ValueError: a metric is not a scalar.
    """
    values = {}
    for name, value in metrics.items():
      if np.ndim(value):
        raise ValueError(
          f'metric {name!r} has shape {np.shape(value)}: must be a scalar'
        )
      values[name] = float(value)
    if not self._writes:
      return
    line = {'step': step, 'time': round(time.time(), 3)} | values
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Flushes and closes the files."""
    if not self._writes:
      return
    self._file.close()
    self._board.close()


def _lines_until(lines: Iterable[str], step: int) -> Iterable[str]:
  for line in lines:
    try:
      number = json.loads(line)['step']
    except (ValueError, KeyError, TypeError):
      continue  # A line cut off by a kill.
    if number <= step:
      yield line
