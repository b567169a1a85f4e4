"""What a user reads while a command runs."""

from __future__ import annotations

import logging
import os
import sys

import tqdm

_OURS = 'dreamer4_jax'


def show(level: int) -> None:
  """Shows our log from `level` on, and warnings of others, on stderr.

  Each line appears once: the handler is that of the root logger. It replaces
  the one that absl adds, unasked, with the first line of any library. Handlers
  that somebody has chosen are left alone.

  Args:
    level: lowest level of our own lines.
  """
  logging.getLogger(_OURS).setLevel(level)
  for handler in [*logging.root.handlers]:
    if _is_nobodys_choice(handler):
      logging.root.removeHandler(handler)
  if not logging.root.handlers:
    logging.root.addHandler(_Handler())


def hush_grain() -> None:
  """Drops a line that Grain logs when it is imported, on jaxlib before 0.11.

  It is about profiles of worker processes, which are not used here. Commands
  call this before Grain is imported.
  """
  from absl import logging

  of_grain = 'Grain multiprocess worker profiling requires'
  logging.get_absl_logger().addFilter(lambda r: of_grain not in str(r.msg))


def _is_nobodys_choice(handler: logging.Handler) -> bool:
  """Whether a handler is as `logging.basicConfig()` makes it."""
  form = getattr(handler.formatter, '_fmt', None)
  return type(handler) is logging.StreamHandler and (
    form == logging.BASIC_FORMAT and handler.level == logging.NOTSET
  )


class _Handler(logging.Handler):
  """Writes lines above a progress bar, not into it."""

  def __init__(self):
    super().__init__()
    self.setFormatter(_Formatter())
    self.addFilter(_is_worth_reading)

  def emit(self, record: logging.LogRecord) -> None:
    """Writes one line."""
    try:
      tqdm.tqdm.write(self.format(record), file=sys.stderr)
    except Exception:
      self.handleError(record)


class _Formatter(logging.Formatter):
  """Our lines as they are, others with their level and logger."""

  def format(self, record: logging.LogRecord) -> str:
    """Returns the line."""
    text = super().format(record)
    if record.name.split('.')[0] == _OURS:
      return text
    return f'{record.levelname}: {record.name}: {text}'


def _is_worth_reading(record: logging.LogRecord) -> bool:
  """Whether a record is not what Orbax says below ERROR, through absl.

  That is waits of a second for the previous save, and directories that are read
  only as we want them. What goes wrong, it raises, and `checkpoint` reports it.
  """
  of_orbax = f'{os.sep}orbax{os.sep}' in record.pathname
  return record.levelno >= logging.ERROR or not of_orbax
