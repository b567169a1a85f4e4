"""Files of LeRobot datasets: where episodes lie, their tables and frames.

Layouts 2.0, 2.1 (a file for each episode) and 3.0 (many episodes in a file).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import io
import itertools
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines import convert, values, video, writer
from data_pipelines.command import Deferred
from dreamer4_jax.config import require

pa: Any = Deferred('pyarrow', 'lerobot')
pc: Any = Deferred('pyarrow.compute', 'lerobot')
pq: Any = Deferred('pyarrow.parquet', 'lerobot')
VERSIONS = ('v2.0', 'v2.1', 'v3.0')


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
