"""The loader: Grain moves planned windows from disk to batches."""

from __future__ import annotations

from collections.abc import Sequence
import functools

import grain
import numpy as np

from dreamer4_jax.config import ActionComponent, require
from dreamer4_jax.data import planning, sources, transforms


def make_loader(
  path: str,
  split: str,
  *,
  actions: Sequence[ActionComponent],
  tasks: Sequence[str],
  batch_size: int,
  length: int,
  seed: int,
  relevant_share: float = 0.0,
  separate_images: float = 0.0,
  switch_tasks: float = 0.5,
  labeled_share: float = 1.0,
  process_index: int = 0,
  process_count: int = 1,
  frame_shape: Sequence[int] | None = None,
) -> grain.DatasetIterator:
  """Makes an endless iterator over batches.

  A row depends on the seed, the process and the row's number in the stream
  alone, so `get_state` and `set_state` restore exactly.

  Args:
    path: directory of the dataset.
    split: name of the split.
    actions: the run's action space; the dataset must have the same.
    tasks: the run's task names in id order; the dataset must have the same.
    batch_size: rows per batch of *this process*.
    length: frames of a window, T.
    seed: of all choices.
    relevant_share: share of rows placed on an event; exactly
      round(share * batch_size) rows, spread evenly over the batch.
    separate_images: share of clips whose frames are segments of their own,
      without actions.
    switch_tasks: share of clips whose task label advances at each event.
    labeled_share: share of episodes that keep their actions.
    process_index: number of this process.
    process_count: number of processes; each draws its own rows.
    frame_shape: height, width, channels that the run expects, or None.

  Returns:
    A Grain iterator of `Batch` with numpy arrays.

  Raises:
    FileNotFoundError: there is no dataset at `path`.
    ValueError: the dataset or an argument is not as it must be; the message
      names the field.
  """
  require(
    0 <= process_index < process_count,
    'process_index',
    process_index,
    f'must lie in [0, process_count = {process_count})',
  )
  require(
    0 <= labeled_share <= 1,
    'labeled_share',
    labeled_share,
    'must lie in [0, 1]',
  )
  source = sources.EpisodeSource(
    path, split, actions=actions, tasks=tasks, frame_shape=frame_shape
  )
  planner = planning.Planner(
    index=source.index,
    length=length,
    batch_size=batch_size,
    relevant_share=relevant_share,
    separate_images=separate_images,
    switch_tasks=switch_tasks,
  )
  cut = functools.partial(transforms.cut, source, labeled_share=labeled_share)
  stream = np.random.SeedSequence([seed, process_index]).generate_state(1)
  dataset = (
    grain.MapDataset.range(batch_size)
    .repeat()
    .seed(int(stream[0]))
    .random_map(planner.plan)
    .map(cut)
    .batch(batch_size, batch_fn=transforms.stack)
    .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
  )
  return iter(dataset)
