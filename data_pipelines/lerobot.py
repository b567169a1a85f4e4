"""Converts LeRobot folders: actions in parquet, images in mp4.

python -m data_pipelines.lerobot --dataset DIR --out DIR \
  --image observation.images.top --size 128 128

The state of the robot becomes the vector `state`.

Layouts 2.0, 2.1 (a file for each episode) and 3.0 (many episodes in a file) are
read. A recording has as many actions as frames, so the last action is known,
but leads to no frame.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import numpy as np
import tqdm

from data_pipelines import convert, decoding, geometry, values, writer
from data_pipelines.command import need
from data_pipelines.lerobot_files import (
  Place,
  column,
  find_episodes,
  instruction_of,
  read_info,
  read_table,
)
from data_pipelines.lerobot_frames import frames_of, size_of
from dreamer4_jax.config import ActionComponent, VectorComponent, require
from dreamer4_jax.data import format as fmt

MOVED_REWARD = (
  'rewards of last actions put one frame earlier, since no frame follows them'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeRobotConfig(convert.Output):
  """Which dataset, and what its columns mean."""

  dataset: str
  """Directory that holds meta, data and videos."""
  image: str = ''
  """Feature that holds the image; empty takes the only one there is."""
  action: str = 'action'
  """Column of the action, a vector of floats."""
  state: str = 'observation.state'
  """Column of the robot's state, a vector of floats; empty leaves it out."""
  reward: str = 'next.reward'
  """Column of the reward of each action; 0 where there is none."""
  terminal: str = ''
  """Column that is true where an episode ended for good; if empty, every end is
  just the end of the recording."""
  size: tuple[int, int] | None = None
  """Height and width of frames; none keeps their size."""
  fit: geometry.Fit = 'stretch'
  """How frames are brought to size: crop, pad or stretch."""
  tolerance: float = 0.25
  """How far a row may be from its picture in time, as a share of the time
  between two rows. Where none is near enough, the episode is skipped."""
  eval_share: float = 0.1
  """Share of episodes in the split 'test'."""

  def __post_init__(self):
    super().__post_init__()
    geometry.check_fit(self.fit)
    require(
      0 < self.tolerance < 0.5,
      'tolerance',
      self.tolerance,
      'must be more than 0 and less than half a frame, 0.5',
    )


@dataclasses.dataclass(frozen=True)
class Columns:
  """What the columns of a dataset mean.

  Attributes:
    config: of the conversion.
    image: column of the images, or name of the video.
    fps: frames per second of the dataset.
    low: least value of each action, `[n]`.
    high: greatest value, `[n]`.
    vectors: what is seen beside the image.
  """

  config: LeRobotConfig
  image: str
  fps: float
  low: np.ndarray
  high: np.ndarray
  vectors: tuple[VectorComponent, ...] = ()

  @property
  def names(self) -> tuple[str, ...]:
    """Columns that are read."""
    c = self.config
    wanted = (c.action, c.state, c.reward, c.terminal, self.image)
    return (*wanted, 'timestamp', 'task_index')


def convert_episode(
  item: convert.Input, shard: writer.Shard, *, columns: Columns
) -> dict[str, int]:
  """Writes one episode; rows beyond the end of the video are left out."""
  config, place = columns.config, item.what
  table = read_table(place, columns.names)
  low, high = columns.low, columns.high
  action = column(table, config.action)
  if action.shape[1] != len(low):
    raise writer.EpisodeError(
      f'{config.action}: found shape {action.shape}, expected rows of '
      f'{len(low)} finite numbers'
    )
  beside = {
    v.name: _state(table, config.state, v.size) for v in columns.vectors
  }
  reward = np.zeros(len(action), np.float32)
  # A default that the dataset lacks is no mistake.
  has_reward = config.reward in table.column_names or config.reward not in (
    '',
    LeRobotConfig.reward,
  )
  if has_reward:
    reward = _column_of(table, 'reward', config.reward)[:, 0]
  frames, notes = frames_of(
    place,
    table,
    columns.image,
    decoding.Frames(size=config.size, fit=config.fit),
    fps=columns.fps,
    tolerance=config.tolerance,
  )
  count = len(frames)
  if count < 2:
    raise convert.SkipError('fewer than 2 frames with actions')
  reward = reward[:count].copy()
  moved = int(reward[-1] != 0)
  reward[-2] += reward[-1]
  reward[-1] = 0
  terminal = False
  if config.terminal:
    ended = _column_of(table, 'terminal', config.terminal)
    terminal = bool(ended[count - 1, 0])
  instruction, lost = instruction_of(place, table)
  shard.add(
    writer.Episode(
      steps={
        'observation': np.stack(frames),
        'vector': {name: x[:count] for name, x in beside.items()},
        'action': {
          'action': values.scaled(config.action, action[:count], low, high)
        },
        'action_known': np.ones(count, bool),
        'reward': reward,
        'events': np.zeros((count, 1), np.uint8),
      },
      terminal=terminal,
      attributes={'number': place.number, 'instruction': instruction},
    )
  )
  if config.reward and not has_reward:
    notes[f'episodes without the column {config.reward}, rewards are 0'] = 1
  if lost:
    notes[lost] = 1
  return {
    **notes,
    'actions without a frame': len(action) - count,
    MOVED_REWARD: moved,
  }


def _column_of(table: Any, option: str, name: str) -> np.ndarray:
  """Returns a column `[T, n]`; errors name the option that names it."""
  try:
    return column(table, name)
  except writer.EpisodeError as error:
    raise writer.EpisodeError(
      f"{error}; --{option} '' goes without it"
    ) from error


def _state(table: Any, name: str, size: int) -> np.ndarray:
  """Returns the robot's state `[T, size]`; raises `EpisodeError`."""
  remedy = "--state '' leaves the state out"
  try:
    value = column(table, name)
  except writer.EpisodeError as error:
    raise writer.EpisodeError(f'{error}; {remedy}') from error
  if value.shape[1] != size:
    raise writer.EpisodeError(
      f'{name}: found shape {value.shape}, expected rows of {size} finite '
      f'numbers; {remedy}'
    )
  return value


def convert_lerobot(
  config: LeRobotConfig, *, progress: bool = True
) -> dict[str, Any]:
  """Converts a dataset; returns the report of `convert.run`.

  Raises:
    FileNotFoundError: there is no dataset.
    FileExistsError: there is something at `config.out`.
    ValueError: the dataset's description is damaged, it lacks a feature, or
      nothing could be read.
    ImportError: the extra is not installed.
  """
  need('lerobot', 'pyarrow', 'av')
  info = read_info(config.dataset)
  image = _image_feature(config, info['features'])
  places = find_episodes(config.dataset, info, image)
  vectors = _vectors(config, info['features'])
  low, high = _bounds(config, places, progress)
  columns = Columns(config, image, info['fps'], low, high, vectors)
  size = config.size or _size(columns, places)
  return convert.run(
    config,
    fmt.Description(
      actions=(
        ActionComponent(name='action', kind='continuous', size=len(low)),
      ),
      tasks=fmt.REWARD_ONLY,
      frame_shape=(*size, 3),
      chunk_length=config.chunk_length,
      frame_rate=info['fps'],
      vectors=vectors,
      source={
        'converter': 'lerobot',
        'action_low': low.tolist(),
        'action_high': high.tolist(),
      },
    ),
    [
      convert.Input(
        name=f'episode {place.number}',
        split=convert.split_of(str(place.number), config.eval_share),
        what=place,
        files=tuple(filter(None, (place.data, place.video))),
      )
      for place in places
    ],
    functools.partial(convert_episode, columns=columns),
    settings=[dataclasses.replace(config, workers=0, overwrite=False), image],
    progress=progress,
  )


def _image_feature(
  config: LeRobotConfig, features: Mapping[str, Mapping[str, Any]]
) -> str:
  """Returns the name of the image; depth maps are none."""
  images = [
    name
    for name, f in features.items()
    if f.get('dtype') in ('video', 'image') and not _is_depth(f)
  ]
  if config.image in images:
    return config.image
  if not config.image and len(images) == 1:
    return images[0]
  raise ValueError(
    f'image = {config.image!r}: must be one of the images of the dataset, '
    f'{images}'
  )


def _is_depth(feature: Mapping[str, Any]) -> bool:
  about = feature.get('info') or feature.get('video_info') or {}
  return isinstance(about, Mapping) and bool(about.get('video.is_depth_map'))


def _vectors(
  config: LeRobotConfig, features: Mapping[str, Mapping[str, Any]]
) -> tuple[VectorComponent, ...]:
  """Returns the state's vector; none if it is left out or there is none."""
  if config.state not in features:
    # Only a column that the user named is reported as missing.
    require(
      config.state in ('', LeRobotConfig.state),
      'state',
      config.state,
      f'must be one of the features of the dataset, {sorted(features)}',
    )
    return ()
  try:
    size = int(np.prod(features[config.state]['shape']))
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f'dataset = {config.dataset!r}: the shape of {config.state} in '
      f'meta/info.json is damaged ({values.reason(error)})'
    ) from error
  return (VectorComponent(name='state', size=size),) if size else ()


def _bounds(
  config: LeRobotConfig, places: list[Place], progress: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the least and greatest action over all episodes, `[n]` each."""
  found: list[np.ndarray] = []
  problem = 'there is no episode'
  # Each file is read once, whatever the order of its episodes.
  for place in tqdm.tqdm(
    sorted(places, key=lambda place: place.data),
    desc='look',
    unit=' episodes',
    disable=not progress,
  ):
    try:
      value = column(read_table(place, (config.action,)), config.action)
    except (writer.EpisodeError, convert.SkipError) as error:
      problem = f'episode {place.number}: {error}'
      continue
    width = found[0].shape[0] if found else value.shape[1]
    if value.shape[1] == width:
      found += [value.min(0), value.max(0)]
  if not found:
    raise ValueError(
      f'dataset = {config.dataset!r}: no episode with actions ({problem})'
    )
  return np.min(found, axis=0), np.max(found, axis=0)


def _size(columns: Columns, places: list[Place]) -> tuple[int, int]:
  """Returns height and width of the first frame that can be read."""
  problem, dataset = 'there is no episode', columns.config.dataset
  for place in places:
    try:
      return size_of(place, columns.image)
    except (convert.SkipError, writer.EpisodeError) as error:
      problem = str(error)
  raise ValueError(f'dataset = {dataset!r}: no image can be read ({problem})')


if __name__ == '__main__':
  convert.main_of(LeRobotConfig, convert_lerobot)
