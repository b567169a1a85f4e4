"""The clips that feed each phase."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from dreamer4_jax.config import (
  PHASES,
  Config,
  FinetunePhase,
  PhaseConfig,
  require,
)
from dreamer4_jax.data import make_loader
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
    """Goes to a position that `get_state` returned."""
    self._contexts.set_state(state['contexts'])
    self._clips.set_state(state['clips'])


def training_loader(
  config: Config, phase: str, length: int, tokenizer: str = ''
) -> ClipIterator:
  """Returns this process's endless iterator of clips of `length` frames.

  Phases after the tokenizer's read the pre-tokenised datasets, where there are
  any. Those about tasks leave datasets out that know of none. Imagination has
  contexts of dreams and, if it trains the world model, clips as well.

  Args:
    config: the run.
    phase: name of the phase.
    length: frames of a clip.
    tokenizer: fingerprint of the trained tokenizer, empty before.
  """
  p = config.phases
  settings = getattr(p, phase)
  _check_shares(config, phase, settings.batch_size)
  if phase == 'finetune':
    _check_losses(p.finetune)
  loader = _loader(config, phase, settings, length, tokenizer)
  if phase != 'imagination' or not p.imagination.world_rate:
    return loader
  clips = dataclasses.replace(
    p.finetune, batch_size=settings.batch_size, baseline_share=0.0
  )
  _check_losses(clips)
  clips = _loader(config, 'finetune', clips, length, tokenizer, stream=1)
  return DreamBatches(loader, clips)


def _loader(
  config: Config,
  phase: str,
  settings: PhaseConfig,
  length: int,
  tokenizer: str,
  stream: int = 0,
) -> ClipIterator:
  """Makes the clips of a phase; streams of one phase are independent."""
  processes = jax.process_count()
  finetunes = isinstance(settings, FinetunePhase)
  datasets = config.data.datasets
  if tokenizer:
    datasets = [
      dataclasses.replace(d, path=d.latents or d.path) for d in datasets
    ]
  return make_loader(
    datasets,
    config.data.train_split,
    actions=config.actions,
    tasks=config.tasks,
    batch_size=settings.batch_size // processes,
    length=length,
    # Streams of phases and clip lengths do not repeat each other.
    seed=(
      config.seed * 10_000
      + (PHASES.index(phase) + len(PHASES) * stream) * 1_000
      + length
    ),
    relevant_share=settings.relevant_share,
    baseline_share=settings.baseline_share if finetunes else 0.0,
    novel_share=settings.novel_share,
    separate_images=settings.separate_images,
    switch_tasks=config.data.switch_tasks,
    process_index=jax.process_index(),
    process_count=processes,
    frame_shape=config.tokenizer.frame_shape,
    vectors=config.vectors,
    tokenizer=tokenizer,
    only_with_tasks=phase in ('finetune', 'imagination'),
    cloning=finetunes and settings.policy_weight > 0,
    dreams=phase == 'imagination',
    threads=config.data.threads,
    ahead=config.data.ahead,
  )


def _check_losses(phase: FinetunePhase) -> None:
  """Raises `ValueError` if a loss has a weight and could have no data."""
  rows = round(phase.relevant_share * phase.batch_size)
  baselines = round(phase.baseline_share * phase.batch_size)
  require(
    phase.baseline_share == 0 or (baselines > 0 and phase.policy_weight > 0),
    'phases.finetune.baseline_share',
    phase.baseline_share,
    f'baselines would learn nothing, of {baselines} clips in a batch of '
    f'{phase.batch_size} and with policy_weight = {phase.policy_weight}; raise '
    'it or the weight, or set it to 0',
  )
  require(
    rows > 0 or phase.policy_weight == 0,
    'phases.finetune.relevant_share',
    phase.relevant_share,
    f'leaves no clip of a batch of {phase.batch_size} to clone behaviour '
    'from; raise it, or set phases.finetune.policy_weight to 0',
  )
  require(
    rows > 0
    or phase.context_share > 0
    or phase.reward_weight == phase.cont_weight == 0,
    'phases.finetune.context_share',
    phase.context_share,
    'leaves no clip to learn reward and continuation from, since '
    f'relevant_share = {phase.relevant_share}; raise one of the two, or set '
    'phases.finetune.reward_weight and cont_weight to 0',
  )
  require(
    rows + baselines < phase.batch_size or phase.dynamics_weight == 0,
    'phases.finetune.relevant_share',
    phase.relevant_share,
    f'leaves no uniform clip of a batch of {phase.batch_size} for the '
    'dynamics loss; lower it'
    + f' or baseline_share = {phase.baseline_share}' * (baselines > 0)
    + ', or set phases.finetune.dynamics_weight to 0',
  )
  require(
    phase.separate_images < 1 or phase.policy_weight == 0,
    'phases.finetune.separate_images',
    phase.separate_images,
    'leaves no actions to clone behaviour from; lower it, or set '
    'phases.finetune.policy_weight to 0',
  )


def _check_shares(config: Config, phase: str, batch_size: int) -> None:
  """Raises `ValueError` unless each process has rows of its own."""
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
