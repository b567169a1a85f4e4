"""Frames of LeRobot episodes, matched to their rows by time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from data_pipelines import convert, decoding, geometry, writer
from data_pipelines.files import stamp
from data_pipelines.lerobot_files import Place, read_table

LEFT_OUT = 'frames of the video between two rows left out'
_TIME = 'timestamp'


@dataclasses.dataclass
class Match:
  """How rows and frames were matched; filled in on the way.

  Attributes:
    rows: that have a frame.
    frames: from the first one that was taken to the last.
    last: time of the last frame of the video, in seconds.
  """

  rows: int = 0
  frames: int = 0
  last: float = float('nan')


def times_of(table: Any, fps: float) -> np.ndarray:
  """Returns the times of rows `[T]` in seconds since the episode's start.

  Args:
    table: of the rows; its column `timestamp` counts. Without one, rows come at
      the dataset's rate.
    fps: frames per second of the dataset.

  Raises:
    EpisodeError: there is null or NaN, or times do not grow.
  """
  rows = np.arange(table.num_rows)
  if _TIME not in table.column_names:
    if 'frame_index' in table.column_names:
      rows = table['frame_index'].to_numpy()
    times = rows / fps
  else:
    times = table[_TIME].to_numpy().astype(np.float64).reshape(-1)
  if not np.isfinite(times).all():
    row = int(np.flatnonzero(~np.isfinite(times))[0])
    raise writer.EpisodeError(f'{_TIME}: found no number in row {row}')
  late = np.flatnonzero(np.diff(times) <= 0)
  if len(late):
    row = int(late[0])
    raise writer.EpisodeError(
      f'{_TIME}: found {times[row + 1]:.4f} s in row {row + 1} after '
      f'{times[row]:.4f} s, expected later times'
    )
  return times


def nearest(
  frames: Iterator[Any],
  times: Sequence[float],
  tolerance: float,
  match: Match,
) -> Iterator[Any]:
  """Yields for each time the frame that is nearest to it.

  It ends early where the frames do; `match` then says how far it came.

  Args:
    frames: with a `time` in seconds each, in order.
    times: in seconds, in order.
    tolerance: seconds between the two at most.
    match: is filled in.

  Raises:
    SkipError: no frame is near enough.
  """
  held, following = next(frames, None), next(frames, None)
  number, first, taken = 0, 0, -1
  for row, time in enumerate(times):
    while following is not None and (
      abs(following.time - time) <= abs(held.time - time)
    ):
      held, following, number = following, next(frames, None), number + 1
    if held is None:
      raise convert.SkipError('no frame in the video')
    match.last = held.time
    if following is None and time > held.time + tolerance:
      return
    if abs(held.time - time) > tolerance:
      raise convert.SkipError(
        f'row {row} is at {time:.4f} s of the video, the nearest frame at '
        f'{held.time:.4f} s; they may be {tolerance:.4f} s apart (--tolerance)'
      )
    if number == taken:
      raise convert.SkipError(
        f'rows {row - 1} and {row}, at {times[row - 1]:.4f} s and {time:.4f} '
        f's, have one frame between them, at {held.time:.4f} s'
      )
    first = number if taken < 0 else first
    taken = number
    match.rows, match.frames = row + 1, number - first + 1
    yield held


def frames_of(
  place: Place,
  table: Any,
  image: str,
  how: decoding.Frames,
  *,
  fps: float,
  tolerance: float,
) -> tuple[list[np.ndarray], dict[str, int]]:
  """Returns the frames of an episode's first rows, and what was noted.

  Args:
    place: of the episode.
    table: its rows.
    image: column of the images, or name of the video.
    how: their size.
    fps: frames per second of the dataset.
    tolerance: between a row and its frame, as a share of a frame.

  Raises:
    SkipError: rows and frames do not match; the message has both times.
    EpisodeError: an image is damaged, or the times are.
  """
  if not place.video:
    if image not in table.column_names:
      raise writer.EpisodeError(f'{image}: no such column')
    cells = table[image].to_pylist()
    return [picture(c, image, place, how) for c in cells], {}
  if not pathlib.Path(place.video).is_file():
    raise convert.SkipError('no video beside the actions')
  if place.clash:
    raise convert.SkipError(place.clash)
  _check_count(place, fps)
  match, seen = Match(), decoding.Seen()
  times = place.start + times_of(table, fps)
  pick = lambda frames: nearest(frames, times, tolerance / fps, match)
  begin = max(0.0, place.start - 1 / fps)
  decoded = decoding.decode(place.video, how, seen=seen, start=begin, pick=pick)
  frames = list(decoded)
  missing = len(times) - match.rows
  if not match.rows or (missing and match.rows != match.frames):
    raise convert.SkipError(
      f'the video ends at {match.last:.4f} s, but row {match.rows} is at '
      f'{times[match.rows]:.4f} s; the video has {seen.rate:g} frames a second '
      f'and info.json says {fps:g}'
    )
  return frames, {LEFT_OUT: match.frames - match.rows}


def size_of(place: Place, image: str) -> tuple[int, int]:
  """Returns height and width of an episode's first image, as it is shown.

  Raises:
    SkipError: there is none, or it is damaged.
    EpisodeError: likewise.
  """
  if place.video:
    frame = next(decoding.decode(place.video, decoding.Frames()), None)
  else:
    cells = read_table(place, (image,))
    if image not in cells.column_names:
      raise writer.EpisodeError(f'{image}: no such column')
    frame = picture(cells[image][0].as_py(), image, place, decoding.Frames())
  if frame is None:
    raise convert.SkipError('no frame')
  return frame.shape[:2]


def _check_count(place: Place, fps: float) -> None:
  """Compares where an episode begins by time and by the frames before it.

  Raises:
    SkipError: the video holds all episodes and nothing else, and this one does
      not begin behind those before it.
  """
  if not place.whole:
    return
  frames, rate = _count_and_rate(place.video, stamp(place.video))
  counted = place.before / (rate or fps)
  if frames == place.whole and abs(place.start - counted) > 0.5 / fps:
    raise convert.SkipError(
      f'begins at {place.start:.4f} s of the video by its from_timestamp, but '
      f'at {counted:.4f} s by the {place.before} frames of the episodes before '
      'it'
    )


@functools.lru_cache(maxsize=1)
def _count_and_rate(path: str, changed: tuple[int, int]) -> tuple[int, float]:
  """Returns the frames that a video declares, and its rate; 0 if unknown."""
  del changed  # A changed file is read again.
  return decoding.count_and_rate(path)


def picture(
  cell: Any, name: str, place: Place, how: decoding.Frames
) -> np.ndarray:
  """Decodes an image of a table, brought to size.

  Raises:
    EpisodeError: it is damaged, or no colour image of 8 bits per channel.
  """
  data = cell
  if isinstance(cell, Mapping):
    data = cell.get('bytes')
    if data is None and cell.get('path'):
      file = pathlib.Path(place.root, str(cell['path']))
      if not file.is_file():
        raise writer.EpisodeError(f'{name}: no file {cell["path"]}')
      data = file.read_bytes()
  if not isinstance(data, bytes):
    raise writer.EpisodeError(
      f'{name}: found {type(data).__name__}, expected the bytes of an image '
      'file'
    )
  return geometry.fitted(geometry.decoded(name, data), how.size, how.fit)
