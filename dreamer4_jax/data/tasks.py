"""Which task an agent is given on each frame, and what events pay."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from dreamer4_jax.data.format import SplitIndex
from dreamer4_jax.data.planning import Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Which step of which episode is at each place of some windows.

  Attributes:
    episode: `[B, T]` int64.
    step: `[B, T]` int64 step of the episode.
    segment: `[B, T]` int64 number of the segment in its window.
    begin: `[B, T]` int64 place, in the flattened windows, at which the segment
      begins.
  """

  episode: np.ndarray
  step: np.ndarray
  segment: np.ndarray
  begin: np.ndarray


def lay_out(windows: Sequence[Window]) -> Layout:
  """Lays out windows of equal length, step by step."""
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

  def __init__(
    self, index: SplitIndex, num_tasks: int, *, milestones: bool = False
  ):
    """Prepares the labels.

    Args:
      index: of the split.
      num_tasks: number of task ids.
      milestones: a task is done for good when its event has happened, as it is
        for an agent that is prompted with each task once: labels then ignore
        the task's later events in that episode. Rewards do not.
    """
    self._num_tasks = num_tasks
    # (episode, frame) as one sorted number.
    self._span = int(index.lengths.max()) + 1
    self._arrivals = self._key(index.event_episode, index.event_frame)
    self._paid = index.event_task
    named = index.milestones if milestones else slice(None)
    self._named = self._arrivals[named]
    # An entry after the last event, which belongs to no episode.
    self._episode = np.append(index.event_episode[named], -1)
    self._task = np.append(index.event_task[named], 0)
    self._final = _final_labels(
      len(index.lengths), self._episode[:-1], self._task[:-1], num_tasks
    )

  def labels(self, windows: Sequence[Window], layout: Layout) -> np.ndarray:
    """Labels each frame with the task that the agent is given.

    Advancing labels name the task of the episode's next event, one that is
    seen on a *later* frame; after the last event they name the first task that
    the episode never achieves or, if it achieves all, stay with the last
    event's. Constant labels hold the anchor's task in the first segment of a
    relevant window, and elsewhere the advancing label of the segment's first
    frame. A baseline's window has its prompt everywhere, an id after those of
    the tasks.

    Args:
      windows: the plan.
      layout: of these windows.

    Returns:
      `[B, T]` int32 ids of tasks or prompts.
    """
    after = np.searchsorted(
      self._named, self._key(layout.episode, layout.step), side='right'
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
    prompt = np.array([[w.prompt] for w in windows])
    label = np.where(switch, label, held)
    label = np.where(prompt >= 0, self._num_tasks + prompt, label)
    return label.astype(np.int32)

  def rewards(self, layout: Layout) -> np.ndarray:
    """Returns `[B, T, num_tasks]` float32: 1 where an event is seen."""
    sought = self._key(layout.episode, layout.step)
    begin = np.searchsorted(self._arrivals, sought, side='left')
    count = np.searchsorted(self._arrivals, sought, side='right') - begin
    rewards = np.zeros((*sought.shape, self._num_tasks), np.float32)
    # Several tasks may be achieved on one frame.
    for i in range(int(count.max())):
      row, frame = np.nonzero(count > i)
      rewards[row, frame, self._paid[begin[row, frame] + i]] = 1
    return rewards

  def _key(self, episode: np.ndarray, frame: np.ndarray) -> np.ndarray:
    return episode * self._span + frame


def _final_labels(
  episodes: int, event_episode: np.ndarray, event_task: np.ndarray, tasks: int
) -> np.ndarray:
  """`[episodes]`: the first task never achieved, else the last achieved."""
  achieved = np.zeros((episodes, tasks), bool)
  achieved[event_episode, event_task] = True
  last = np.zeros(episodes, np.int64)
  # For repeated episodes, the last assignment holds.
  last[event_episode] = event_task
  return np.where(achieved.all(axis=-1), last, achieved.argmin(axis=-1))
