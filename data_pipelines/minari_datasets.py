"""Converts Minari datasets whose observations hold an image.

python -m data_pipelines.minari_datasets --dataset DIR --out DIR

`DIR` is a dataset's directory, the one that holds `data`.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from data_pipelines import convert, geometry, values, writer
from data_pipelines.command import Deferred, need
from data_pipelines.files import find
from dreamer4_jax.config import VectorComponent
from dreamer4_jax.data import format as fmt

gymnasium: Any = Deferred('gymnasium', 'minari')
minari: Any = Deferred('minari', 'minari')
gymnasium_env: Any = Deferred('dreamer4_jax.envs.gymnasium_env', 'minari')
_INPUT_EPISODES = 64
"""Episodes that are converted together."""
CLIPPED = 'actions clipped to their box'


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinariConfig(convert.Output):
  """Which dataset, and which part of its observations."""

  dataset: str
  """Directory of the dataset."""
  image: str = ''
  """Key of the image, if observations are dictionaries; with slashes, if these
  are nested."""
  vectors: tuple[str, ...] = ()
  """Keys of vectors to keep beside the image, each NAME=KEY or KEY; with
  slashes, if observations are nested. Arrays are flattened."""
  size: tuple[int, int] | None = None
  """Height and width of frames; none keeps their size."""
  fit: geometry.Fit = 'stretch'
  """How frames are brought to size: crop, pad or stretch."""
  clip_actions: bool = False
  """Clip actions that lie outside their box, and count them; without it, their
  episodes are skipped."""
  frame_rate: float = 0.0
  """Frames per second, if known."""
  eval_share: float = 0.1
  """Share of episodes in the split 'test'."""

  def __post_init__(self):
    super().__post_init__()
    geometry.check_fit(self.fit)
    convert.check_names('vectors', self.vectors, 'NAME=KEY or KEY')


@functools.cache
def open_dataset(path: str) -> minari.MinariDataset:
  """Opens a dataset.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it cannot be read.
  """
  data = pathlib.Path(path).expanduser() / 'data'
  if not data.is_dir():
    raise FileNotFoundError(
      f'dataset = {path!r}: no Minari dataset there (no directory data)'
    )
  try:
    return minari.MinariDataset(data)
  except Exception as error:
    raise ValueError(
      f'dataset = {path!r}: cannot be read ({values.reason(error)})'
    ) from error


def image_of(observations: Any, key: str) -> np.ndarray:
  """Returns the image of observations `[T + 1, H, W, 3]` uint8.

  Raises:
    EpisodeError: there is none under this key.
  """
  label = f'image = {key!r}'
  return values.rgb(label, _find(observations, key, label), steps=True)


def _find(observations: Any, key: str, label: str) -> Any:
  """Returns the value under a key; raises `EpisodeError`."""
  value = observations
  for name in filter(None, key.split('/')):
    if not isinstance(value, Mapping):
      raise writer.EpisodeError(
        f'{label}: no such observation; {name!r} is looked for in an array'
      )
    if name not in value:
      raise writer.EpisodeError(
        f'{label}: no such observation; there are {sorted(value)}'
      )
    value = value[name]
  if isinstance(value, Mapping):
    raise writer.EpisodeError(
      f'{label}: is a dictionary of {sorted(value)}; name one of them'
    )
  return value


def vectors_of(observations: Any, keys: Mapping[str, str]) -> dict[str, Any]:
  """Returns vectors of observations, components `[T + 1, n]`.

  Args:
    observations: of an episode.
    keys: of the observations, by the vectors' names.

  Raises:
    EpisodeError: there are no numbers under a key.
  """
  found = {}
  for name, key in keys.items():
    label = f'vectors = {key!r}'
    value = np.asarray(_find(observations, key, label))
    if value.dtype.kind not in 'iufb':
      raise writer.EpisodeError(f'{label}: found {value.dtype}, no numbers')
    found[name] = value.reshape(len(value), -1)
  return found


def to_components(
  actions: np.ndarray, space: gymnasium.Space, *, clip: bool = False
) -> tuple[dict[str, np.ndarray], int]:
  """Turns actions `[T, ...]` into components; see `action_components`.

  Args:
    actions: of an episode.
    space: from which they are.
    clip: those of a box that lie outside it.

  Returns:
    The components, and the number of steps whose action was clipped.

  Raises:
    EpisodeError: an action lies outside its box, and is not to be clipped.
  """
  spaces = gymnasium.spaces
  actions = np.asarray(actions)
  if isinstance(space, spaces.Discrete):
    return {'action': actions.reshape(len(actions)) - int(space.start)}, 0
  if isinstance(space, spaces.MultiDiscrete):
    shifted = actions - space.start
    return {f'action{i}': shifted[:, i] for i in range(shifted.shape[1])}, 0
  flat = actions.reshape(len(actions), -1)
  if isinstance(space, spaces.Box):
    low, high = space.low.ravel(), space.high.ravel()
    clipped = 0
    if clip:
      clipped = int(values.outside(flat, low, high).any(axis=1).sum())
      flat = np.clip(flat, low, high)
    try:
      return {'action': values.scaled('action', flat, low, high)}, clipped
    except writer.EpisodeError as error:
      raise writer.EpisodeError(
        f'{error}; --clip-actions clips and counts such actions'
      ) from error
  return {'action': flat}, 0


def convert_episodes(
  item: convert.Input,
  shard: writer.Shard,
  *,
  config: MinariConfig,
  vectors: Mapping[str, str],
  size: tuple[int, int],
) -> dict[str, int]:
  """Writes some episodes; bad ones are counted by their reason."""
  dataset = open_dataset(config.dataset)
  before, notes = len(shard.index.lengths), {}
  for number in item.what:
    try:
      episode, clipped = _episode(dataset, number, config, vectors, size)
      shard.add(episode)
    except writer.EpisodeError as error:
      reason = f'episode skipped: {error}'
    except Exception as error:
      shard.abandon()
      first = (str(error).splitlines() or [''])[0][:150]
      reason = f'episode skipped: unreadable ({type(error).__name__}: {first})'
    else:
      if clipped:
        notes[CLIPPED] = notes.get(CLIPPED, 0) + clipped
      continue
    notes[reason] = notes.get(reason, 0) + 1
  if len(shard.index.lengths) == before and notes:
    raise convert.SkipError(next(iter(notes)))
  return notes


def _episode(
  dataset: minari.MinariDataset,
  number: int,
  config: MinariConfig,
  vectors: Mapping[str, str],
  size: tuple[int, int],
) -> tuple[writer.Episode, int]:
  """Returns an episode, and how many of its actions were clipped."""
  (data,) = dataset.iterate_episodes([number])
  frames = image_of(data.observations, config.image)
  count = len(data.rewards)
  if len(frames) != count + 1:
    raise writer.EpisodeError(
      f'observation: found {len(frames)} of them for {count} actions, expected '
      'one more'
    )
  last = lambda x: np.concatenate([x, np.zeros_like(x[:1])])
  actions, clipped = to_components(
    data.actions, dataset.action_space, clip=config.clip_actions
  )
  episode = writer.Episode(
    steps={
      'observation': np.stack(
        [geometry.fitted(f, size, config.fit) for f in frames]
      ),
      'vector': vectors_of(data.observations, vectors),
      'action': {k: last(v) for k, v in actions.items()},
      'action_known': np.arange(count + 1) < count,
      'reward': last(np.asarray(data.rewards, np.float32).reshape(count)),
      'events': np.zeros((count + 1, 1), np.uint8),
    },
    terminal=bool(np.asarray(data.terminations)[-1]),
    attributes={'number': int(number)},
  )
  return episode, clipped


def convert_minari(
  config: MinariConfig, *, progress: bool = True
) -> dict[str, Any]:
  """Converts a dataset; returns the report of `convert.run`.

  Raises:
    FileNotFoundError: there is no dataset.
    FileExistsError: there is something at `config.out`.
    ValueError: the actions are of another kind, or nothing could be read.
    ImportError: the extra is not installed.
  """
  need('minari', 'minari', 'gymnasium', 'h5py')
  dataset = open_dataset(config.dataset)
  try:
    actions = gymnasium_env.action_components(dataset.action_space, '')
  except ValueError as error:
    raise ValueError(
      f'dataset = {config.dataset!r}: its actions are {dataset.action_space}; '
      'Discrete, MultiDiscrete, MultiBinary and bounded Box spaces can be '
      'converted'
    ) from error
  numbers = [int(n) for n in dataset.episode_indices]
  if not numbers:
    raise ValueError(f'dataset = {config.dataset!r}: has no episode')
  keys = {
    text.partition('=')[0]: text.partition('=')[2] or text
    for text in config.vectors
  }
  size, vectors = _look(dataset, numbers, config, keys)
  data = pathlib.Path(config.dataset).expanduser() / 'data'
  files = tuple(str(path) for _, path in find(data, ('.hdf5', '.json')))
  inputs = []
  for split in ('train', 'test'):
    own = [
      n for n in numbers if convert.split_of(str(n), config.eval_share) == split
    ]
    inputs += [
      convert.Input(
        name=f'episodes {part[0]} to {part[-1]} ({split})',
        split=split,
        what=part,
        files=files,
      )
      for part in (
        own[i : i + _INPUT_EPISODES]
        for i in range(0, len(own), _INPUT_EPISODES)
      )
    ]
  known = dataset.spec
  return convert.run(
    config,
    fmt.Description(
      actions=actions,
      tasks=fmt.REWARD_ONLY,
      frame_shape=(*size, 3),
      chunk_length=config.chunk_length,
      frame_rate=config.frame_rate,
      vectors=vectors,
      source={'converter': 'minari', 'dataset_id': str(known.dataset_id)},
    ),
    inputs,
    functools.partial(
      convert_episodes,
      config=config,
      vectors=keys,
      size=size,
    ),
    settings=[config.image, size, keys, config.fit, config.clip_actions],
    progress=progress,
  )


def _look(
  dataset: minari.MinariDataset,
  numbers: list[int],
  config: MinariConfig,
  keys: Mapping[str, str],
) -> tuple[tuple[int, int], tuple[VectorComponent, ...]]:
  """Returns the frames' height and width, and the vectors.

  They are those of the first episode that can be read.
  """
  if config.size and not keys:
    return config.size, ()
  problem = ''
  for number in numbers:
    try:
      (data,) = dataset.iterate_episodes([number])
      found = vectors_of(data.observations, keys)
      size = config.size
      if size is None:
        size = image_of(data.observations, config.image).shape[1:3]
    except writer.EpisodeError as error:
      raise ValueError(f'dataset = {config.dataset!r}: {error}') from error
    except Exception as error:
      problem = values.reason(error)
    else:
      return size, tuple(
        VectorComponent(name=name, size=x.shape[1]) for name, x in found.items()
      )
  raise ValueError(
    f'dataset = {config.dataset!r}: no episode can be read ({problem})'
  )


if __name__ == '__main__':
  convert.main_of(MinariConfig, convert_minari)
