"""From steps on disk to clips aligned by arrival: pure numpy.

See `dreamer4_jax.types` for the two conventions. The one place where an
action moves from the step that chose it to the frame it led to is `align`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from dreamer4_jax.config import ActionComponent
from dreamer4_jax.data import format as fmt
from dreamer4_jax.data.planning import Window, task_labels
from dreamer4_jax.data.sources import EpisodeSource, Request, Stretch
from dreamer4_jax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
  """Reads planned windows of several datasets into one batch.

  Attributes:
    sources: the datasets.
    labeled: `[episodes]` bool for each dataset, whose actions are used.
    actions: the run's action space.
    tasks: the run's task names in id order.
  """

  sources: Sequence[EpisodeSource]
  labeled: Sequence[np.ndarray]
  actions: tuple[ActionComponent, ...]
  tasks: tuple[str, ...]

  def read(self, windows: Sequence[Window]) -> Batch:
    """Returns the windows as a batch `[B, T, ...]`."""
    rows, length = len(windows), _length(windows[0])
    shape, dtype = self.sources[0].description.observation
    frames = np.empty((rows, length, *shape), dtype)
    # Column 0 of the steps is the one before the window.
    steps = _blank(self.actions, len(self.tasks), (rows, length + 1))
    for number, source in enumerate(self.sources):
      requests = []
      for row, window in enumerate(windows):
        if window.source == number:
          requests += _requests(source, window, row, frames, steps)
      source.read(requests)
    ids = np.stack([_segment_ids(window) for window in windows])
    task = np.stack(
      [
        task_labels(self.sources[w.source].index, w, len(self.tasks))
        for w in windows
      ]
    )
    known = np.stack([self._known(w) for w in windows])
    by_event = self.tasks != fmt.REWARD_ONLY
    arrived = align(fmt.unflatten(steps), known, task if by_event else None)
    return Batch(
      frames=frames,
      task=task,
      segment_ids=ids,
      relevant=np.asarray([w.relevant for w in windows]),
      **arrived,
    )

  def _known(self, window: Window) -> np.ndarray:
    """`[T]` bool, whether actions of a frame's episode are used at all."""
    if window.separate_images:
      return np.zeros(_length(window), bool)
    labeled = self.labeled[window.source]
    return np.concatenate(
      [np.full(s.stop - s.start, labeled[s.episode]) for s in window.segments]
    )


def align(
  steps: Mapping[str, Any], known: np.ndarray, task: np.ndarray | None
) -> dict[str, Any]:
  """Aligns steps by arrival.

  Args:
    steps: fields `[B, 1 + T, ...]` as in `fmt.features`, without
      `observation`; column 0 is the step before the clip, where there is one.
    known: `[B, T]` bool, whether the actions of a frame's episode are used.
    task: `[B, T]` task ids, or None for the environment's reward.

  Returns:
    The fields of a `Batch` that steps decide on, `[B, T, ...]`: actions, their
    masks, `reward` and `cont`.
  """
  arrived = ~steps['is_first'][:, 1:]

  def led_here(x: np.ndarray) -> np.ndarray:
    """Moves what belongs to step t - 1 to frame t; 0 on first frames."""
    mask = arrived.reshape(*arrived.shape, *(1,) * (x.ndim - 2))
    return np.where(mask, x[:, :-1], np.zeros((), x.dtype))

  if task is None:
    reward = led_here(steps['reward'])
  else:
    events = led_here(steps['events'])
    reward = np.take_along_axis(events, task[..., None], axis=-1)[..., 0]
  action = steps['action'].items()
  return {
    'action': {k: np.ascontiguousarray(v[:, 1:]) for k, v in action},
    'action_mask': steps['action_known'][:, 1:] & known,
    'prev_action': {k: led_here(v) for k, v in action},
    'prev_action_mask': led_here(steps['action_known']) & known,
    'reward': reward.astype(np.float32),
    'cont': (~steps['is_terminal'][:, 1:]).astype(np.float32),
  }


def _length(window: Window) -> int:
  return sum(s.stop - s.start for s in window.segments)


def _blank(
  actions: Sequence[ActionComponent], tasks: int, leading: tuple[int, ...]
) -> dict[str, np.ndarray]:
  """Steps of which nothing is known, by flat name."""
  blank = {
    'reward': np.zeros(leading, np.float32),
    'events': np.zeros((*leading, tasks), np.uint8),
    'action_known': np.zeros(leading, bool),
    'is_first': np.ones(leading, bool),
    'is_terminal': np.zeros(leading, bool),
  }
  for part in actions:
    shape = () if part.kind == 'categorical' else (part.size,)
    dtype = np.float32 if part.kind == 'continuous' else np.int32
    blank[f'action/{part.name}'] = np.zeros((*leading, *shape), dtype)
  return blank


def _requests(
  source: EpisodeSource,
  window: Window,
  row: int,
  frames: np.ndarray,
  steps: Mapping[str, np.ndarray],
) -> list[Request]:
  """What to read for one row: observations, and steps from one earlier on."""
  steps = {k: v for k, v in steps.items() if k in source.fields}
  requests, column = [], 0
  for i, segment in enumerate(window.segments):
    requests.append(Request(segment, {'observation': frames}, row, column))
    lead = int(i == 0 and segment.start > 0)
    earlier = Stretch(segment.episode, segment.start - lead, segment.stop)
    requests.append(Request(earlier, steps, row, column + 1 - lead))
    column += segment.stop - segment.start
  return requests


def _segment_ids(window: Window) -> np.ndarray:
  if window.separate_images:
    return np.arange(_length(window), dtype=np.int32)
  sizes = [s.stop - s.start for s in window.segments]
  return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
