"""Which task an agent is given on each frame, and what its events pay."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from dreamer4_jax.data.format import SplitIndex
from dreamer4_jax.data.planning import Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Which step of which episode stands in each place of some windows.

  Attributes:
    episode: `[B, T]` int64.
    step: `[B, T]` int64 step of the episode.
    segment: `[B, T]` int64 number of the segment in its window.
    begin: `[B, T]` int64 place, in the flattened windows, on which the segment
      begins.
  """

  episode: np.ndarray
  step: np.ndarray
  segment: np.ndarray
  begin: np.ndarray


def lay_out(windows: Sequence[Window]) -> Layout:
  """Spells windows of equal length out."""
  segments = np.array([s for w in windows for s in w.segments], np.int64)
  episode, start, stop = segments.T
  sizes = stop - start
  begin = np.cumsum(sizes) - sizes
  counts = np.array([len(w.segments) for w in windows])
  number = np.arange(len(sizes)) - np.repeat(np.cumsum(counts) - counts, counts)

  def spread(x: np.ndarray) -> np.ndarray:
    return np.repeat(x, sizes).reshape(len(windows), -1)

  place = np.arange(int(sizes.sum())).reshape(len(windows), -1)
  return Layout(
    episode=spread(episode),
    step=place - spread(begin - start),
    segment=spread(number),
    begin=spread(begin),
  )


class Tasks:
  """Task labels and event rewards of one split."""

  def __init__(self, index: SplitIndex, num_tasks: int):
    """Takes the index and the number of task ids."""
    self._num_tasks = num_tasks
    # (episode, frame) and (episode, frame, task) as one sorted number each.
    self._span = int(index.lengths.max()) + 1
    self._arrivals = self._key(index.event_episode, index.event_frame)
    self._events = self._arrivals * num_tasks + index.event_task
    # An entry after the last event, which is of no episode.
    self._episode = np.append(index.event_episode, -1)
    self._task = np.append(index.event_task, 0)
    self._final = _final_labels(index, num_tasks)

  def labels(self, windows: Sequence[Window], layout: Layout) -> np.ndarray:
    """Labels each frame with the task that the agent is given.

    Advancing labels name the task of the episode's next event, one that is
    seen on a *later* frame; after the last event they name the first task that
    the episode never achieves or, if it achieves all, stay with the last
    event's. Constant labels hold the anchor's task in the first segment of a
    relevant window, and elsewhere the advancing label of the segment's first
    frame.

    Args:
      windows: the plan.
      layout: of these windows.

    Returns:
      `[B, T]` int32 task ids.
    """
    after = np.searchsorted(
      self._arrivals, self._key(layout.episode, layout.step), side='right'
    )
    label = np.where(
      self._episode[after] == layout.episode,
      self._task[after],
      self._final[layout.episode],
    )
    anchor = np.array([[w.anchor_task] for w in windows])
    anchored = (layout.segment == 0) & (anchor >= 0)
    held = np.where(anchored, anchor, label.ravel()[layout.begin])
    switch = np.array([[w.switch_tasks] for w in windows])
    return np.where(switch, label, held).astype(np.int32)

  def rewards(self, layout: Layout, task: np.ndarray) -> np.ndarray:
    """Returns `[B, T]` float32: 1 where an event of the label's task is seen.

    Args:
      layout: of the windows.
      task: `[B, T]` task ids.
    """
    sought = self._key(layout.episode, layout.step) * self._num_tasks + task
    at = np.searchsorted(self._events, sought)
    found = np.append(self._events, -1)[at]
    return (found == sought).astype(np.float32)

  def _key(self, episode: np.ndarray, frame: np.ndarray) -> np.ndarray:
    return episode * self._span + frame


def _final_labels(index: SplitIndex, num_tasks: int) -> np.ndarray:
  """`[episodes]`: the first task never achieved, else the last achieved."""
  achieved = np.zeros((len(index.lengths), num_tasks), bool)
  achieved[index.event_episode, index.event_task] = True
  last = np.zeros(len(index.lengths), np.int64)
  # Of equal episodes the assignment that comes last holds.
  last[index.event_episode] = index.event_task
  return np.where(achieved.all(axis=-1), last, achieved.argmin(axis=-1))
