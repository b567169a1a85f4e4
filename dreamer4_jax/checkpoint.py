"""Checkpoints: train state, data iterators and config, written together.

A phase directory holds `checkpoints/STEP/{state,data,config}`. A checkpoint
appears under its name only when it is complete, so a kill or a full disk
while saving costs the steps since the one before. The only user of Orbax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import json
import logging
import pathlib
from typing import Any

from flax import struct
import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from dreamer4_jax.compatibility import (
  MODEL_FIELDS,
  check_config,
  model_fields,
)
from dreamer4_jax.config import Config
from dreamer4_jax.iterator_state import StateText
from dreamer4_jax.types import PyTree

_LOG = logging.getLogger(__name__)
_SUBDIR = 'checkpoints'


class DamagedCheckpointError(Exception):
  """A complete-looking checkpoint cannot be read."""


@struct.dataclass
class Restored:
  """What `Checkpoints.restore` returns.

  Attributes:
    step: train steps done when the checkpoint was made.
    state: train state, with the shardings of the abstract state.
    data: the iterators' state, as it was given to `save`.
    config: the config that the checkpoint was made with.
  """

  step: int = struct.field(pytree_node=False)
  state: PyTree
  data: Any = struct.field(pytree_node=False)
  config: Config = struct.field(pytree_node=False)


class Checkpoints:
  """The checkpoints of one phase, for the process that trains it.

  A context manager; leaving it waits for the last save.
  """

  def __init__(self, phase_dir: str | pathlib.Path, *, keep: int = 2):
    """Opens `phase_dir`, made if need be, and keeps the `keep` latest."""
    self.directory = pathlib.Path(phase_dir).absolute() / _SUBDIR
    self._manager = _open(
      self.directory,
      max_to_keep=keep,
      create=True,
      cleanup_tmp_directories=True,
    )

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *unused_error) -> None:
    self.close()

  def save(self, step: int, state: PyTree, data: Any, config: Config) -> None:
    """Starts to write a checkpoint and returns once `state` is copied.

    Args:
      step: train steps done.
      state: tree of arrays; may be donated as soon as this returns.
      data: state of the data iterators: dicts, lists, numbers, strings and
        bytes. Each process saves its own.
      config: the config of the run.

    Raises:
      RuntimeError: this save or the one before it failed, for example
        because the disk is full.
    """
    args = ocp.args.Composite(
      state=ocp.args.PyTreeSave(state),
      data=grain.checkpoint.CheckpointSave(StateText.of(data)),
      config=ocp.args.JsonSave(json.loads(config.to_json())),
    )
    self._guarded(lambda: self._manager.save(step, args=args, force=True))

  def wait(self) -> None:
    """Blocks until the last save is on disk; raises as `save` does."""
    self._guarded(self._manager.wait_until_finished)

  def close(self) -> None:
    """Waits and releases the threads; raises as `save` does."""
    self._guarded(self._manager.close)

  def asked_to_stop(self, step: int) -> bool:
    """Whether a scheduler has told some host of several to stop.

    All hosts must ask after the same steps, and all get the same answer.
    Always false with one process, which notices SIGTERM itself.
    """
    return jax.process_count() > 1 and self._manager.reached_preemption(step)

  def latest(self) -> int | None:
    """Returns the step of the latest complete checkpoint on disk."""
    self._manager.reload()
    return max(self._manager.all_steps(), default=None)

  def restore(
    self,
    abstract_state: PyTree,
    *,
    step: int | None = None,
    config: Config | None = None,
    fields: Sequence[str] = MODEL_FIELDS,
  ) -> Restored:
    """Reads a checkpoint onto the devices.

    Args:
      abstract_state: tree of `jax.ShapeDtypeStruct`, with shardings.
      step: which one; by default the latest that can be read. Later ones
        that cannot are reported and renamed, so that training can pass them.
      config: config of this run, compared in `fields` with the saved one.
      fields: see `model_fields`.

    Returns:
      The state with everything that was saved beside it.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the saved config or an array's shape disagrees with this
        run; the sentence names it.
      DamagedCheckpointError: none can be read, or not the one of `step`.
    """

    def read(number: int) -> Restored:
      path = self.directory / str(number)
      saved = _read_config(self._manager, path)
      if config is not None:
        check_config(saved, config, str(path), fields)
      _check_arrays(_read_metadata(self._manager, path), abstract_state, path)
      how = ocp.checkpoint_utils.construct_restore_args(abstract_state)
      state = _read(
        self._manager,
        path,
        state=ocp.args.PyTreeRestore(abstract_state, restore_args=how),
      )['state']
      text = StateText()
      _read(self._manager, path, data=grain.checkpoint.CheckpointRestore(text))
      data = _reading(path, lambda: text.data())
      return Restored(step=number, state=state, data=data, config=saved)

    self._manager.reload()
    steps = self._manager.all_steps() if step is None else [step]
    result, damaged = _first_readable(steps, read, self.directory)
    for number in damaged:
      path = self.directory / str(number)
      if jax.process_index() == 0:
        path.rename(self.directory.parent / f'damaged_checkpoint_{number}')
    if damaged:
      self._manager.reload()
    return result

  def _guarded(self, call: Callable[[], Any]) -> None:
    try:
      call()
    except Exception as error:
      raise RuntimeError(
        f'{self.directory}: saving a checkpoint failed ({error}); the last '
        f'complete one is of step {self.latest()}'
      ) from error


def load_arrays(
  phase_dir: str | pathlib.Path, *, only: Sequence[str] | None = None
) -> tuple[dict[str, Any], Config]:
  """Loads a phase's result without knowing its state's type.

  Args:
    phase_dir: directory of the phase.
    only: names of the top-level fields of the state to read, for example
      `('params',)`; by default all.

  Returns:
    The state as nested dicts (tuples as lists) of numpy arrays, and the
    config it was made with, from the latest readable checkpoint.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: the state has no field of a name in `only`.
    DamagedCheckpointError: no checkpoint can be read.
  """
  directory = pathlib.Path(phase_dir).absolute() / _SUBDIR
  if not directory.is_dir():
    raise FileNotFoundError(
      f'{directory}: no checkpoints; train {phase_dir} first'
    )
  with _open(directory, read_only=True) as manager:

    def read(number: int) -> tuple[dict[str, Any], Config]:
      path = directory / str(number)
      config = _read_config(manager, path)
      tree = _read_metadata(manager, path)
      names = tuple(tree) if only is None else only
      for name in names:
        if name not in tree:
          raise ValueError(
            f'{path}: the state has no {name!r}; it has {sorted(tree)}'
          )
      tree = {name: tree[name] for name in names}
      args = ocp.args.PyTreeRestore(
        tree,
        restore_args=jax.tree.map(
          lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
        ),
        partial_restore=True,
      )
      state = _reading(
        path,
        lambda: manager.restore(number, args=ocp.args.Composite(state=args))[
          'state'
        ],
      )
      return state, config

    return _first_readable(manager.all_steps(), read, directory)[0]


def load_state_dict(
  run_dir: str | pathlib.Path,
  phase: str,
  *,
  only: Sequence[str] | None = None,
) -> tuple[dict[str, Any], Config]:
  """Loads what a phase has trained; `load_arrays` of `run_dir/phase`.

  Warns if the phase has not been trained to its end.
  """
  phase_dir = pathlib.Path(run_dir).absolute() / phase
  arrays, config = load_arrays(phase_dir, only=only)
  with _open(phase_dir / _SUBDIR, read_only=True) as manager:
    step = manager.latest_step()
  total = getattr(config.phases, phase).steps
  if step < total:
    _LOG.warning(
      '%s: phase %s stopped at step %d of %d', run_dir, phase, step, total
    )
  return arrays, config


def check_run(run_dir: str | pathlib.Path, config: Config) -> None:
  """Checks a config against all checkpoints under a run directory.

  Raises:
    ValueError: a phase was trained with another model; names the field.
  """
  for phase_dir in sorted(pathlib.Path(run_dir).absolute().glob('*')):
    directory = phase_dir / _SUBDIR
    if not directory.is_dir():
      continue
    with _open(directory, read_only=True) as manager:
      step = manager.latest_step()
      if step is None:
        continue
      path = directory / str(step)
      try:
        saved = _read_config(manager, path)
      except DamagedCheckpointError:
        continue  # `restore` reports it and takes the one before.
      check_config(saved, config, str(path), model_fields(phase_dir.name))


def _open(directory: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    directory,
    options=ocp.CheckpointManagerOptions(**options),
    item_handlers={
      'state': ocp.PyTreeCheckpointHandler(),
      'data': grain.checkpoint.CheckpointHandler(),
      'config': ocp.JsonCheckpointHandler(),
    },
  )


def _reading(path: pathlib.Path, call: Callable[[], Any]) -> Any:
  try:
    return call()
  except (MemoryError, jax.errors.JaxRuntimeError):
    raise  # No memory is no damage.
  except Exception as error:
    reason = f'{type(error).__name__}: {error}'.splitlines()[0][:200]
    raise DamagedCheckpointError(
      f'{path}: cannot be read ({reason})'
    ) from error


def _read(manager, path: pathlib.Path, **items: Any) -> Any:
  args = ocp.args.Composite(**items)
  return _reading(path, lambda: manager.restore(int(path.name), args=args))


def _read_config(manager, path: pathlib.Path) -> Config:
  plain = _read(manager, path, config=ocp.args.JsonRestore())['config']
  return Config.from_json(json.dumps(plain))


def _read_metadata(manager, path: pathlib.Path) -> dict[str, Any]:
  return _reading(
    path, lambda: dict(manager.item_metadata(int(path.name))['state'].tree)
  )


def _check_arrays(
  metadata: PyTree, abstract_state: PyTree, path: pathlib.Path
) -> None:
  def describe(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
      jax.tree_util.keystr(k, simple=True, separator='.'): (
        f'{np.dtype(x.dtype)}{list(x.shape)}'
      )
      for k, x in leaves
    }

  saved, wanted = describe(metadata), describe(abstract_state)
  for name in [*wanted, *saved]:
    a, b = saved.get(name, 'nothing'), wanted.get(name, 'nothing')
    if a != b:
      raise ValueError(
        f'state.{name}: the checkpoint {path} holds {a}, this run has {b}; '
        'was it made by another config or version?'
      )


def _first_readable(
  steps: Sequence[int], read: Callable[[int], Any], directory: pathlib.Path
) -> tuple[Any, list[int]]:
  """Returns `read` of the latest readable step, and the unreadable ones."""
  damaged: list[int] = []
  reasons: list[str] = []
  for step in sorted(steps, reverse=True):
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
