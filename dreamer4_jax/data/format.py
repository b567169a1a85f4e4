"""The dataset on disk: chunks of episodes, in the steps of RLDS.

Step t holds the frame `observation[t]`, the `action[t]` chosen after seeing
it, and what that action earned: `reward[t]`, `events[t]`. The last step holds
the frame on which the episode ended, with a dummy action (`action_known` is
false) that earned nothing. `is_terminal` is true there unless the episode was
cut by its time limit.

A record is a *chunk*: `chunk_length` consecutive steps of one episode, fewer
at its end. Chunks of an episode follow each other, so the record of any step is
known without a search. Reading a window of T steps reads about T + chunk_length
of them.

A JSON description lies beside the records. It has an index of every episode's
length, events and attributes, so that a loader can plan its windows without
reading frames.

What is observed along with the frame, such as proprioception, is in
`vector/NAME`, at the same step as the frame.

A *pre-tokenised* dataset holds the latents of a tokenizer where others hold
frames, and the fingerprint of that tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dreamer4_jax.config import ActionComponent, VectorComponent, require

FORMAT_VERSION = 2
REWARD_ONLY = ('reward',)
"""Tasks of a dataset without events: the environment's reward is the task."""
INDEX_FIELDS = (
  'lengths', 'known', 'returns', 'terminal', 'events', 'attributes'
)  # fmt: skip
"""Lists in the metadata of a split, an entry for each episode."""

_TUPLES = ('tasks', 'frame_shape', 'latent_shape')

Attributes = Mapping[str, str | int | float | bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitIndex:
  """What a loader plans with.

  Attributes:
    lengths: `[episodes]` int64 frames of each episode, the last included.
    first_chunks: `[episodes]` int64 record with which each episode begins.
    event_episode: `[events]` int64 episode of each event.
    event_frame: `[events]` int64 frame on whose arrival it is seen, >= 1.
    event_task: `[events]` int64 task id. Events are in the order of episode,
      frame, task.
    terminal: `[episodes]` bool, whether the last frame is terminal.
    attributes: of each episode, for example where it comes from.
    known: `[episodes]` int64 steps whose action is known.
    returns: `[episodes]` float64 sum of the rewards.
  """

  lengths: np.ndarray
  first_chunks: np.ndarray
  event_episode: np.ndarray
  event_frame: np.ndarray
  event_task: np.ndarray
  terminal: np.ndarray
  attributes: tuple[Attributes, ...] = ()
  known: np.ndarray | None = None
  returns: np.ndarray | None = None

  def of_episode(self, episode: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the arrival frames and the tasks of one episode's events."""
    begin, end = np.searchsorted(self.event_episode, [episode, episode + 1])
    return self.event_frame[begin:end], self.event_task[begin:end]

  def of_tasks(self, kept: Sequence[int]) -> SplitIndex:
    """Returns the index with the events of these tasks, in their order."""
    number = {task: i for i, task in enumerate(kept)}
    mine = np.isin(self.event_task, list(kept))
    task = [number[k] for k in self.event_task[mine].tolist()]
    events = self.event_episode[mine], self.event_frame[mine], task
    order = np.lexsort(events[::-1])
    episode, frame, task = (np.asarray(x, np.int64)[order] for x in events)
    return dataclasses.replace(
      self, event_episode=episode, event_frame=frame, event_task=task
    )

  @functools.cached_property
  def ends(self) -> np.ndarray:
    """`[episodes]` int64 frames up to the end of each episode."""
    return np.cumsum(self.lengths)

  @functools.cached_property
  def events_of_task(self) -> dict[int, np.ndarray]:
    """Indices of the events of each task that has any."""
    tasks = self.event_task
    return {int(k): np.flatnonzero(tasks == k) for k in np.unique(tasks)}

  @functools.cached_property
  def milestones(self) -> np.ndarray:
    """Indices of the first event of each task in each episode."""
    if not len(self.event_task):
      return np.zeros(0, np.int64)
    kind = self.event_episode * (self.event_task.max() + 1) + self.event_task
    return np.sort(np.unique(kind, return_index=True)[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
  """What the dataset says about itself.

  Attributes:
    actions: the action space; empty for video without actions.
    tasks: names of the events, in id order; empty if nothing is known of
      them, `REWARD_ONLY` if there is a reward but no event.
    frame_shape: height, width, channels.
    chunk_length: steps in a record.
    frame_rate: frames per second; 0 if it means nothing.
    labels: names of the classes or bits of action components, for people.
    tokenizer: fingerprint of the tokenizer whose latents take the place of
      frames; empty for frames.
    latent_shape: latents and their channels; empty for frames.
    vectors: what is observed along with each frame, with the mean and the
      standard deviation over the dataset, which `publish` fills in.
    source: anything that the maker of the dataset wants to record.
  """

  actions: tuple[ActionComponent, ...]
  tasks: tuple[str, ...]
  frame_shape: tuple[int, int, int]
  chunk_length: int = 8
  frame_rate: float = 0.0
  labels: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  tokenizer: str = ''
  latent_shape: tuple[int, ...] = ()
  vectors: tuple[VectorComponent, ...] = ()
  source: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    kind = 'Description'
    require(
      self.chunk_length >= 1,
      f'{kind}.chunk_length',
      self.chunk_length,
      'must be at least 1',
    )
    sizes = {c.name: c.size for c in self.actions}
    require(
      all(len(v) == sizes.get(k) for k, v in self.labels.items()),
      f'{kind}.labels',
      self.labels,
      f'needs a name for each class or bit of a component, {sizes}',
    )
    require(
      self.frame_rate >= 0,
      f'{kind}.frame_rate',
      self.frame_rate,
      'must be frames per second, or 0 if they mean nothing',
    )
    require(
      len(self.frame_shape) == 3 and min(self.frame_shape) >= 1,
      f'{kind}.frame_shape',
      self.frame_shape,
      'must be height, width, channels',
    )
    require(
      len(self.latent_shape) == (2 if self.tokenizer else 0),
      f'{kind}.latent_shape',
      self.latent_shape,
      'must be latents and channels if there is a tokenizer, else empty',
    )
    names = [v.name for v in self.vectors]
    require(
      len(set(names)) == len(names),
      f'{kind}.vectors',
      names,
      'must have distinct names',
    )

  @property
  def observation(self) -> tuple[tuple[int, ...], type]:
    """Shape and dtype of one step's observation."""
    if self.tokenizer:
      return self.latent_shape, np.float16
    return self.frame_shape, np.uint8

  def to_metadata(self) -> dict[str, Any]:
    """Returns plain data for JSON, still without the splits' indices."""
    plain = dataclasses.asdict(self)
    return {'format_version': FORMAT_VERSION, **plain, 'splits': {}}

  @classmethod
  def from_metadata(cls, metadata: dict[str, Any]) -> Description:
    """Reverses `to_metadata`; raises `ValueError` naming what is wrong."""
    version = metadata.get('format_version')
    if version != FORMAT_VERSION:
      raise ValueError(
        f'metadata format_version: found {version!r}, expected '
        f'{FORMAT_VERSION}; make the dataset again with data_pipelines'
      )
    plain = {f.name for f in dataclasses.fields(cls)}
    plain -= {'actions', 'vectors', *_TUPLES}
    try:
      return cls(
        actions=tuple(ActionComponent(**c) for c in metadata['actions']),
        # Datasets from before there were vectors do not name them.
        vectors=tuple(map(_vector, metadata.get('vectors', ()))),
        **{name: tuple(metadata[name]) for name in _TUPLES},
        **{name: metadata[name] for name in plain},
      )
    except (KeyError, TypeError) as error:
      raise ValueError(f'metadata: damaged ({error!r})') from error


def _vector(plain: Mapping[str, Any]) -> VectorComponent:
  """Reads one vector's description."""
  tuples = {k: tuple(plain[k]) for k in ('mean', 'std')}
  return VectorComponent(**{**plain, **tuples})


def features(description: Description) -> tfds.features.FeaturesDict:
  """Returns the features of one record, time leading."""

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

  flag = steps((), np.bool_)
  found: dict[str, Any] = {
    'observation': steps(*description.observation),
    'action_known': flag,
    'reward': steps((), np.float32),
    'is_first': flag,
    'is_last': flag,
    'is_terminal': flag,
    # Step of the episode with which the chunk begins.
    'start': tfds.features.Scalar(np.int64),
  }
  # TFDS has neither empty dictionaries nor empty tensors.
  if description.actions:
    found['action'] = {c.name: action(c) for c in description.actions}
  if description.tasks:
    found['events'] = steps((len(description.tasks),), np.uint8)
  if description.vectors:
    found['vector'] = {
      v.name: steps((v.size,), np.float32) for v in description.vectors
    }
  return tfds.features.FeaturesDict(found)


def flatten(fields: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Flattens nested dictionaries to fields `action/NAME`, `vector/NAME`."""
  flat: dict[str, Any] = {}
  for name, value in fields.items():
    if isinstance(value, Mapping | tfds.features.FeaturesDict):
      flat |= flatten(value, f'{prefix}{name}/')
    else:
      flat[prefix + name] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Reverses `flatten`; `action` is there even if it is empty."""
  fields: dict[str, Any] = {'action': {}}
  for name, value in flat.items():
    group, slash, component = name.partition('/')
    if slash:
      fields.setdefault(group, {})[component] = value
    else:
      fields[name] = value
  return fields


def index_from_metadata(metadata: dict[str, Any], split: str) -> SplitIndex:
  """Reads one split's index, as the writer of datasets made it."""
  entry = metadata['splits'][split]
  events = [
    (episode, frame, task)
    for episode, found in enumerate(entry['events'])
    for frame, task in found
  ]
  columns = np.asarray(events, dtype=np.int64).reshape(-1, 3)
  return SplitIndex(
    lengths=np.asarray(entry['lengths'], dtype=np.int64),
    first_chunks=np.asarray(entry['first_chunks'], dtype=np.int64),
    event_episode=columns[:, 0],
    event_frame=columns[:, 1],
    event_task=columns[:, 2],
    terminal=np.asarray(entry['terminal'], dtype=bool),
    attributes=tuple(entry['attributes']),
    known=np.asarray(entry['known'], dtype=np.int64),
    returns=np.asarray(entry['returns'], dtype=np.float64),
  )
