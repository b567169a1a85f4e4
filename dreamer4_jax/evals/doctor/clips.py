"""Held-out clips that an examination looks at."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import jax
import numpy as np

from dreamer4_jax.config import Config
from dreamer4_jax.data import labels
from dreamer4_jax.data.format import Attributes
from dreamer4_jax.data.held_out import expected
from dreamer4_jax.data.planning import Planner
from dreamer4_jax.data.sources import EpisodeSource
from dreamer4_jax.data.transforms import Clips
from dreamer4_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Held:
  """Held-out clips, each within one episode, and the attributes of these.

  Attributes:
    batch: `[B, T, ...]`, as numpy arrays.
    attributes: of the episode of each clip.
  """

  batch: Batch
  attributes: tuple[Attributes, ...]

  def rows(self, mask: np.ndarray) -> Held:
    """Returns some of the clips."""
    at = np.flatnonzero(mask)
    return Held(
      jax.tree.map(lambda x: x[at], self.batch),
      tuple(self.attributes[i] for i in at),
    )


def held_out(
  config: Config, length: int, count: int, *, relevant: bool = False
) -> Held:
  """Draws held-out clips that lie within one episode.

  Args:
    config: the run.
    length: frames of a clip.
    count: how many at most; fewer if the split has no more.
    relevant: those in which a task of the run is achieved, each equally often;
      behaviour is cloned from them. Else uniform ones.

  Raises:
    ValueError: no episode is long enough.
  """
  e, expects = config.eval, expected(config)
  source = EpisodeSource(
    config.data.path,
    config.data.eval_split,
    actions=expects.actions,
    tasks=expects.tasks,
    frame_shape=expects.frame_shape,
    vectors=expects.vectors,
  )
  index = source.index
  relevant = relevant and len(index.event_frame) > 0
  labeled = labels.labeled_episodes(source, config.data.sources[0])
  planner = Planner(
    indices=[index],
    weights=[1.0],
    labeled=[labels.known_episodes(source, labeled)],
    length=length,
    batch_size=count,
    seed=e.seed + 7,
    relevant_share=float(relevant),
    switch_tasks=1.0,
    milestones=config.milestones,
    purpose='cloning' if relevant else 'video',
  )
  windows = []
  for number in range(20):
    windows += [
      w for w in planner.plan(number, range(count)) if len(w.segments) == 1
    ]
    if len(windows) >= count:
      break
  if not windows:
    raise ValueError(
      f'{config.data.path}: no episode of {config.data.eval_split!r} has '
      f'{length} frames, which the examination needs; lower '
      'eval.context_frames or eval.horizons'
    )
  windows = windows[:count]
  clips = Clips(
    sources=[source],
    labeled=[labeled],
    actions=config.actions,
    tasks=config.tasks,
    milestones=config.milestones,
    vectors=config.vectors,
  )
  parts = [clips.read(windows[i : i + 64]) for i in range(0, len(windows), 64)]
  batch = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  known = index.attributes or ({},) * len(index.lengths)
  return Held(batch, tuple(known[w.segments[0].episode] for w in windows))


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
