"""Chooses windows: pure functions of the index and a random generator.

A window of `length` frames is a list of segments, each a stretch of one
episode. The first segment starts anywhere; where its episode ends early,
another episode follows from its own first frame, until the window is full.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from dreamer4_jax.config import require
from dreamer4_jax.data.format import SplitIndex


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
  """Frames `start` to `stop` (exclusive) of one episode."""

  episode: int
  start: int
  stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
  """All that is decided about a row of the batch before frames are read.

  Attributes:
    segments: stretches that fill the window, in order.
    anchor_task: the task whose event a relevant window was placed on, else
      -1. The event lies in the first segment.
    switch_tasks: labels advance at each event, as prompts do.
    separate_images: each frame is a segment of its own, without actions.
  """

  segments: tuple[Segment, ...]
  anchor_task: int
  switch_tasks: bool
  separate_images: bool

  @property
  def relevant(self) -> bool:
    """Whether the window was placed on an event."""
    return self.anchor_task >= 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planner:
  """Plans the rows of a batch.

  Attributes:
    index: of the split.
    length: frames of a window.
    batch_size: rows of a batch.
    relevant_share: share of rows placed on an event; see `is_relevant`.
    separate_images: probability that a row is treated as separate images.
    switch_tasks: probability that a row's labels advance at each event.
  """

  index: SplitIndex
  length: int
  batch_size: int
  relevant_share: float = 0.0
  separate_images: float = 0.0
  switch_tasks: float = 0.5

  def __post_init__(self):
    for name in ('relevant_share', 'separate_images', 'switch_tasks'):
      value = getattr(self, name)
      require(0 <= value <= 1, name, value, 'must lie in [0, 1]')
    require(self.batch_size >= 1, 'batch_size', self.batch_size, 'at least 1')
    require(self.length >= 1, 'length', self.length, 'must be at least 1')
    if any(self.is_relevant(row) for row in range(self.batch_size)):
      require(
        self.length >= 2,
        'length',
        self.length,
        'must be at least 2 for relevant windows, which hold the frame '
        'before the event as well',
      )
      require(
        len(self.index.event_frame) > 0,
        'relevant_share',
        self.relevant_share,
        'must be 0, since the split has no event at all',
      )

  def is_relevant(self, row: int) -> bool:
    """Whether this row of the batch is a relevant one.

    Relevant rows, round(share * batch_size) of them, are spread evenly, so
    that equal parts of the batch hold equal shares.
    """
    count = round(self.relevant_share * self.batch_size)
    return _spread(row + 1, count, self.batch_size) > _spread(
      row, count, self.batch_size
    )

  def plan(self, row: int, rng: np.random.Generator) -> Window:
    """Draws a window for a row of the batch."""
    task = -1
    if self.is_relevant(row):
      episode, start, task = self._on_event(rng)
    else:
      episode, start = self._anywhere(rng)
    return Window(
      segments=self._fill(episode, start, rng),
      anchor_task=task,
      switch_tasks=bool(rng.random() < self.switch_tasks),
      separate_images=bool(rng.random() < self.separate_images),
    )

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """`[episodes]` frames up to the end of each episode."""
    return np.cumsum(self.index.lengths)

  @functools.cached_property
  def _events_of(self) -> dict[int, np.ndarray]:
    """Events by task, for the tasks that have any."""
    tasks = self.index.event_task
    return {int(k): np.flatnonzero(tasks == k) for k in np.unique(tasks)}

  def _anywhere(self, rng: np.random.Generator) -> tuple[int, int]:
    """Every frame of the split is equally likely to be the first."""
    ends = self._ends
    frame = rng.integers(ends[-1])
    episode = int(np.searchsorted(ends, frame, side='right'))
    return episode, int(frame - (ends[episode] - self.index.lengths[episode]))

  def _on_event(self, rng: np.random.Generator) -> tuple[int, int, int]:
    """Task, then event, then its position in the window, each uniform."""
    index = self.index
    task = int(rng.choice(list(self._events_of)))
    event = rng.choice(self._events_of[task])
    arrival = int(index.event_frame[event])
    position = int(rng.integers(1, min(self.length - 1, arrival) + 1))
    return int(index.event_episode[event]), arrival - position, task

  def _fill(
    self, episode: int, start: int, rng: np.random.Generator
  ) -> tuple[Segment, ...]:
    segments, left = [], self.length
    while left > 0:
      stop = min(int(self.index.lengths[episode]), start + left)
      segments.append(Segment(episode=episode, start=start, stop=stop))
      left -= stop - start
      episode, start = int(rng.integers(len(self.index.lengths))), 0
    return tuple(segments)


def _spread(rows: int, count: int, size: int) -> int:
  """How many of the first `rows` are chosen, of `count` among `size`."""
  return rows * count // size


def task_labels(
  index: SplitIndex, window: Window, num_tasks: int
) -> np.ndarray:
  """Labels each frame with the task that the agent is given.

  Advancing labels name the task of the episode's next event, one that is seen
  on a *later* frame; after the last event they name the first task that the
  episode never achieves or, if it achieves all, stay with the last event's.
  Constant labels hold the anchor's task in the first segment of a relevant
  window, and elsewhere the advancing label of the segment's first frame.

  Args:
    index: of the split.
    window: the plan.
    num_tasks: number of task ids.

  Returns:
    `[T]` int32 task ids.
  """
  labels = []
  for i, segment in enumerate(window.segments):
    frames, tasks = index.of_episode(segment.episode)
    t = np.arange(segment.start, segment.stop)
    missing = np.setdiff1d(np.arange(num_tasks), tasks)
    final = missing[:1] if len(missing) else tasks[-1:]
    following = np.searchsorted(frames, t, side='right')
    label = np.concatenate([tasks, final])[following]
    if not window.switch_tasks:
      anchored = i == 0 and window.relevant
      held = window.anchor_task if anchored else label[0]
      label = np.full_like(t, held)
    labels.append(label)
  return np.concatenate(labels).astype(np.int32)


def is_labeled(episode: int, share: float) -> bool:
  """Whether an episode keeps its actions; fixed for the episode.

  Args:
    episode: its number in the split.
    share: expected share of episodes that do.
  """
  # The finalizer of MurmurHash3: consecutive numbers spread over 32 bits.
  h = (episode + 1) & 0xFFFFFFFF
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF
  return (h ^ (h >> 16)) < share * 2**32
