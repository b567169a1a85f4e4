"""What all commands share: options, one-sentence errors, extras."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import contextlib
import importlib
import importlib.util
import logging
import os
import pathlib
import sys
from typing import Any

from dreamer4_jax.runtime.memory import keep_freed_memory

MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130
"""Exit codes, the same as those of `dreamer4`."""


class FailedError(RuntimeError):
  """The work failed through no fault of the user; the message says why."""


def main_of(
  config_type: type,
  command: Callable[[Any], Any],
  show: Callable[[Any, Any], None],
  *,
  description: str | None,
) -> None:
  """Runs a command; reports mistakes as one sentence on standard error.

  Args:
    config_type: dataclass of the options.
    command: takes the options, does the work, returns a report.
    show: `(options, report)`, prints the report.
    description: of the command, for `--help`.
  """
  import tyro

  module = pathlib.Path(sys.argv[0]).stem
  # Here and not in `command`, which must not alter its caller's process.
  keep_freed_memory()
  quiet()
  try:
    config = tyro.cli(
      config_type,
      prog=f'python -m data_pipelines.{module}',
      description=description or '',
    )
    show(config, command(config))
  except (ValueError, OSError, FailedError) as error:
    print(f'{module}: {error}', file=sys.stderr)
    sys.exit(FAILURE if isinstance(error, FailedError) else MISTAKE)
  except ImportError as error:
    # Errors meant for users name no module; any others are bugs.
    if error.name:
      raise
    print(f'{module}: {error}', file=sys.stderr)
    sys.exit(MISTAKE)
  except KeyboardInterrupt:
    print(
      f'\n{module}: interrupted; the same command goes on where it was',
      file=sys.stderr,
    )
    sys.exit(INTERRUPTED)


@contextlib.contextmanager
def in_words_of(options: Mapping[str, str]) -> Iterator[None]:
  """Lets errors name this command's options instead of a config's fields.

  Args:
    options: by the field, such as `EnvConfig.name`.
  """
  try:
    yield
  except (ValueError, FileNotFoundError, ImportError) as error:
    text = str(error)
    for field, option in options.items():
      text = text.replace(field, option)
    if text == str(error) or getattr(error, 'name', None):
      raise
    kinds = (FileNotFoundError, ImportError, ValueError)
    kind = next(k for k in kinds if isinstance(error, k))
    raise kind(text) from error


def quiet() -> None:
  """Drops Orbax's log lines below ERROR, in this process.

  It warns that directories are read-only, as they should be. Real errors are
  raised.
  """
  logging.getLogger('absl').addFilter(_is_worth_reading)


def _is_worth_reading(record: logging.LogRecord) -> bool:
  of_orbax = f'{os.sep}orbax{os.sep}' in record.pathname
  return record.levelno >= logging.ERROR or not of_orbax


def need(extra: str, *packages: str) -> None:
  """Raises `ImportError` with the extra if one of its packages is missing."""
  for name in packages:
    if importlib.util.find_spec(name) is None:
      raise ImportError(
        f'the package {name} is needed and not installed: run '
        f"`pip install 'dreamer4_jax[{extra}]'`"
      )


class Deferred:
  """A module of an extra, imported when it is first used.

  So a command can list its options without its extra.
  """

  def __init__(self, name: str, extra: str):
    """Takes the module's dotted name, and the extra that provides it."""
    self._name, self._extra = name, extra

  def __getattr__(self, attribute: str) -> Any:
    if attribute.startswith('__'):
      raise AttributeError(attribute)
    need(self._extra, self._name.partition('.')[0])
    return getattr(importlib.import_module(self._name), attribute)
