"""From steps on disk to clips aligned by arrival: pure numpy.

See `dreamer4_jax.types` for the two conventions. The one place where an
action moves from the step that chose it to the frame it led to is `arrive`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from dreamer4_jax.config import ActionComponent, VectorComponent
from dreamer4_jax.data import format as fmt
from dreamer4_jax.data.planning import Window
from dreamer4_jax.data.sources import EpisodeSource, Request, Stretch
from dreamer4_jax.data.tasks import Tasks, lay_out
from dreamer4_jax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
  """Reads planned windows of several datasets into one batch.

  Attributes:
    sources: the datasets.
    labeled: `[episodes]` bool for each dataset, whose actions are used.
    actions: the run's action space.
    tasks: the run's task names in id order.
    milestones: labels never name a task that the episode has already achieved.
    vectors: what the run observes along with frames.
  """

  sources: Sequence[EpisodeSource]
  labeled: Sequence[np.ndarray]
  actions: tuple[ActionComponent, ...]
  tasks: tuple[str, ...]
  milestones: bool = False
  vectors: tuple[VectorComponent, ...] = ()

  def read(self, windows: Sequence[Window]) -> Batch:
    """Returns the windows as a batch `[B, T, ...]`."""
    leading = len(windows), sum(s.stop - s.start for s in windows[0].segments)
    shape, dtype = self.sources[0].description.observation
    frames = np.empty((*leading, *shape), dtype)
    vectors = self._vectors(leading)
    steps = self._blank((leading[0], leading[1] + 1))
    first, terminal, known = (np.zeros(leading, bool) for _ in range(3))
    task, ids = (np.zeros(leading, np.int32) for _ in range(2))
    reward = np.zeros((*leading, len(self.tasks)), np.float32)
    numbers = np.array([w.source for w in windows])
    for number in np.unique(numbers).tolist():
      rows = np.flatnonzero(numbers == number)
      source = self.sources[number]
      into = {'observation': frames}
      into |= {f'vector/{name}': x for name, x in vectors.items()}
      around = {name: steps[name] for name in steps if name in source.fields}
      source.read(
        [
          request
          for row in rows.tolist()
          for request in _requests(windows[row], row, into, around)
        ]
      )
      own = [windows[row] for row in rows.tolist()]
      layout, index = lay_out(own), self.sources[number].index
      first[rows] = layout.step == 0
      at_end = layout.step == index.lengths[layout.episode] - 1
      terminal[rows] = at_end & index.terminal[layout.episode]
      known[rows] = self.labeled[number][layout.episode]
      ids[rows] = layout.segment
      task[rows] = self._tasks[number].labels(own, layout)
      reward[rows] = self._tasks[number].rewards(layout)
    images = np.array([w.separate_images for w in windows])
    known[images] = False
    ids[images] = np.arange(leading[1])
    if 'reward' in steps:
      reward = arrive(steps['reward'], first)[:, :, None]
    acts = align(steps, first, known)
    cloned = np.array([[w.cloned] for w in windows])
    return Batch(
      frames=frames,
      **acts,
      cloned=acts['action_mask'] & (np.arange(leading[1]) < cloned),
      reward=reward,
      cont=(~terminal).astype(np.float32),
      task=task,
      segment_ids=ids,
      relevant=np.array([w.relevant for w in windows]),
      vectors=vectors,
    )

  @functools.cached_property
  def _tasks(self) -> list[Tasks]:
    return [
      Tasks(source.index, len(self.tasks), milestones=self.milestones)
      for source in self.sources
    ]

  def _vectors(self, leading: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Empty arrays for vectors; none for latents, which hold them."""
    if self.sources[0].description.tokenizer:
      return {}
    return {
      v.name: np.empty((*leading, v.size), np.float32) for v in self.vectors
    }

  def _blank(self, leading: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Empty steps, by flat name, with the fields that have to be read."""
    blank = {'action_known': np.zeros(leading, bool)}
    if self.tasks == fmt.REWARD_ONLY:
      blank['reward'] = np.zeros(leading, np.float32)
    for part in self.actions:
      shape = () if part.kind == 'categorical' else (part.size,)
      dtype = np.float32 if part.kind == 'continuous' else np.int32
      blank[f'action/{part.name}'] = np.zeros((*leading, *shape), dtype)
    return blank


def _requests(
  window: Window,
  row: int,
  frames: Mapping[str, np.ndarray],
  steps: Mapping[str, np.ndarray],
) -> Iterator[Request]:
  """Yields what to read for one row: frames, and steps from one earlier on."""
  column = 0
  for i, segment in enumerate(window.segments):
    yield Request(segment, frames, row, column)
    lead = int(i == 0 and segment.start > 0)
    earlier = Stretch(segment.episode, segment.start - lead, segment.stop)
    yield Request(earlier, steps, row, column + 1 - lead)
    column += segment.stop - segment.start


def align(
  steps: Mapping[str, np.ndarray], first: np.ndarray, known: np.ndarray
) -> dict[str, Any]:
  """Aligns actions by arrival.

  Args:
    steps: `action_known` and `action/NAME`, `[B, 1 + T, ...]` as on disk;
      column 0 is the step before the clip, where there is one.
    first: `[B, T]` bool, first frames of episodes.
    known: `[B, T]` bool, whether the actions of a frame's episode are used.

  Returns:
    The action fields of a `Batch`, `[B, T, ...]`.
  """
  action = fmt.unflatten(steps)['action'].items()
  return {
    'action': {k: np.ascontiguousarray(v[:, 1:]) for k, v in action},
    'action_mask': steps['action_known'][:, 1:] & known,
    'prev_action': {k: arrive(v, first) for k, v in action},
    'prev_action_mask': arrive(steps['action_known'], first) & known,
  }


def arrive(x: np.ndarray, first: np.ndarray) -> np.ndarray:
  """Moves what belongs to step t - 1 to frame t; 0 on first frames.

  Args:
    x: `[B, 1 + T, ...]`, from the step before the clip on.
    first: `[B, T]` bool.

  Returns:
    `[B, T, ...]`.
  """
  mask = first.reshape(*first.shape, *(1,) * (x.ndim - 2))
  return np.where(mask, np.zeros((), x.dtype), x[:, :-1])
