"""Converts LeRobot folders: actions in parquet, images in mp4.

python -m data_pipelines.lerobot --dataset DIR --out DIR \
  --image observation.images.top --size 128 128

The state of the robot becomes the vector `state`.

Layouts 2.0, 2.1 (a file for each episode) and 3.0 (many episodes in a file) are
read. A recording has as many actions as frames, so the last action is known,
but leads to no frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import io
import itertools
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines import convert, values, video, writer
from data_pipelines.command import Deferred, need
from dreamer4_jax.config import ActionComponent, VectorComponent, require
from dreamer4_jax.data import format as fmt

pa: Any = Deferred('pyarrow', 'lerobot')
pc: Any = Deferred('pyarrow.compute', 'lerobot')
pq: Any = Deferred('pyarrow.parquet', 'lerobot')
VERSIONS = ('v2.0', 'v2.1', 'v3.0')
MOVED_REWARD = (
  'rewards of last actions put one frame earlier, since no frame follows them'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeRobotConfig(convert.Output):
  """Which dataset, and what its columns mean."""

  dataset: str
  """Directory that holds meta, data and videos."""
  image: str = ''
  """Feature that is the image; empty takes the only one there is."""
  action: str = 'action'
  """Column of the action, a vector of floats."""
  state: str = 'observation.state'
  """Column of the robot's state, a vector of floats; empty leaves it out."""
  reward: str = 'next.reward'
  """Column of the reward of each action; 0 where there is none."""
  terminal: str = ''
  """Column that is true where an episode ended for good; empty takes every end
  for the end of the recording only."""
  size: tuple[int, int] | None = None
  """Height and width of frames; none keeps them."""
  fit: str = 'stretch'
  """How frames are brought to size: crop, pad or stretch."""
  eval_share: float = 0.1
  """Share of episodes in the split 'test'."""

  def __post_init__(self):
    super().__post_init__()
    fits = ('crop', 'pad', 'stretch')
    require(self.fit in fits, 'fit', self.fit, f'must be one of {fits}')


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an episode lies.

  Attributes:
    number: of the episode.
    data: parquet file.
    video: video file, or empty where images are in the parquet file.
    start: seconds into the video at which the episode begins.
    length: frames, 0 if the dataset does not say.
    task: what it is about, in words.
  """

  number: int
  data: str
  video: str
  start: float
  length: int
  task: str


def read_info(path: str) -> dict[str, Any]:
  """Reads `meta/info.json`.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged, or of an unknown version.
  """
  file = pathlib.Path(path).expanduser() / 'meta' / 'info.json'
  if not file.is_file():
    raise FileNotFoundError(
      f'dataset = {path!r}: no LeRobot dataset there (no meta/info.json)'
    )
  try:
    info = json.loads(file.read_bytes())
    version, fps = str(info['codebase_version']), float(info['fps'])
    features = dict(info['features'])
    require(fps > 0, 'fps', fps, 'must be positive')
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'{file}: damaged ({type(error).__name__}: {error})'
    ) from error
  if version not in VERSIONS:
    raise ValueError(
      f'{file}: codebase_version: found {version!r}, expected one of {VERSIONS}'
    )
  return {**info, 'features': features, 'fps': fps}


def find_episodes(
  path: str, info: Mapping[str, Any], image: str
) -> list[Place]:
  """Returns where every episode lies, in order.

  Raises:
    ValueError: the list of episodes is damaged.
  """
  root = pathlib.Path(path).expanduser()
  is_video = info['features'][image]['dtype'] == 'video'
  try:
    if info['codebase_version'] == 'v3.0':
      return _find_v3(root, info, image if is_video else '')
    return _find_v2(root, info, image if is_video else '')
  except (ValueError, KeyError, TypeError, OSError, IndexError) as error:
    raise ValueError(
      f'dataset = {path!r}: the list of episodes in meta is damaged '
      f'({values.reason(error)})'
    ) from error


def _find_v2(
  root: pathlib.Path, info: Mapping[str, Any], key: str
) -> list[Place]:
  lines = (root / 'meta/episodes.jsonl').read_bytes().splitlines()
  places = []
  for row in map(json.loads, filter(None, lines)):
    number = int(row['episode_index'])
    names = {
      'episode_chunk': number // int(info['chunks_size']),
      'episode_index': number,
      'video_key': key,
    }
    places.append(
      Place(
        number=number,
        data=str(root / info['data_path'].format(**names)),
        video=str(root / info['video_path'].format(**names)) if key else '',
        start=0.0,
        length=int(row.get('length', 0)),
        task='; '.join(map(str, row.get('tasks', ()))),
      )
    )
  return places


def _find_v3(
  root: pathlib.Path, info: Mapping[str, Any], key: str
) -> list[Place]:
  places = []
  for file in sorted((root / 'meta/episodes').rglob('*.parquet')):
    for row in pq.read_table(file).to_pylist():
      of = lambda name, row=row: {
        'chunk_index': row[f'{name}/chunk_index'],
        'file_index': row[f'{name}/file_index'],
        'video_key': key,
      }
      video_file = ''
      if key:
        video_file = str(
          root / info['video_path'].format(**of(f'videos/{key}'))
        )
      places.append(
        Place(
          number=int(row['episode_index']),
          data=str(root / info['data_path'].format(**of('data'))),
          video=video_file,
          start=float(row[f'videos/{key}/from_timestamp']) if key else 0.0,
          length=int(row['length']),
          task='; '.join(map(str, row.get('tasks') or ())),
        )
      )
  return sorted(places, key=lambda place: place.number)


def read_table(place: Place) -> pa.Table:
  """Reads an episode's rows, in order; raises `SkipError`."""
  try:
    table = pq.read_table(place.data)
    if 'episode_index' in table.column_names:
      own = pc.equal(table['episode_index'], place.number)
      table = table.filter(own)
    if 'frame_index' in table.column_names:
      table = table.sort_by('frame_index')
  except (OSError, pa.ArrowException) as error:
    reason = (str(error).splitlines() or [''])[0][:100]
    raise convert.SkipError(f'actions cannot be read ({reason})') from error
  if not table.num_rows:
    raise convert.SkipError('no actions')
  return table


def column(table: pa.Table, name: str) -> np.ndarray:
  """Returns a column as `[T, n]` float32; raises `EpisodeError`."""
  if name not in table.column_names:
    raise writer.EpisodeError(
      f'{name}: no such column; there are {table.column_names}'
    )
  try:
    value = np.asarray(table[name].to_pylist(), np.float32)
    return value.reshape(table.num_rows, -1)
  except (ValueError, TypeError) as error:
    raise writer.EpisodeError(f'{name}: no table of numbers') from error


def frames_of(
  place: Place, table: pa.Table, image: str, how: video.Frames
) -> Iterator[np.ndarray]:
  """Yields an episode's frames."""
  if place.video:
    if not pathlib.Path(place.video).is_file():
      raise convert.SkipError('no video beside the actions')
    decoded = video.decode(place.video, how, start=place.start)
    return itertools.islice(decoded, table.num_rows)
  return (_picture(cell, how) for cell in table[image].to_pylist())


def _picture(cell: Any, how: video.Frames) -> np.ndarray:
  """Decodes an image that is stored in the table."""
  try:
    data = cell['bytes'] if isinstance(cell, Mapping) else cell
    image = Image.open(io.BytesIO(data)).convert('RGB')
  except Exception as error:
    raise convert.SkipError('damaged image') from error
  image = np.asarray(image)
  return image if how.size is None else values.resized(image, how.size)


def convert_episode(
  item: convert.Input,
  shard: writer.Shard,
  *,
  config: LeRobotConfig,
  image: str,
  how: video.Frames,
  low: np.ndarray,
  high: np.ndarray,
  vectors: tuple[VectorComponent, ...] = (),
) -> dict[str, int]:
  """Writes one episode; the shorter of actions and frames counts."""
  place: Place = item.what
  table = read_table(place)
  action = column(table, config.action)
  if action.shape[1] != len(low) or not np.isfinite(action).all():
    raise writer.EpisodeError(
      f'{config.action}: found shape {action.shape}, expected rows of '
      f'{len(low)} finite numbers'
    )
  beside = {v.name: column(table, config.state) for v in vectors}
  reward = np.zeros(len(action), np.float32)
  if config.reward in table.column_names:
    reward = column(table, config.reward)[:, 0]
  frames = list(frames_of(place, table, image, how))
  count = min(len(frames), len(action))
  if count < 2:
    raise convert.SkipError('fewer than 2 frames with actions')
  reward = reward[:count].copy()
  moved = int(reward[-1] != 0)
  reward[-2] += reward[-1]
  reward[-1] = 0
  terminal = False
  if config.terminal:
    terminal = bool(column(table, config.terminal)[count - 1, 0])
  shard.add(
    writer.Episode(
      steps={
        'observation': np.stack(frames[:count]),
        'vector': {name: x[:count] for name, x in beside.items()},
        'action': {'action': values.scaled(action[:count], low, high)},
        'action_known': np.ones(count, bool),
        'reward': reward,
        'events': np.zeros((count, 1), np.uint8),
      },
      terminal=terminal,
      attributes={'number': place.number, 'instruction': place.task},
    )
  )
  return {
    'actions without a frame': len(action) - count,
    MOVED_REWARD: moved,
  }


def convert_lerobot(
  config: LeRobotConfig, *, progress: bool = True
) -> dict[str, Any]:
  """Converts a dataset; returns the report of `convert.run`.

  Raises:
    FileNotFoundError: there is no dataset.
    FileExistsError: there is something at `config.out`.
    ValueError: its description is damaged, it lacks a feature, or nothing
      could be read.
    ImportError: the extra is not installed.
  """
  need('lerobot', 'pyarrow', 'av')
  info = read_info(config.dataset)
  image = _image_feature(config, info['features'])
  places = find_episodes(config.dataset, info, image)
  vectors = _vectors(config, info['features'])
  low, high = _bounds(config, places)
  how = video.Frames(size=config.size, fit=config.fit, steady=True)
  size = config.size or _size(config, places, image)
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
      )
      for place in places
    ],
    functools.partial(
      convert_episode,
      config=config,
      image=image,
      how=how,
      low=low,
      high=high,
      vectors=vectors,
    ),
    settings=[dataclasses.replace(config, workers=0), image],
    progress=progress,
  )


def _image_feature(
  config: LeRobotConfig, features: Mapping[str, Mapping[str, Any]]
) -> str:
  images = [
    name for name, f in features.items() if f.get('dtype') in ('video', 'image')
  ]
  if config.image in images:
    return config.image
  if not config.image and len(images) == 1:
    return images[0]
  raise ValueError(
    f'image = {config.image!r}: must be one of the images of the dataset, '
    f'{images}'
  )


def _vectors(
  config: LeRobotConfig, features: Mapping[str, Mapping[str, Any]]
) -> tuple[VectorComponent, ...]:
  """Returns the state's vector; none if it is left out or there is none."""
  if config.state not in features:
    # Only who names a column of his own is told that it is not there.
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
  return (VectorComponent(name='state', size=size),)


def _bounds(
  config: LeRobotConfig, places: list[Place]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the least and greatest action over all episodes, `[n]` each."""
  found: list[np.ndarray] = []
  problem = 'there is no episode'
  for place in places:
    try:
      value = column(read_table(place), config.action)
    except (writer.EpisodeError, convert.SkipError) as error:
      problem = str(error)
      continue
    width = found[0].shape[0] if found else value.shape[1]
    if np.isfinite(value).all() and value.shape[1] == width:
      found += [value.min(0), value.max(0)]
  if not found:
    raise ValueError(
      f'dataset = {config.dataset!r}: no episode with actions ({problem})'
    )
  return np.min(found, axis=0), np.max(found, axis=0)


def _size(
  config: LeRobotConfig, places: list[Place], image: str
) -> tuple[int, int]:
  """Returns height and width of the first frame that can be read."""
  problem = ''
  for place in places:
    try:
      table = read_table(place)
      frame = next(frames_of(place, table, image, video.Frames()), None)
      if frame is not None:
        return frame.shape[:2]
    except convert.SkipError as error:
      problem = str(error)
  raise ValueError(
    f'dataset = {config.dataset!r}: no image can be read ({problem})'
  )


if __name__ == '__main__':
  convert.main_of(LeRobotConfig, convert_lerobot)
