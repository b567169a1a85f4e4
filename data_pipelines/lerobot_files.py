"""Files of LeRobot datasets: where episodes lie, and their tables.

Layouts 2.0, 2.1 (a file for each episode) and 3.0 (many episodes in a file).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from data_pipelines import convert, values, writer
from data_pipelines.command import Deferred
from data_pipelines.files import find, stamp
from dreamer4_jax.config import require

pa: Any = Deferred('pyarrow', 'lerobot')
pq: Any = Deferred('pyarrow.parquet', 'lerobot')
_TASKS = ('tasks.jsonl', 'tasks.parquet')
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
    clash: why its place in the video cannot be right; empty if it can.
    before: frames of the episodes before it in its video file.
    whole: frames of all episodes in its video file; 0 if it has a file of its
      own.
    root: directory of the dataset.
  """

  number: int
  data: str
  video: str
  start: float
  length: int
  task: str
  clash: str = ''
  before: int = 0
  whole: int = 0
  root: str = ''


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
  names_of = _tasks(root)
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
        root=str(root),
        number=number,
        data=str(root / info['data_path'].format(**names)),
        video=str(root / info['video_path'].format(**names)) if key else '',
        start=0.0,
        length=int(row.get('length', 0)),
        task=_in_words(row.get('tasks'), names_of),
      )
    )
  return places


def _find_v3(
  root: pathlib.Path, info: Mapping[str, Any], key: str
) -> list[Place]:
  places = []
  names_of = _tasks(root)
  # Statistics of every episode lie beside what is wanted.
  wanted = ('episode_index', 'length', 'tasks', 'data/', f'videos/{key}/')
  files = find(root / 'meta/episodes', ('.parquet',))
  for _, file in sorted(files):
    columns = [
      name
      for name in pq.read_schema(file).names
      if name.startswith(wanted[3:] if key else wanted[3:4])
      or name in wanted[:3]
    ]
    for row in pq.read_table(file, columns=columns).to_pylist():
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
          root=str(root),
          number=int(row['episode_index']),
          data=str(root / info['data_path'].format(**of('data'))),
          video=video_file,
          start=float(row[f'videos/{key}/from_timestamp']) if key else 0.0,
          length=int(row['length']),
          task=_in_words(row.get('tasks'), names_of),
        )
      )
  if key:
    places = _side_by_side(places, float(info['fps']))
  return sorted(places, key=lambda place: place.number)


def _side_by_side(places: Sequence[Place], fps: float) -> list[Place]:
  """Notes which episodes overlap in their video file, and what is before."""
  by_file: dict[str, list[Place]] = {}
  for place in places:
    by_file.setdefault(place.video, []).append(place)
  found = []
  for own in by_file.values():
    own.sort(key=lambda place: place.start)
    clashes = dict.fromkeys(range(len(own)), '')
    for i, (one, other) in enumerate(itertools.pairwise(own)):
      end = one.start + one.length / fps
      if end > other.start + 0.5 / fps:
        clashes[i] = clashes[i + 1] = (
          f'episode {one.number} ends at {end:.4f} s of the video by its '
          f'length, but episode {other.number} begins at {other.start:.4f} s '
          'by its from_timestamp'
        )
    before = [0, *itertools.accumulate(place.length for place in own)]
    found += [
      dataclasses.replace(
        place, clash=clashes[i], before=before[i], whole=before[-1]
      )
      for i, place in enumerate(own)
    ]
  return found


@functools.lru_cache(maxsize=1)
def _tasks_of(root: str, *changed: tuple[int, int]) -> dict[int, str]:
  """As `_tasks`, read again if a file has changed."""
  del changed
  return _tasks(pathlib.Path(root))


def _tasks(root: pathlib.Path) -> dict[int, str]:
  """Returns the dataset's instructions by their index; empty without a list."""
  lines, table = (root / 'meta' / name for name in _TASKS)
  if table.is_file():
    rows = pq.read_table(table).to_pylist()
  elif lines.is_file():
    rows = [json.loads(x) for x in lines.read_bytes().splitlines() if x.strip()]
  else:
    return {}
  found = {}
  for row in rows:
    # Pandas keeps the text of a task as the index of its table.
    texts = [x for k, x in row.items() if isinstance(x, str)]
    found[int(row['task_index'])] = row.get('task') or (texts or [''])[0]
  return found


def _in_words(tasks: Any, names_of: Mapping[int, str]) -> str:
  """Returns an episode's tasks, which may be a text, texts or indices."""
  if tasks is None:
    return ''
  several = [tasks] if isinstance(tasks, str | int) else list(tasks)
  return '; '.join(
    x if isinstance(x, str) else names_of[int(x)] for x in several
  )


def instruction_of(place: Place, table: pa.Table) -> tuple[str, str]:
  """Returns the instruction of an episode, and a note if there is none.

  Where the list of episodes has none, its rows may name one by `task_index`.
  """
  if place.task or 'task_index' not in table.column_names:
    return place.task, ''
  found = table['task_index'].drop_null().unique().to_pylist()
  names_of = _tasks_of(
    place.root, *(stamp(f'{place.root}/meta/{name}') for name in _TASKS)
  )
  missing = [number for number in found if number not in names_of]
  if missing:
    return '', 'episodes whose task_index is not among the tasks in meta'
  return '; '.join(names_of[number] for number in found), ''


def read_table(place: Place, columns: Sequence[str]) -> pa.Table:
  """Reads an episode's rows, in order.

  Args:
    place: of the episode.
    columns: that are wanted; those that the file lacks are left out.

  Raises:
    SkipError: the file cannot be read, or holds nothing of the episode.
  """
  try:
    table, numbers = _rows(place.data, stamp(place.data), tuple(columns))
  except (OSError, pa.ArrowException) as error:
    reason = (str(error).splitlines() or [''])[0][:100]
    raise convert.SkipError(f'actions cannot be read ({reason})') from error
  if numbers is not None:
    begin, end = np.searchsorted(numbers, [place.number, place.number + 1])
    table = table.slice(begin, end - begin)
  if not table.num_rows:
    raise convert.SkipError('no actions')
  return table


@functools.lru_cache(maxsize=2)
def _rows(
  path: str, changed: tuple[int, int], columns: tuple[str, ...]
) -> tuple[pa.Table, np.ndarray | None]:
  """Returns a file's rows by episode and frame, and their episodes' numbers.

  A file may hold thousands of episodes, so it is kept until another is read.

  Args:
    path: of the file.
    changed: its time and size, so that a changed file is read again.
    columns: that are wanted.
  """
  del changed
  there = pq.read_schema(path).names
  order = [n for n in ('episode_index', 'frame_index') if n in there]
  wanted = dict.fromkeys([*order, *(n for n in columns if n in there)])
  table = pq.read_table(path, columns=list(wanted))
  keys = [table[name].to_numpy() for name in order]
  if keys:
    sorted_ = np.lexsort(keys[::-1])
    if (np.diff(sorted_) != 1).any():
      table = table.take(pa.array(sorted_))
  if 'episode_index' not in order:
    return table, None
  return table, table['episode_index'].to_numpy()


def column(table: pa.Table, name: str) -> np.ndarray:
  """Returns a column as `[T, n]` float32.

  Raises:
    EpisodeError: it is missing, holds other things than numbers, or numbers
      that float32 does not hold; null and NaN are named with their row.
  """
  if name not in table.column_names:
    raise writer.EpisodeError(
      f'{name}: no such column; there are {table.column_names}'
    )
  rows = table[name].to_pylist()
  for row, value in enumerate(rows):
    if value is None or (isinstance(value, list) and None in value):
      raise writer.EpisodeError(f'{name}: found null in row {row}')
  try:
    exact = np.asarray(rows)
    exact = exact.reshape(table.num_rows, -1)
  except ValueError as error:
    raise writer.EpisodeError(f'{name}: no table of numbers') from error
  if exact.dtype.kind not in 'iufb':
    raise writer.EpisodeError(f'{name}: no table of numbers')
  value = exact.astype(np.float32)
  if exact.dtype.kind in 'iu' and (value.astype(np.float64) != exact).any():
    raise writer.EpisodeError(
      f'{name}: found {exact.max()}, a whole number that float32 does not hold'
    )
  wrong = np.argwhere(~np.isfinite(value))
  if len(wrong):
    row = int(wrong[0][0])
    raise writer.EpisodeError(
      f'{name}: found {value[tuple(wrong[0])]} in row {row}, expected a finite '
      'number'
    )
  return value
