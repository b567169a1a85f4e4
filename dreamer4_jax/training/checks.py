"""Rejects what cannot work, before anything is written or trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import logging
import pathlib

import numpy as np

from dreamer4_jax import checkpoint
from dreamer4_jax.config import PHASES, Config, PhaseConfig, require
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.envs.checks import check_environment
from dreamer4_jax.models import World
from dreamer4_jax.training.clips import training_loader
from dreamer4_jax.training.phases import load_task_vectors

_LOG = logging.getLogger(__name__)


def check_training(
  config: Config,
  run_dir: str | pathlib.Path,
  phases: Sequence[str] = PHASES,
) -> None:
  """Checks all that `train` needs.

  Args:
    config: the run.
    run_dir: where checkpoints will go.
    phases: those that will be trained.

  Raises:
    ValueError: something does not fit; the message names the field.
    FileNotFoundError: there is no dataset, or an earlier phase is not trained.
  """
  config.check_context(phases)
  check_directories(config, run_dir)
  if 'finetune' in phases and config.data.task_vectors:
    load_task_vectors(config)
  _check_order(run_dir, phases)
  if config.env.name:
    try:
      check_environment(config)
    except ValueError:
      raise
    except Exception as error:  # It is needed for evaluation only.
      _LOG.debug('no environment here (%s)', error)
  check_data(config, run_dir, phases)


def check_directories(config: Config, run_dir: str | pathlib.Path) -> None:
  """Checks that the output and the datasets of a run do not contain each other.

  Raises:
    ValueError: they do, or the run directory is a file.
  """
  run_dir = pathlib.Path(run_dir)
  if run_dir.exists() and not run_dir.is_dir():
    raise ValueError(f'--run-dir {run_dir}: is a file; name a directory')
  run = run_dir.resolve()
  written = [run / phase for phase in PHASES]
  for i, dataset in enumerate(config.data.sources):
    where = f'data.sources.{i}'
    for name in ('path', 'latents'):
      value = getattr(dataset, name)
      if not value:
        continue
      path = pathlib.Path(value).resolve()
      inside = run == path or path in run.parents
      around = any(w == path or w in path.parents for w in written)
      require(
        not inside and not around,
        f'{where}.{name}',
        value,
        f'the run directory {run_dir} would write checkpoints into this '
        'dataset; choose another --run-dir',
      )


def check_data(
  config: Config,
  run_dir: str | pathlib.Path,
  phases: Sequence[str] = PHASES,
) -> None:
  """Checks that every phase gets its clips; see `check_training`."""
  fingerprint = _final_fingerprint(config, run_dir, phases)
  if phases and ('tokenizer' in phases or not fingerprint):
    for dataset in config.data.sources:
      EpisodeSource(
        dataset.path,
        config.data.train_split,
        actions=config.actions,
        tasks=config.tasks,
        frame_shape=config.tokenizer.frame_shape,
        vectors=config.vectors,
        cache_bytes=0,
      )
  _check_latents(config, phases, fingerprint)
  for phase in phases:
    settings: PhaseConfig = getattr(config.phases, phase)
    tokenizer = '' if phase == 'tokenizer' else fingerprint
    for length in settings.clip_lengths:
      with _named(phase):
        training_loader(config, phase, length, tokenizer)
  if 'imagination' in phases:
    _warn_of_no_reward(config)


def _check_order(run_dir: str | pathlib.Path, phases: Sequence[str]) -> None:
  """Raises `FileNotFoundError` if an earlier phase is missing."""
  for phase in phases:
    number = PHASES.index(phase)
    if number and PHASES[number - 1] not in phases:
      before = PHASES[number - 1]
      if not checkpoint.latest_step(run_dir, before):
        raise FileNotFoundError(
          f'{phase}: needs the phase {before}, which has no checkpoint in '
          f'{pathlib.Path(run_dir) / before}; train it first, or leave '
          '--phase out to train all'
        )


def _final_fingerprint(
  config: Config, run_dir: str | pathlib.Path, phases: Sequence[str]
) -> str:
  """Returns the tokenizer's fingerprint, or '' if it is still to be trained."""
  step = checkpoint.latest_step(run_dir, 'tokenizer')
  if not step:
    return ''
  if 'tokenizer' in phases and step < config.phases.tokenizer.steps:
    return ''
  if 'tokenizer' in phases and not any(d.latents for d in config.data.sources):
    return ''  # Not needed.
  params, _ = checkpoint.load_params(run_dir, 'tokenizer')
  return World.from_config(config).fingerprint(params)


def _check_latents(
  config: Config, phases: Sequence[str], fingerprint: str
) -> None:
  """Rejects latents while the tokenizer is untrained: another one made them."""
  if fingerprint or not {*phases} - {'tokenizer'}:
    return
  for i, dataset in enumerate(config.data.sources):
    require(
      not dataset.latents,
      f'data.sources.{i}.latents',
      dataset.latents,
      'latents are made by the trained tokenizer, and that of this run is yet '
      'to be trained; train with --phase tokenizer, pretokenise, and then '
      'train the other phases',
    )


def _warn_of_no_reward(config: Config) -> None:
  """Warns if dreams cannot hold a reward: the policy then stays as cloned."""
  for dataset in config.data.sources:
    if not pathlib.Path(dataset.path).exists():
      return
    source = EpisodeSource(dataset.path, config.data.train_split, cache_bytes=0)
    if len(source.index.event_frame) or np.any(source.index.returns):
      return
  _LOG.warning(
    'imagination: no task is achieved and no reward earned in %s, so there is '
    'nothing to learn from dreams',
    [d.path for d in config.data.sources],
  )


@contextlib.contextmanager
def _named(phase: str) -> Iterator[None]:
  """Adds the phase to an error message that does not name it."""
  try:
    yield
  except ValueError as error:
    if f'phases.{phase}' in str(error):
      raise
    raise ValueError(f'phases.{phase}: {error}') from error
