"""The clips that feed each phase."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from dreamer4_jax.config import PHASES, Config, require
from dreamer4_jax.data import Draws, expected, make_loader
from dreamer4_jax.training.loop import ClipIterator
from dreamer4_jax.types import DreamBatch


class DreamBatches:
  """Contexts of dreams and clips of finetuning, side by side."""

  def __init__(self, contexts: ClipIterator, clips: ClipIterator):
    self._contexts, self._clips = contexts, clips

  def __next__(self) -> DreamBatch:
    """Returns the next batch of both."""
    return DreamBatch(contexts=next(self._contexts), clips=next(self._clips))

  def get_state(self) -> dict[str, Any]:
    """Returns the position of both."""
    return {
      'contexts': self._contexts.get_state(),
      'clips': self._clips.get_state(),
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Restores a position that `get_state` returned."""
    self._contexts.set_state(state['contexts'])
    self._clips.set_state(state['clips'])


def training_loader(
  config: Config, phase: str, length: int, tokenizer: str = ''
) -> ClipIterator:
  """Returns this process's endless iterator of clips of `length` frames.

  Phases after the tokenizer's read the pre-tokenised datasets, where there are
  any. Those about tasks leave out datasets without tasks. Imagination has
  contexts of dreams and, if it trains the world model, clips as well.

  Args:
    config: the run.
    phase: name of the phase.
    length: frames of a clip.
    tokenizer: fingerprint of the trained tokenizer, empty before.
  """
  _check_shares(config, phase)
  loader = _loader(config, phase, phase, length, tokenizer)
  if phase != 'imagination' or not config.phases.imagination.world_rate:
    return loader
  clips = _loader(config, phase, 'finetune', length, tokenizer)
  return DreamBatches(loader, clips)


def _loader(
  config: Config, phase: str, kind: str, length: int, tokenizer: str
) -> ClipIterator:
  """Makes clips for a phase, of its own kind or of that of another phase."""
  settings = getattr(config.phases, kind)
  rows = getattr(config.phases, phase).batch_size
  baselines = getattr(settings, 'baseline_share', 0.0)
  if kind != phase:
    baselines = 0.0
  if kind == 'finetune':
    _check_losses(config, rows, baselines)
  datasets, data = config.data.sources, config.data
  if tokenizer:
    datasets = [
      dataclasses.replace(d, path=d.latents or d.path) for d in datasets
    ]
  stream = PHASES.index(kind) + len(PHASES) * (kind != phase)
  dreams = kind == 'imagination'
  draws = Draws(
    length=length,
    batch_size=rows,
    # Streams of phases and clip lengths do not repeat each other.
    seed=config.seed * 10_000 + stream * 1_000 + length,
    relevant_share=getattr(settings, 'relevant_share', 0.0),
    baseline_share=baselines,
    novel_share=data.novel_share,
    separate_images=0.0 if dreams else data.separate_images,
    switch_tasks=data.switch_tasks,
    # A world model may see every event, an agent only those it is asked for.
    milestones=config.milestones and kind in ('finetune', 'imagination'),
    lead=data.lead,
    purpose={'finetune': 'cloning', 'imagination': 'dreams'}.get(kind, 'video'),
  )
  return make_loader(
    datasets,
    data.train_split,
    expected(config),
    draws,
    tokenizer=tokenizer,
    process=(jax.process_index(), jax.process_count()),
    threads=data.threads,
  )


def _check_losses(config: Config, batch: int, baseline_share: float) -> None:
  """Raises `ValueError` if a loss of finetuning could have no data."""
  phase = config.phases.finetune
  rows = round(phase.relevant_share * batch)
  baselines = round(baseline_share * batch)
  require(
    baseline_share == 0 or baselines > 0,
    'phases.finetune.baseline_share',
    baseline_share,
    f'baselines would learn nothing, of no clip in a batch of {batch}; raise '
    'it, or set it to 0',
  )
  require(
    rows > 0,
    'phases.finetune.relevant_share',
    phase.relevant_share,
    f'leaves no clip of a batch of {batch} to clone behaviour from; raise it',
  )
  require(
    rows + baselines < batch,
    'phases.finetune.relevant_share',
    phase.relevant_share,
    f'leaves no uniform clip of a batch of {batch} for the dynamics loss; '
    'lower it' + f' or baseline_share = {baseline_share}' * (baselines > 0),
  )
  require(
    config.data.separate_images < 1,
    'data.separate_images',
    config.data.separate_images,
    'leaves no actions to clone behaviour from; lower it',
  )


def _check_shares(config: Config, phase: str) -> None:
  """Raises `ValueError` unless each process has rows of its own."""
  batch_size = getattr(config.phases, phase).batch_size
  processes, devices = jax.process_count(), jax.local_device_count()
  require(
    batch_size % processes == 0,
    f'phases.{phase}.batch_size',
    batch_size,
    f'must be divisible by the number of processes, {processes}',
  )
  m = config.mesh
  tensor = m.tensor
  if tensor == -1:
    tensor = jax.device_count() // (m.data * m.fsdp)
  require(
    processes == 1 or devices % tensor == 0,
    'mesh.tensor',
    tensor,
    f'must divide the devices of a process, {devices}, so that no two '
    'processes share a row of the batch',
  )
