"""What a checkpoint consists of, and how each part is read.

A phase directory holds `checkpoints/STEP/{state,data,config,info}`, and
`metrics` if the best are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import json
import logging
import pathlib
from typing import Any

import grain
import jax
import msgspec
import orbax.checkpoint as ocp

from dreamer4_jax.checkpoint.iterator_state import StateText
from dreamer4_jax.config import Config

_LOG = logging.getLogger(__name__)
SUBDIR = 'checkpoints'


class DamagedCheckpointError(Exception):
  """A complete-looking checkpoint cannot be read."""


class Manager(ocp.CheckpointManager):
  """Orbax's manager, which leaves asking about SIGTERM to the loop.

  JAX's runtime compares the numbers of all such questions. A manager would ask
  again on saving, numbered by the step; see `Checkpoints.asked_to_stop`.
  """

  def reached_preemption(self, step: int) -> bool:
    """Returns false."""
    del step
    return False


def open_manager(directory: pathlib.Path, **options: Any) -> Manager:
  """Returns a manager with a handler for each part; options are Orbax's."""
  return Manager(
    directory,
    options=ocp.CheckpointManagerOptions(**options),
    item_handlers={
      'state': ocp.PyTreeCheckpointHandler(),
      'data': grain.checkpoint.CheckpointHandler(),
      'config': ocp.JsonCheckpointHandler(),
      'info': ocp.JsonCheckpointHandler(),
    },
  )


def open_for_reading(directory: pathlib.Path) -> Manager:
  """Returns a manager that changes nothing on disk."""
  # Orbax would set all of these itself, with a warning for each.
  return open_manager(
    directory,
    read_only=True,
    lightweight_initialize=True,
    create=False,
    save_interval_steps=0,
  )


def read(manager: Manager, path: pathlib.Path, **items: Any) -> Any:
  """Reads parts of the checkpoint at `path`, given by Orbax arguments.

  Raises:
    DamagedCheckpointError: reading fails.
  """
  args = ocp.args.Composite(**items)
  return reading(path, lambda: manager.restore(int(path.name), args=args))


def read_config(manager: Manager, path: pathlib.Path) -> Config:
  """Reads the config; raises as `read` and `Config.from_json` do."""
  plain = read(manager, path, config=ocp.args.JsonRestore())['config']
  try:
    return Config.from_json(json.dumps(plain))
  except (ValueError, msgspec.MsgspecError) as error:
    raise ValueError(f'{path}: {error}') from error


def read_info(manager: Manager, path: pathlib.Path) -> dict[str, Any]:
  """Reads code version and counters; empty in checkpoints of old versions."""
  if not (path / 'info').exists():
    return {}
  return read(manager, path, info=ocp.args.JsonRestore())['info']


def read_data(manager: Manager, path: pathlib.Path) -> Any:
  """Reads the state of the iterators; raises as `read` does.

  Each process takes its own. If the number of processes has changed, all take
  the first one's: loaders count global batches, so their states are the same.
  """
  text = StateText()
  mine = f'process_{jax.process_index()}-of-{jax.process_count()}.json'
  others = sorted((path / 'data').glob('process_0-of-*.json'))
  if (path / 'data' / mine).exists() or not others:
    read(manager, path, data=grain.checkpoint.CheckpointRestore(text))
  else:
    text.set_state(reading(path, others[0].read_bytes))
  return reading(path, text.data)


def read_metadata(manager: Manager, path: pathlib.Path) -> dict[str, Any]:
  """Reads shapes and types of the state; raises as `read` does."""
  return reading(
    path, lambda: dict(manager.item_metadata(int(path.name))['state'].tree)
  )


def read_values(manager: Manager, path: pathlib.Path) -> dict[str, float]:
  """Reads the values by which the best is chosen; empty if none were saved.

  Raises:
    DamagedCheckpointError: they cannot be read.
  """
  return reading(path, lambda: manager.metrics(int(path.name)) or {})


def reading(path: pathlib.Path, call: Callable[[], Any]) -> Any:
  """Returns `call()`; turns its errors into `DamagedCheckpointError`."""
  try:
    return call()
  except (MemoryError, jax.errors.JaxRuntimeError):
    raise  # Running out of memory is not damage.
  except Exception as error:
    reason = f'{type(error).__name__}: {error}'.splitlines()[0][:200]
    raise DamagedCheckpointError(
      f'{path}: cannot be read ({reason})'
    ) from error


def first_readable(
  steps: Iterable[int], read: Callable[[int], Any], directory: pathlib.Path
) -> tuple[Any, list[int]]:
  """Returns `read` of the first readable step, and the steps that failed.

  Args:
    steps: in the order in which they are tried.
    read: raises `DamagedCheckpointError` for one that it cannot read.
    directory: where they are.
  """
  damaged: list[int] = []
  reasons: list[str] = []
  for step in steps:
    try:
      result = read(step)
    except DamagedCheckpointError as error:
      damaged.append(step)
      reasons.append(str(error))
      continue
    for reason in reasons:
      _LOG.warning('damaged checkpoint: %s; going back to %d', reason, step)
    return result, damaged
  if not damaged:
    raise FileNotFoundError(f'{directory}: no complete checkpoint')
  raise DamagedCheckpointError('; '.join(reasons))
