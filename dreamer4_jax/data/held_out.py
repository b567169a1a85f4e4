"""Held-out clips, on which a run is evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dreamer4_jax.config import Config, require
from dreamer4_jax.data.epochs import Epochs
from dreamer4_jax.data.format import Description
from dreamer4_jax.data.pipeline import make_loader
from dreamer4_jax.data.planning import Draws, Window
from dreamer4_jax.data.sources import CACHE_BYTES, EpisodeSource, Stretch
from dreamer4_jax.data.transforms import Clips
from dreamer4_jax.types import Batch

BATCH_SIZE = 16
"""Held-out clips in a batch."""
DREAMS = 1
"""Stream of the clips that dreams are compared with."""
CLIP_BATCHES = 200
"""Batches that are searched for clips within one episode."""


def held_out_clips(
  config: Config, length: int, stream: int = 0
) -> Iterator[Batch]:
  """Returns an endless iterator of held-out clips, the same each time.

  Args:
    config: the run.
    length: frames of a clip.
    stream: a different number gives a different order.
  """
  return make_loader(
    config.data.path,
    config.data.eval_split,
    expected(config),
    Draws(length=length, batch_size=BATCH_SIZE, seed=config.eval.seed + stream),
  )


def read_clips(
  config: Config, split: str, ends: Sequence[tuple[int, int]], length: int
) -> Batch:
  """Reads clips of the first dataset that are named, labeled as for dreams.

  Args:
    config: the run.
    split: of the dataset.
    ends: for each clip, the episode and its last frame.
    length: frames of a clip.

  Raises:
    FileNotFoundError: there is no dataset.
    ValueError: there is no such clip, or it ends its episode.
  """
  clips = open_clips(config, split, cache_bytes=0)
  lengths = clips.sources[0].index.lengths
  for episode, end in ends:
    require(
      0 <= episode < len(lengths) and length - 1 <= end < lengths[episode] - 1,
      'clip',
      (episode, end),
      f'must be an episode below {len(lengths)}, and a frame of it that has '
      f'{length - 1} before it and one after it',
    )
  windows = [
    Window(
      segments=(Stretch(episode, end + 1 - length, end + 1),),
      anchor_task=-1,
      switch_tasks=True,
      separate_images=False,
    )
    for episode, end in ends
  ]
  return clips.read(windows)


def open_clips(
  config: Config, split: str, cache_bytes: int = CACHE_BYTES
) -> Clips:
  """Opens a split of the first dataset, to read any windows of it.

  All recorded actions are known, whatever the run was trained to know.

  Args:
    config: the run.
    split: of the dataset.
    cache_bytes: a dataset of fewer bytes is kept in memory.

  Raises:
    FileNotFoundError: there is no dataset.
    ValueError: it is not what the run expects, or has no such split.
  """
  wanted = expected(config)
  source = EpisodeSource(
    config.data.path,
    split,
    actions=wanted.actions,
    tasks=wanted.tasks,
    frame_shape=wanted.frame_shape,
    vectors=wanted.vectors,
    cache_bytes=cache_bytes,
  )
  return Clips(
    sources=[source],
    labeled=[np.ones(len(source), bool)],
    actions=config.actions,
    tasks=config.tasks,
    milestones=config.milestones,
    vectors=config.vectors,
  )


def expected(config: Config) -> Description:
  """Returns what a run expects of its datasets."""
  return Description(
    actions=config.actions,
    tasks=config.tasks,
    frame_shape=config.tokenizer.frame_shape,
    vectors=config.vectors,
  )


def check_held_out(config: Config) -> None:
  """Checks that the held-out split has the clips of the evaluation.

  Raises:
    ValueError: it does not, or the split is missing.
    FileNotFoundError: there is no dataset.
  """
  e = config.eval
  length = e.context_frames + max(e.horizons)
  held_out_clips(config, config.dynamics.context_length)
  index = EpisodeSource(
    config.data.path, config.data.eval_split, cache_bytes=0
  ).index
  longest = int(index.lengths.max())
  require(
    length <= longest,
    'eval.horizons',
    e.horizons,
    f'with eval.context_frames = {e.context_frames} needs clips of {length} '
    f'frames, and the longest episode of {config.data.eval_split!r} in '
    f'{config.data.path} has {longest}; use shorter horizons or less context',
  )
  epochs = Epochs(index.lengths, length, e.seed + DREAMS)
  drawn = range(CLIP_BATCHES * BATCH_SIZE)
  whole = sum(len(epochs[number]) == 1 for number in drawn)
  require(
    whole >= e.clips,
    'eval.clips',
    e.clips,
    f'only {whole} of the first {len(drawn):,} held-out clips of {length} '
    'frames lie within one episode; use shorter horizons, fewer clips or '
    'longer episodes',
  )
