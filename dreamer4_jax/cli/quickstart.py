"""`dreamer4 quickstart`: from nothing to an agent that learned in its dreams.

Records a dataset, trains the four phases, evaluates and reports. Each part
leaves a file when it is done, so an interrupted run resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import itertools
import logging
import pathlib
from typing import Any

from dreamer4_jax.config import PHASES, Config, saved
from dreamer4_jax.data.held_out import check_held_out
from dreamer4_jax.envs.checks import needed_environment
from dreamer4_jax.evals.evaluation import evaluate
from dreamer4_jax.runtime.clock import Clock
from dreamer4_jax.training import checks
from dreamer4_jax.training.clips import training_loader
from dreamer4_jax.training.phases import load_task_vectors, train_phases

_LOG = logging.getLogger(__name__)


def quickstart(
  config: Config,
  run_dir: pathlib.Path,
  record: Callable[[Config], Any] | None = None,
  pretokenise: Callable[[str, str, str], Any] | None = None,
) -> dict[str, Any]:
  """Runs all parts and returns what is written to `results.json`.

  Args:
    config: the run; `config.data.path`, of its first source, is where the
      dataset is, or will be.
    run_dir: where everything else goes.
    record: records the run's first dataset; called if it is not there yet. With
      None, the dataset must exist.
    pretokenise: takes the run, a dataset and a path, and writes the dataset's
      latents there, with the run's trained tokenizer; called likewise. With
      None, later phases read frames, or the latents that the config names.

  Raises:
    ValueError: something does not fit; nothing was written or, if the recorded
      dataset is at fault, nothing was trained.
    FileNotFoundError: there is no dataset, and nothing to record it with.
  """
  # The run's own latents are made once the tokenizer is trained.
  plain = _without_latents(config) if pretokenise else config
  dataset = pathlib.Path(config.data.path)
  if record is None and not dataset.exists():
    raise FileNotFoundError(
      f'data.sources.0.path = {config.data.path!r}: no dataset there; record '
      'one, for example with `python -m data_pipelines.collect --out DIR`, or '
      'define a function `record(config)` in the experiment'
    )
  _check(plain, run_dir, recorded=record is not None)
  saved.save(config, run_dir)
  if record is not None and not dataset.exists():
    _LOG.info('data: recording %s', config.data.path)
    with Clock(run_dir, 'data'):
      record(config)
    checks.check_data(plain, run_dir)
    check_held_out(config)
  if pretokenise:
    config = _with_latents(config, run_dir)
  for phase in PHASES:
    train_phases(config, run_dir, (phase,), loaders=training_loader)
    if phase == 'tokenizer' and pretokenise:
      for source in config.data.sources:
        if not pathlib.Path(source.latents).exists():
          with Clock(run_dir, 'data'):
            pretokenise(str(run_dir), source.path, source.latents)
  return evaluate(run_dir, config=config)


def _check(
  config: Config, run_dir: str | pathlib.Path, *, recorded: bool
) -> None:
  """Checks everything except the contents of a dataset yet to be recorded."""
  config.check_context(PHASES)
  checks.check_directories(config, run_dir)
  if config.data.task_vectors:
    load_task_vectors(config)
  needed_environment(config)
  if not recorded or pathlib.Path(config.data.path).exists():
    checks.check_data(config, run_dir)
    check_held_out(config)


def _with_latents(config: Config, run_dir: pathlib.Path) -> Config:
  """Puts the latents of every dataset into the run directory."""
  number = itertools.count()
  return _replace_latents(
    config, lambda: str(run_dir / f'latents-{next(number)}')
  )


def _without_latents(config: Config) -> Config:
  return _replace_latents(config, lambda: '')


def _replace_latents(config: Config, name: Callable[[], str]) -> Config:
  replace, data = dataclasses.replace, config.data
  sources = tuple(replace(s, latents=name()) for s in data.sources)
  return replace(config, data=replace(data, sources=sources))
