"""The dataset on disk: one record per episode, in the steps of RLDS.

Step t holds the frame `observation[t]`, the `action[t]` chosen after seeing
it, and what that action earned: `reward[t]`, `events[t]`. The last step holds
the frame on which the episode ended, with a dummy action (`action_known` is
false) that earned nothing. `is_terminal` is true there unless the episode was
cut by its time limit.

Beside the records lies a JSON description. It has an index of every episode's
length and events, so that a loader plans its windows without reading frames.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dreamer4_jax.config import ActionComponent

FORMAT_VERSION = 1
REWARD_ONLY = ('reward',)
"""Tasks of a dataset without events: the environment's reward is the task."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitIndex:
  """What a loader plans with.

  Attributes:
    lengths: `[episodes]` int64 frames of each episode, the last included.
    event_episode: `[events]` int64 episode of each event.
    event_frame: `[events]` int64 frame on whose arrival it is seen, >= 1.
    event_task: `[events]` int64 task id. Events are in the order of episode,
      frame, task.
  """

  lengths: np.ndarray
  event_episode: np.ndarray
  event_frame: np.ndarray
  event_task: np.ndarray

  def of_episode(self, episode: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the arrival frames and the tasks of one episode's events."""
    begin, end = np.searchsorted(self.event_episode, [episode, episode + 1])
    return self.event_frame[begin:end], self.event_task[begin:end]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
  """What the dataset says about itself.

  Attributes:
    actions: the action space.
    tasks: names of the events, in id order.
    frame_shape: height, width, channels.
    source: whatever made the dataset wants to be remembered.
  """

  actions: tuple[ActionComponent, ...]
  tasks: tuple[str, ...]
  frame_shape: tuple[int, int, int]
  source: dict[str, Any] = dataclasses.field(default_factory=dict)

  def to_metadata(self) -> dict[str, Any]:
    """Returns plain data for JSON, still without the splits' indices."""
    return {
      'format_version': FORMAT_VERSION,
      'actions': [dataclasses.asdict(c) for c in self.actions],
      'tasks': list(self.tasks),
      'frame_shape': list(self.frame_shape),
      'source': self.source,
      'splits': {},
    }

  @classmethod
  def from_metadata(cls, metadata: dict[str, Any]) -> Description:
    """Reverses `to_metadata`; raises `ValueError` for another version."""
    version = metadata.get('format_version')
    if version != FORMAT_VERSION:
      raise ValueError(
        f'metadata format_version: found {version!r}, expected '
        f'{FORMAT_VERSION}; make the dataset with data_pipelines'
      )
    return cls(
      actions=tuple(ActionComponent(**c) for c in metadata['actions']),
      tasks=tuple(metadata['tasks']),
      frame_shape=tuple(metadata['frame_shape']),
      source=metadata['source'],
    )


def features(description: Description) -> tfds.features.FeaturesDict:
  """Returns the features of one episode, time leading."""

  def steps(shape: tuple[int, ...], dtype: type) -> tfds.features.Tensor:
    # Raw bytes: decoding the default list of int64 is 20 times slower.
    return tfds.features.Tensor(
      shape=(None, *shape), dtype=dtype, encoding='bytes'
    )

  def action(component: ActionComponent) -> tfds.features.Tensor:
    if component.kind == 'categorical':
      return steps((), np.int32)
    dtype = np.float32 if component.kind == 'continuous' else np.int32
    return steps((component.size,), dtype)

  return tfds.features.FeaturesDict(
    {
      'observation': steps(description.frame_shape, np.uint8),
      'action': {c.name: action(c) for c in description.actions},
      'action_known': steps((), np.bool_),
      'reward': steps((), np.float32),
      'events': steps((len(description.tasks),), np.uint8),
      'is_first': steps((), np.bool_),
      'is_last': steps((), np.bool_),
      'is_terminal': steps((), np.bool_),
    }
  )


def index_entry(episode: dict[str, Any]) -> tuple[int, list[list[int]]]:
  """Returns an episode's length and its events `[arrival frame, task]`."""
  step, task = np.nonzero(episode['events'])
  arrivals = np.stack([step + 1, task], axis=-1)
  return len(episode['is_first']), arrivals.tolist()


def index_from_metadata(metadata: dict[str, Any], split: str) -> SplitIndex:
  """Reads one split's index, as `index_entry` made it."""
  entry = metadata['splits'][split]
  events = [
    (episode, frame, task)
    for episode, found in enumerate(entry['events'])
    for frame, task in found
  ]
  columns = np.asarray(events, dtype=np.int64).reshape(-1, 3)
  return SplitIndex(
    lengths=np.asarray(entry['lengths'], dtype=np.int64),
    event_episode=columns[:, 0],
    event_frame=columns[:, 1],
    event_task=columns[:, 2],
  )
