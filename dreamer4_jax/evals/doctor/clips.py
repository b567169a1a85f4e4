"""Held-out clips that an examination looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses

import jax
import numpy as np

from dreamer4_jax.config import Config
from dreamer4_jax.data.format import Attributes, SplitIndex
from dreamer4_jax.data.held_out import open_clips
from dreamer4_jax.data.planning import Window
from dreamer4_jax.data.sources import Stretch
from dreamer4_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Held:
  """Held-out clips, each within one episode, and the attributes of these.

  Attributes:
    batch: `[B, T, ...]`, as numpy arrays.
    attributes: of the episode of each clip.
    episode: `[B]` number of the episode of each clip.
  """

  batch: Batch
  attributes: tuple[Attributes, ...]
  episode: np.ndarray

  def rows(self, mask: np.ndarray) -> Held:
    """Returns some of the clips."""
    at = np.flatnonzero(mask)
    return Held(
      jax.tree.map(lambda x: x[at], self.batch),
      tuple(self.attributes[i] for i in at),
      self.episode[at],
    )


def held_out(
  config: Config, length: int, count: int, *, relevant: bool = False
) -> Held:
  """Draws different held-out clips, each within one episode.

  All recorded actions are known, whatever the run was trained to know.

  Args:
    config: the run.
    length: frames of a clip.
    count: how many at most; fewer if the split has no more.
    relevant: those from which behaviour is cloned, with an event of each task
      equally often; without events, those with actions. Else uniform ones.

  Raises:
    ValueError: no episode is long enough.
  """
  clips = open_clips(config, config.data.eval_split)
  index = clips.sources[0].index
  rng = np.random.default_rng(config.eval.seed)
  anchors = _anchors(index, config.milestones) if relevant else {}
  if anchors:
    windows = _on_events(index, anchors, length, count, rng)
  else:
    windows = _anywhere(index, length, count, rng, cloned=relevant)
  if not windows:
    raise ValueError(
      f'{config.data.path}: no episode of {config.data.eval_split!r} has the '
      f'{length} frames of a clip; record longer ones, or lower '
      'eval.context_frames, eval.horizons or phases.finetune.clip_lengths'
    )
  parts = [clips.read(windows[i : i + 64]) for i in range(0, len(windows), 64)]
  batch = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  known = index.attributes or ({},) * len(index.lengths)
  episodes = [w.segments[0].episode for w in windows]
  return Held(batch, tuple(known[i] for i in episodes), np.array(episodes))


def _anchors(index: SplitIndex, milestones: bool) -> dict[int, np.ndarray]:
  """Events by task; with `milestones` the first in each episode."""
  first = index.milestones if milestones else np.arange(len(index.event_task))
  return {
    task: np.intersect1d(events, first)
    for task, events in index.events_of_task.items()
  }


def _on_events(
  index: SplitIndex,
  anchors: Mapping[int, np.ndarray],
  length: int,
  count: int,
  rng: np.random.Generator,
) -> list[Window]:
  """Windows that hold an event, each task equally often."""
  found: dict[Stretch, Window] = {}
  tasks = sorted(anchors)
  for i in range(4 * count):
    if len(found) == count:
      break
    task = tasks[i % len(tasks)]
    event = int(rng.choice(anchors[task]))
    episode, arrival = (
      int(x[event]) for x in (index.event_episode, index.event_frame)
    )
    last = int(index.lengths[episode]) - length
    if last < 0:
      continue
    start = arrival - int(rng.integers(1, length))
    start = min(max(start, 0), last)
    stretch = Stretch(episode, start, start + length)
    found[stretch] = _window(stretch, task, arrival - start)
  return list(found.values())


def _anywhere(
  index: SplitIndex,
  length: int,
  count: int,
  rng: np.random.Generator,
  *,
  cloned: bool,
) -> list[Window]:
  """Uniform windows; with `cloned`, of episodes with actions."""
  room = np.maximum(index.lengths - length + 1, 0)
  if cloned:
    room = room * (index.known > 0)
  total = int(room.sum())
  chosen = rng.choice(total, min(count, total), replace=False) if total else []
  ends = np.cumsum(room)
  found = []
  for number in chosen:
    episode = int(np.searchsorted(ends, number, side='right'))
    start = int(number - (ends[episode] - room[episode]))
    stretch = Stretch(episode, start, start + length)
    found.append(_window(stretch, -1, length if cloned else 0))
  return found


def _window(stretch: Stretch, task: int, cloned: int) -> Window:
  return Window(
    segments=(stretch,),
    anchor_task=task,
    cloned=cloned,
    switch_tasks=True,
    separate_images=False,
  )


def before(
  batch: Batch, rows: np.ndarray, frames: np.ndarray, most: int
) -> Batch:
  """Returns what lies before some frames, as contexts of dreams.

  Args:
    batch: clips `[B, T, ...]`, as numpy arrays.
    rows: `[n]` clips.
    frames: `[n]` a frame of each, not the first.
    most: frames of a context.

  Returns:
    `[n, L, ...]`, each ending with the frame before. What lies before the clip
    is a segment of its own, not seen.
  """
  length = min(int(frames.max()), most)
  at = frames[:, None] - length + np.arange(length)[None]
  clip = np.maximum(at, 0)
  past = jax.tree.map(
    lambda x: x[rows[:, None], clip] if x.ndim > 1 else x[rows], batch
  )
  segments = (at >= 0).astype(np.int32)
  return past.replace(
    segment_ids=segments, cont=np.ones(segments.shape, np.float32)
  )


def in_pieces(function, batch: Batch, size: int = 32):
  """Applies a function of a batch to pieces of equal size, and joins them.

  The last piece is filled up, so that one program serves all.
  """
  rows = len(batch.task)
  found = []
  for begin in range(0, rows, size):
    at = np.arange(begin, begin + size) % rows
    part = function(jax.tree.map(lambda x, at=at: x[at], batch))
    kept = min(size, rows - begin)
    found.append(jax.tree.map(lambda x, n=kept: np.asarray(x)[:n], part))
  return jax.tree.map(lambda *x: np.concatenate(x), *found)


def values_of(attributes: Sequence[Attributes], name: str) -> np.ndarray:
  """Returns an attribute of every clip as text, '' where it has none."""
  return np.array([str(a.get(name, '')) for a in attributes])
