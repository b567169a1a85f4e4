"""The loader: Grain moves planned windows from disk to batches."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools

import grain

from dreamer4_jax.config import SourceConfig, require
from dreamer4_jax.data import labels, novelty, sources, transforms
from dreamer4_jax.data.format import Description
from dreamer4_jax.data.planning import Draws, Planner
from dreamer4_jax.types import Batch

_ENDLESS = 1 << 60
AHEAD = 4
"""Batches that may wait for the device, for each thread."""


def make_loader(
  datasets: str | SourceConfig | Sequence[SourceConfig],
  split: str,
  expected: Description,
  draws: Draws,
  *,
  tokenizer: str = '',
  process: tuple[int, int] = (0, 1),
  threads: int = 1,
  cache_bytes: int = sources.CACHE_BYTES,
) -> grain.DatasetIterator:
  """Makes an endless iterator over batches.

  A batch depends only on the seed and its number: `get_state` and `set_state`
  restore exactly. Processes share one stream of global batches, of which each
  takes its rows. The stream does not depend on the number of processes, so a
  state may be resumed on another number of them, as long as the global batch
  size stays the same.

  Args:
    datasets: the path of a dataset, or several with weights and labels.
    split: name of the split.
    expected: actions, tasks, frames and vectors that the run expects; datasets
      must have the same actions, and at least these tasks, or none.
    draws: how clips are drawn.
    tokenizer: fingerprint of the run's tokenizer, which pre-tokenised datasets
      must have been made with; empty if the run needs frames.
    process: index and number of processes; each draws its own rows.
    threads: threads that make batches.
    cache_bytes: datasets of fewer bytes are kept in memory.

  Returns:
    A Grain iterator of `Batch` with numpy arrays.

  Raises:
    FileNotFoundError: there is no dataset at a path, or no novelty weights.
    ValueError: a dataset or an argument is invalid; the message names the
      field.
  """
  index, count = process
  require(
    0 <= index < count and draws.batch_size % count == 0,
    'process',
    process,
    f'must be a number below that of all, which divides the global batch of '
    f'{draws.batch_size}',
  )
  if isinstance(datasets, str):
    datasets = SourceConfig(path=datasets)
  if isinstance(datasets, SourceConfig):
    datasets = [datasets]
  open_source = functools.partial(
    sources.EpisodeSource,
    split=split,
    actions=expected.actions,
    tasks=expected.tasks,
    frame_shape=expected.frame_shape,
    vectors=expected.vectors,
    cache_bytes=cache_bytes,
  )
  opened = [open_source(dataset.path) for dataset in datasets]
  _check_tokenizers(opened, tokenizer)
  pairs = [*zip(opened, datasets, strict=True)]
  if draws.purpose != 'video':
    pairs = [(s, dataset) for s, dataset in pairs if s.description.tasks]
  if not pairs:
    raise ValueError(
      f'tasks: found none in {[str(s.path) for s in opened]}, expected some in '
      'at least one dataset'
    )
  labeled = [labels.labeled_episodes(*pair) for pair in pairs]
  own = dataclasses.asdict(draws)
  if draws.dreams:
    own['switch_tasks'] = 1.0
  novel = draws.novel_share > 0
  planner = Planner(
    **own,
    indices=[source.index for source, _ in pairs],
    weights=[dataset.weight for _, dataset in pairs],
    novelty=[novelty.load_weights(source) for source, _ in pairs if novel],
    labeled=[
      labels.known_episodes(source, mask)
      for (source, _), mask in zip(pairs, labeled, strict=True)
    ],
  )
  if draws.purpose == 'cloning' and not planner.can_clone:
    raise ValueError(_nothing_to_clone(planner, pairs))
  clips = transforms.Clips(
    sources=[source for source, _ in pairs],
    labeled=labeled,
    actions=tuple(expected.actions),
    tasks=tuple(expected.tasks),
    milestones=draws.milestones,
    vectors=tuple(expected.vectors),
  )
  size = draws.batch_size // count
  stream = grain.MapDataset.range(_ENDLESS).map(
    functools.partial(
      _batch, planner, clips, range(index * size, (index + 1) * size)
    )
  )
  ahead = AHEAD * threads
  return iter(
    stream.to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    )
  )


def _nothing_to_clone(
  planner: Planner,
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
      else 'add a dataset with actions to data.sources'
    )
  )


def _batch(
  planner: Planner, clips: transforms.Clips, rows: range, number: int
) -> Batch:
  return clips.read(planner.plan(int(number), rows))


def _check_tokenizers(
  opened: Sequence[sources.EpisodeSource], tokenizer: str
) -> None:
  """Raises `ValueError` unless all latents are from the run's tokenizer."""
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
