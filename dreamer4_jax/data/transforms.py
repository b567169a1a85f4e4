"""From episodes in RLDS steps to clips aligned by arrival: pure numpy.

See `dreamer4_jax.types` for the two conventions. The one place where an
action moves from the step that chose it to the frame it led to is `align`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dreamer4_jax.data import format as fmt
from dreamer4_jax.data.planning import Window, is_labeled, task_labels
from dreamer4_jax.types import Batch


def align(
  episode: Mapping[str, Any], start: int, stop: int, task: np.ndarray | None
) -> dict[str, Any]:
  """Cuts a stretch out of an episode and aligns it by arrival.

  Args:
    episode: whole episode, as `fmt.features`.
    start: first frame.
    stop: frame after the last.
    task: `[stop - start]` task ids, or None for the environment's reward.

  Returns:
    The fields of a `Batch` without batch dimension, `[stop - start, ...]`,
    that an episode decides on: all but `task`, `segment_ids`, `relevant`.
  """
  arrival = np.arange(start, stop)
  before = np.maximum(arrival - 1, 0)
  arrived = ~episode['is_first'][start:stop]

  def led_here(x: np.ndarray) -> np.ndarray:
    """Moves what belongs to step t - 1 to frame t; 0 on first frames."""
    mask = arrived.reshape(-1, *(1,) * (x.ndim - 1))
    return np.where(mask, x[before], np.zeros((), x.dtype))

  if task is None:
    reward = led_here(episode['reward'])
  else:
    reward = led_here(episode['events'])[np.arange(len(task)), task]
  return {
    'frames': episode['observation'][start:stop],
    'action': {k: v[start:stop] for k, v in episode['action'].items()},
    'action_mask': episode['action_known'][start:stop],
    'prev_action': {k: led_here(v) for k, v in episode['action'].items()},
    'prev_action_mask': led_here(episode['action_known']),
    'reward': reward.astype(np.float32),
    'cont': (~episode['is_terminal'][start:stop]).astype(np.float32),
  }


def cut(source: Any, window: Window, *, labeled_share: float = 1.0) -> Batch:
  """Reads a planned window.

  Args:
    source: an `EpisodeSource`, or anything like it.
    window: the plan.
    labeled_share: share of episodes that keep their actions.

  Returns:
    One row of a `Batch`, without the batch dimension.
  """
  task = task_labels(source.index, window, len(source.description.tasks))
  by_event = source.description.tasks != fmt.REWARD_ONLY
  parts, segment_ids, begin = [], [], 0
  for i, segment in enumerate(window.segments):
    size = segment.stop - segment.start
    part = align(
      source[segment.episode],
      segment.start,
      segment.stop,
      task[begin : begin + size] if by_event else None,
    )
    if window.separate_images or not is_labeled(segment.episode, labeled_share):
      for mask in ('action_mask', 'prev_action_mask'):
        part[mask] = np.zeros_like(part[mask])
    parts.append(part)
    segment_ids.append(np.full(size, i, dtype=np.int32))
    begin += size
  row = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  ids = np.concatenate(segment_ids)
  if window.separate_images:
    ids = np.arange(len(ids), dtype=np.int32)
  return Batch(
    task=task, segment_ids=ids, relevant=np.asarray(window.relevant), **row
  )


def stack(rows: Sequence[Batch]) -> Batch:
  """Stacks rows to a batch `[B, T, ...]`."""
  return jax.tree.map(lambda *x: np.stack(x), *rows)
