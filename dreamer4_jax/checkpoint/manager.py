"""The checkpoints of a phase, for the processes that train it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import itertools
import json
import pathlib
from typing import Any

from flax import struct
import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from dreamer4_jax.checkpoint import items
from dreamer4_jax.checkpoint.best import (
  Best,
  drop_damaged_values,
  keep_options,
)
from dreamer4_jax.checkpoint.compatibility import MODEL_FIELDS, check_config
from dreamer4_jax.checkpoint.iterator_state import StateText
from dreamer4_jax.checkpoint.version import code_version
from dreamer4_jax.config import Config
from dreamer4_jax.types import PyTree

_QUESTIONS = itertools.count(1)  # For the whole process; see `asked_to_stop`.


@struct.dataclass
class Restored:
  """What `Checkpoints.restore` returns.

  Attributes:
    step: train steps done when the checkpoint was made.
    state: train state, with the shardings of the abstract state.
    data: the iterators' state, as it was given to `save`.
    config: the config that the checkpoint was made with.
    counters: as they were given to `save`.
    code: version of the code that wrote it, see `version.code_version`; empty
      in checkpoints from before that was saved.
  """

  step: int = struct.field(pytree_node=False)
  state: PyTree
  data: Any = struct.field(pytree_node=False)
  config: Config = struct.field(pytree_node=False)
  counters: dict[str, Any] = struct.field(pytree_node=False)
  code: dict[str, str] = struct.field(pytree_node=False)


class Checkpoints:
  """The checkpoints of one phase, for the process that trains it.

  A context manager; leaving it waits for the last save. Checkpoints hold no
  random key: that of a step follows from the config's seed and the step.
  """

  def __init__(
    self,
    phase_dir: str | pathlib.Path,
    *,
    keep_last: int = 2,
    best: Best | None = None,
  ):
    """Opens a directory, created if needed.

    Args:
      phase_dir: directory of the phase.
      keep_last: how many of the latest are kept.
      best: by which metric the best is kept as well.
    """
    self.directory = pathlib.Path(phase_dir).absolute() / items.SUBDIR
    self._best = best
    self._code = code_version()
    drop_damaged_values(self.directory)
    self._manager = items.open_manager(
      self.directory,
      create=True,
      cleanup_tmp_directories=True,
      **keep_options(keep_last, best),
    )

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *unused_error) -> None:
    self.close()

  def save(
    self,
    step: int,
    state: PyTree,
    data: Any,
    config: Config,
    *,
    value: float | None = None,
    counters: Mapping[str, Any] | None = None,
  ) -> None:
    """Starts to write a checkpoint and returns once `state` is copied.

    Args:
      step: train steps done.
      state: tree of arrays; may be donated as soon as this returns.
      data: state of the data iterators: dicts, lists, numbers, strings and
        bytes. Each process saves its own.
      config: the config of the run.
      value: of the metric that checkpoints are compared by. A checkpoint
        without a finite value is never the best.
      counters: other plain data that `restore` returns.

    Raises:
      RuntimeError: this save or the one before it failed, for example
        because the disk is full.
    """
    info = {'code': self._code, 'counters': dict(counters or {})}
    args = ocp.args.Composite(
      state=ocp.args.PyTreeSave(state),
      data=grain.checkpoint.CheckpointSave(StateText.of(data)),
      config=ocp.args.JsonSave(json.loads(config.to_json())),
      info=ocp.args.JsonSave(info),
    )
    values = None
    if self._best is not None and value is not None and np.isfinite(value):
      values = {self._best.metric: float(value)}
    self._guarded(
      lambda: self._manager.save(step, args=args, metrics=values, force=True)
    )

  def wait(self) -> None:
    """Blocks until the last save is on disk; raises as `save` does."""
    self._guarded(self._manager.wait_until_finished)

  def close(self) -> None:
    """Waits and releases the threads; raises as `save` does."""
    self._guarded(self._manager.close)

  def asked_to_stop(self) -> bool:
    """Whether a scheduler has told any of several hosts to stop.

    All hosts must ask equally often, and all get the same answer. Always false
    with one process, which notices SIGTERM itself.
    """
    # JAX has all hosts stop at the number after the highest that had been asked
    # about when the signal came. So the numbers must continue across phases: if
    # they restarted with each phase's steps, the right one would come late.
    number = next(_QUESTIONS)
    return jax.process_count() > 1 and ocp.multihost.reached_preemption(number)

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
      step: which one; by default the latest that can be read. Later ones that
        cannot are reported and renamed, so that training can get past them.
      config: config of this run, compared in `fields` with the saved one.
      fields: see `model_fields`.

    Returns:
      The state with everything that was saved beside it.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the saved config or an array's shape disagrees with this
        run; the message names it.
      DamagedCheckpointError: none can be read, or that of `step` cannot.
    """

    def read(number: int) -> Restored:
      path = self.directory / str(number)
      saved = items.read_config(self._manager, path)
      if config is not None:
        check_config(saved, config, str(path), fields)
      metadata = items.read_metadata(self._manager, path)
      _check_arrays(metadata, abstract_state, path)
      how = ocp.checkpoint_utils.construct_restore_args(abstract_state)
      arrays = ocp.args.PyTreeRestore(abstract_state, restore_args=how)
      info = items.read_info(self._manager, path)
      return Restored(
        step=number,
        state=items.read(self._manager, path, state=arrays)['state'],
        data=items.read_data(self._manager, path),
        config=saved,
        counters=info.get('counters', {}),
        code=info.get('code', {}),
      )

    self._manager.reload()
    steps = [step]
    if step is None:
      steps = sorted(self._manager.all_steps(), reverse=True)
    result, damaged = items.first_readable(steps, read, self.directory)
    for number in damaged:
      path = self.directory / str(number)
      if jax.process_index() == 0:
        path.rename(self.directory.parent / f'damaged_checkpoint_{number}')
    if damaged:
      # No process may still see directories that the first one has renamed.
      ocp.multihost.sync_global_processes('damaged_checkpoints_renamed')
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
