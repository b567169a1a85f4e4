"""Connects training, which knows no dataset, to the data room."""

from __future__ import annotations

import jax

from dreamer4_jax.config import PHASES, Config
from dreamer4_jax.data import make_loader
from dreamer4_jax.training.phases import relevant_share


def training_loader(config: Config, phase: str, length: int):
  """Returns this process's endless iterator of clips of `length` frames."""
  settings = getattr(config.phases, phase)
  processes = jax.process_count()
  return make_loader(
    config.data.path,
    config.data.train_split,
    actions=config.actions,
    tasks=config.tasks,
    batch_size=settings.batch_size // processes,
    length=length,
    # Streams of phases and clip lengths do not repeat each other.
    seed=config.seed * 10_000 + PHASES.index(phase) * 1_000 + length,
    relevant_share=relevant_share(settings),
    separate_images=settings.separate_images,
    switch_tasks=config.data.switch_tasks,
    labeled_share=config.data.labeled_share,
    process_index=jax.process_index(),
    process_count=processes,
    frame_shape=_frame_shape(config),
  )


def evaluation_loader(config: Config, room: str, length: int):
  """Returns an iterator of held-out clips, 16 a batch, the same each time."""
  return make_loader(
    config.data.path,
    config.data.eval_split,
    actions=config.actions,
    tasks=config.tasks,
    batch_size=16,
    length=length,
    seed=config.eval.seed + PHASES.index(room),
    frame_shape=_frame_shape(config),
  )


def _frame_shape(config: Config) -> tuple[int, int, int]:
  t = config.tokenizer
  return t.image_height, t.image_width, t.channels
