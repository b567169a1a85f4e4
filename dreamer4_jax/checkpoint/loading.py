"""Loads what a phase has trained, outside of its training."""

from __future__ import annotations

from collections.abc import Sequence
import logging
import math
import pathlib
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from dreamer4_jax.checkpoint import items
from dreamer4_jax.checkpoint.best import Best
from dreamer4_jax.checkpoint.compatibility import check_config, model_fields
from dreamer4_jax.config import Config

_LOG = logging.getLogger(__name__)


def load_arrays(
  phase_dir: str | pathlib.Path,
  *,
  only: Sequence[str] | None = None,
  best: Best | None = None,
) -> tuple[dict[str, Any], Config]:
  """Loads a phase's result without knowing its state's type.

  Args:
    phase_dir: directory of the phase.
    only: names of the top-level fields of the state to read, for example
      `('params',)`; by default all.
    best: how to choose the checkpoint; by default, or if no checkpoint has a
      value of that metric, the latest is taken.

  Returns:
    The state as nested dicts (tuples as lists) of numpy arrays, and the
    config it was made with, from the first checkpoint that can be read.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: `only` names a field that the state does not have.
    DamagedCheckpointError: no checkpoint can be read.
  """
  directory = _directory(phase_dir)
  with items.open_for_reading(directory) as manager:

    def read(number: int) -> tuple[dict[str, Any], Config]:
      path = directory / str(number)
      config = items.read_config(manager, path)
      tree = items.read_metadata(manager, path)
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
      return items.read(manager, path, state=args)['state'], config

    steps = _ordered(manager, directory, best)
    return items.first_readable(steps, read, directory)[0]


def load_state_dict(
  run_dir: str | pathlib.Path,
  phase: str,
  *,
  only: Sequence[str] | None = None,
  which: Literal['result', 'latest'] = 'result',
) -> tuple[dict[str, Any], Config]:
  """Loads what a phase has trained; `load_arrays` of `run_dir/phase`.

  Warns if the phase has not been trained to its end.

  Args:
    run_dir: run directory.
    phase: name of the phase.
    only: see `load_arrays`.
    which: `result` is the best checkpoint if `saving.best_metric` is a metric
      of the phase, and otherwise the latest.
  """
  phase_dir = pathlib.Path(run_dir).absolute() / phase
  directory = _directory(phase_dir)
  with items.open_for_reading(directory) as manager:
    steps = sorted(manager.all_steps(), reverse=True)
    config, _ = items.first_readable(
      steps,
      lambda step: items.read_config(manager, directory / str(step)),
      directory,
    )
  settings = getattr(config.phases, phase)
  if steps[0] < settings.steps:
    _LOG.warning(
      '%s: phase %s stopped at step %d of %d',
      run_dir,
      phase,
      steps[0],
      settings.steps,
    )
  best = Best.of(config.saving, phase) if which == 'result' else None
  return load_arrays(phase_dir, only=only, best=best)


def load_params(
  run_dir: str | pathlib.Path, phase: str
) -> tuple[dict[str, Any], Config]:
  """Loads all parameters that a phase leaves behind; trained ones averaged.

  Args:
    run_dir: run directory.
    phase: name of the phase.

  Returns:
    Parameters by module (see `models.World`), and the config they were made
    with.
  """
  state, config = load_state_dict(run_dir, phase, only=('ema', 'frozen'))
  return {**state['frozen'], **state['ema']}, config


def latest_step(run_dir: str | pathlib.Path, phase: str) -> int:
  """Returns the step of a phase's latest checkpoint, 0 if there is none."""
  directory = pathlib.Path(run_dir).absolute() / phase / items.SUBDIR
  if not directory.is_dir():
    return 0
  with items.open_for_reading(directory) as manager:
    return manager.latest_step() or 0


def trained_by(run_dir: str | pathlib.Path, phase: str) -> dict[str, str]:
  """Returns the version of the code that wrote a phase's latest checkpoint.

  Args:
    run_dir: run directory.
    phase: name of the phase.

  Returns:
    As `code_version`; empty if the checkpoint does not say, or there is none.
  """
  directory = pathlib.Path(run_dir).absolute() / phase / items.SUBDIR
  step = latest_step(run_dir, phase)
  if not step:
    return {}
  with items.open_for_reading(directory) as manager:
    info = items.read_info(manager, directory / str(step))
  return dict(info.get('code', {}))


def check_run(run_dir: str | pathlib.Path, config: Config) -> None:
  """Checks a config against all checkpoints under a run directory.

  Raises:
    ValueError: a phase was trained with another model; names the field.
  """
  for phase_dir in sorted(pathlib.Path(run_dir).absolute().glob('*')):
    directory = phase_dir / items.SUBDIR
    if not directory.is_dir():
      continue
    with items.open_for_reading(directory) as manager:
      step = manager.latest_step()
      if step is None:
        continue
      path = directory / str(step)
      try:
        saved = items.read_config(manager, path)
      except items.DamagedCheckpointError:
        continue  # `restore` reports it and takes the one before.
      check_config(saved, config, str(path), model_fields(phase_dir.name))


def _directory(phase_dir: str | pathlib.Path) -> pathlib.Path:
  directory = pathlib.Path(phase_dir).absolute() / items.SUBDIR
  if not directory.is_dir():
    raise FileNotFoundError(
      f'{directory}: no checkpoints; train {phase_dir} first'
    )
  return directory


def _ordered(
  manager: items.Manager, directory: pathlib.Path, best: Best | None
) -> list[int]:
  """Returns the steps of all checkpoints, the preferred one first."""
  steps = sorted(manager.all_steps(), reverse=True)
  if best is None:
    return steps

  def quality(step: int) -> float:
    try:
      return best.quality(items.read_values(manager, directory / str(step)))
    except items.DamagedCheckpointError:
      return -math.inf

  found = {step: quality(step) for step in steps}
  steps.sort(key=found.get, reverse=True)  # Stable: of equals, the latest.
  if steps and found[steps[0]] == -math.inf:
    _LOG.warning(
      '%s: no checkpoint has a value of %s; taking the latest',
      directory,
      best.metric,
    )
  elif steps:
    _LOG.info('%s: the best checkpoint is of step %d', directory, steps[0])
  return steps
