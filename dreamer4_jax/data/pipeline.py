"""The loader: Grain moves planned windows from disk to batches."""

from __future__ import annotations

from collections.abc import Sequence
import functools

import grain

from dreamer4_jax.config import (
  ActionComponent,
  SourceConfig,
  VectorComponent,
  require,
)
from dreamer4_jax.data import labels, novelty, planning, sources, transforms
from dreamer4_jax.types import Batch

_ENDLESS = 1 << 60


def make_loader(
  datasets: str | SourceConfig | Sequence[SourceConfig],
  split: str,
  *,
  actions: Sequence[ActionComponent],
  tasks: Sequence[str],
  batch_size: int,
  length: int,
  seed: int,
  relevant_share: float = 0.0,
  novel_share: float = 0.0,
  baseline_share: float = 0.0,
  separate_images: float = 0.0,
  switch_tasks: float = 0.5,
  process_index: int = 0,
  process_count: int = 1,
  frame_shape: Sequence[int] | None = None,
  vectors: Sequence[VectorComponent] = (),
  tokenizer: str = '',
  only_with_tasks: bool = False,
  cloning: bool = False,
  dreams: bool = False,
  threads: int = 1,
  ahead: int = 4,
  cache_bytes: int = sources.CACHE_BYTES,
) -> grain.DatasetIterator:
  """Makes an endless iterator over batches.

  A batch depends on the seed and its number alone: `get_state` and `set_state`
  restore exactly. Processes share one stream of global batches, of which each
  takes its rows; which rows there are does not depend on their number, so that
  a state may go on on another number of processes, as long as the global batch
  size stays.

  Args:
    datasets: the path of a dataset, or several with weights and labels.
    split: name of the split.
    actions: the run's action space; the datasets must have the same, or none.
    tasks: the run's task names in id order; the datasets must have the same,
      or none.
    batch_size: rows per batch of *this process*.
    length: frames of a window, T.
    seed: of all choices.
    relevant_share: share of rows placed on an event; exactly
      round(share * batch_size) rows, spread evenly over the batch. If no
      dataset has an event, they come from the episodes with actions.
    novel_share: share of the other rows that hold a frame drawn by its weight;
      the weights must have been measured, see `dreamer4_jax.data.novelty`.
    baseline_share: share of rows that are cloned under prompts which are no
      tasks, likewise: in turn of all episodes with actions, under `len(tasks)`,
      and of the better half of them, under `len(tasks) + 1`; see `Planner`.
    separate_images: share of clips whose frames are segments of their own,
      without actions.
    switch_tasks: share of clips whose task label advances at each event.
    process_index: number of this process.
    process_count: number of processes; each draws its own rows.
    frame_shape: height, width, channels that the run expects, or None.
    vectors: what the run sees beside frames; datasets of frames must have it.
    tokenizer: fingerprint of the run's tokenizer, which pre-tokenised datasets
      must have been made with; empty if the run needs frames.
    only_with_tasks: leave out datasets that know neither of events nor of
      rewards.
    cloning: behaviour is to be cloned from the relevant rows, so they must
      have actions.
    dreams: clips are contexts of dreams: none holds a terminal frame, and all
      are labeled as for an agent that acts, with a task that is still to do.
    threads: threads that make batches.
    ahead: batches that may wait.
    cache_bytes: datasets of fewer bytes are kept in memory.

  Returns:
    A Grain iterator of `Batch` with numpy arrays.

  Raises:
    FileNotFoundError: there is no dataset at a path, or no weights of novelty.
    ValueError: a dataset or an argument is not as it must be; the message
      names the field.
  """
  require(
    0 <= process_index < process_count,
    'process_index',
    process_index,
    f'must lie in [0, process_count = {process_count})',
  )
  if isinstance(datasets, str):
    datasets = SourceConfig(path=datasets)
  if isinstance(datasets, SourceConfig):
    datasets = [datasets]
  opened = [
    sources.EpisodeSource(
      dataset.path,
      split,
      actions=actions,
      tasks=tasks,
      frame_shape=frame_shape,
      vectors=vectors,
      cache_bytes=cache_bytes,
    )
    for dataset in datasets
  ]
  _check_tokenizers(opened, tokenizer)
  pairs = [
    (source, dataset)
    for source, dataset in zip(opened, datasets, strict=True)
    if source.description.tasks or not only_with_tasks
  ]
  if not pairs:
    raise ValueError(
      f'tasks: found none in {[str(s.path) for s in opened]}, expected some in '
      'at least one dataset'
    )
  labeled = [labels.labeled_episodes(*pair) for pair in pairs]
  planner = planning.Planner(
    indices=[source.index for source, _ in pairs],
    weights=[dataset.weight for _, dataset in pairs],
    length=length,
    batch_size=batch_size * process_count,
    seed=seed,
    relevant_share=relevant_share,
    novel_share=novel_share,
    novelty=[
      novelty.load_weights(source) for source, _ in pairs if novel_share
    ],
    baseline_share=baseline_share,
    separate_images=separate_images,
    switch_tasks=1.0 if dreams else switch_tasks,
    dreams=dreams,
    labeled=[
      labels.known_episodes(source, mask)
      for (source, _), mask in zip(pairs, labeled, strict=True)
    ],
  )
  if cloning and not planner.can_clone:
    raise ValueError(_nothing_to_clone(planner, pairs))
  clips = transforms.Clips(
    sources=[source for source, _ in pairs],
    labeled=labeled,
    actions=tuple(actions),
    tasks=tuple(tasks),
    once=dreams,
    vectors=tuple(vectors),
  )
  own = range(process_index * batch_size, (process_index + 1) * batch_size)
  stream = grain.MapDataset.range(_ENDLESS).map(
    functools.partial(_batch, planner, clips, own)
  )
  return iter(
    stream.to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    )
  )


def _nothing_to_clone(
  planner: planning.Planner,
  pairs: Sequence[tuple[sources.EpisodeSource, SourceConfig]],
) -> str:
  has_events = any(len(index.event_frame) for index in planner.indices)
  which = 'with an event ' * has_events
  recorded = any(
    source.description.actions and source.index.known.any()
    for source, _ in pairs
  )
  return (
    f'no episode {which}of {[str(source.path) for source, _ in pairs]} has '
    'actions to clone; '
    + (
      'use more of them (labeled_share, labeled_hours, labeled_where)'
      if recorded
      else 'add a dataset with actions to data.more'
    )
  )


def _batch(
  planner: planning.Planner, clips: transforms.Clips, rows: range, number: int
) -> Batch:
  return clips.read(planner.plan(int(number), rows))


def _check_tokenizers(
  opened: Sequence[sources.EpisodeSource], tokenizer: str
) -> None:
  """Raises `ValueError` unless all latents are of the run's tokenizer."""
  for source in opened:
    found = source.description.tokenizer
    if found and found != tokenizer:
      raise ValueError(
        f'{source.path}: tokenizer: the latents were made by {found}, '
        + (
          f'this run has {tokenizer}; pre-tokenise again with it'
          if tokenizer
          else 'this needs frames; name the dataset they were made from'
        )
      )
  shapes = {source.path: source.description.observation for source in opened}
  if len(set(shapes.values())) > 1:
    raise ValueError(
      'datasets that are mixed must hold the same kind of observation, found '
      + ', '.join(f'{path}: {shape}' for path, (shape, _) in shapes.items())
    )
