"""Converts folders of video files without actions (mp4, mkv, webm, ...).

python -m data_pipelines.video --inputs DIR --out DIR --size 64 64

A file becomes an episode. Frames can be cropped to the shape wanted, padded to
it, or stretched; the frame rate can be changed by dropping or repeating frames
(FFmpeg's `fps` filter). Without any of these, a lossless RGB file comes back
bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from data_pipelines import convert, geometry, writer
from data_pipelines.command import need
from data_pipelines.decoding import Frames, Seen, blocks, decode
from data_pipelines.files import VIDEO_ENDINGS, find
from dreamer4_jax.config import require
from dreamer4_jax.data import format as fmt

EARLY = 'frames left out before the first that can be decoded by itself'
UNEVEN = 'files whose frames come at uneven times (--frame-rate evens them)'
OTHER_RATE = 'files with another rate than {:g} frames a second (--frame-rate)'


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoConfig(convert.Output):
  """Which files, and what to make of them."""

  inputs: tuple[str, ...]
  """Files, or directories, which are searched recursively."""
  extensions: tuple[str, ...] = ('mp4', 'mkv', 'webm', 'avi', 'mov')
  """Files with these endings are taken."""
  size: tuple[int, int] | None = None
  """Height and width of frames; none keeps those of the first file, and skips
  files of other sizes."""
  fit: geometry.Fit = 'crop'
  """How a file of another shape is brought to size: cropped to its middle,
  padded with black bars, or distorted."""
  frame_rate: float | None = None
  """Frames per second; none keeps every frame of a file."""
  steady: bool = False
  """Skip files in which frames are missing, or come at an uneven rate."""
  min_frames: int = 2
  """Shorter files are skipped."""
  eval_share: float = 0.1
  """Share of files in the split 'test'."""

  def __post_init__(self):
    super().__post_init__()
    geometry.check_fit(self.fit)
    require(
      self.size is None or min(self.size) >= 1,
      'size',
      self.size,
      'must be height and width in pixels, or none',
    )
    require(
      self.frame_rate is None or 0 < self.frame_rate <= 1000,
      'frame_rate',
      self.frame_rate,
      'must be positive and at most 1000, or none',
    )
    require(
      self.min_frames >= 1, 'min_frames', self.min_frames, 'must be at least 1'
    )
    require(
      0 <= self.eval_share < 1,
      'eval_share',
      self.eval_share,
      'must lie in [0, 1)',
    )


def convert_file(
  item: convert.Input,
  shard: writer.Shard,
  *,
  how: Frames,
  min_frames: int,
  rate: float = 0.0,
) -> dict[str, int]:
  """Writes one file as an episode without actions.

  Args:
    item: the file.
    shard: takes the episode.
    how: its frames come out.
    min_frames: fewer are an error.
    rate: frames per second that the dataset claims; 0 claims nothing.
  """
  count, seen = 0, Seen()
  for block in blocks(decode(item.what, how, seen=seen)):
    count += len(block)
    shard.append(
      {
        'observation': block,
        'action_known': np.zeros(len(block), bool),
        'reward': np.zeros(len(block), np.float32),
      }
    )
  if count < min_frames:
    raise convert.SkipError(f'fewer than {min_frames} frames')
  shard.end(terminal=False, attributes={'file': convert.printable(item.name)})
  notes = {EARLY: seen.left_out}
  if how.rate is None:
    notes[UNEVEN] = int(seen.uneven)
    other = rate and seen.rate and abs(seen.rate / rate - 1) > 0.01
    notes[OTHER_RATE.format(rate)] = int(bool(other))
  return {text: number for text, number in notes.items() if number}


def find_files(
  inputs: tuple[str, ...], extensions: tuple[str, ...], option: str = 'inputs'
) -> list[tuple[str, pathlib.Path]]:
  """Returns name and path of every file, in order of name.

  Args:
    inputs: files, or folders that are searched.
    extensions: endings of the files that are taken.
    option: that names the inputs, for errors.

  Raises:
    FileNotFoundError: an input does not exist, or there is no such file.
  """
  endings = tuple(f'.{e.lstrip(".").lower()}' for e in extensions)
  found: dict[str, pathlib.Path] = {}
  for text in inputs:
    root = pathlib.Path(text).expanduser()
    if root.is_file():
      found[str(root)] = root
      continue
    if not root.is_dir():
      raise FileNotFoundError(f'{option} = {text!r}: no such file or directory')
    for name, path in find(root, endings):
      found[name if len(inputs) == 1 else str(path)] = path
  if not found:
    raise FileNotFoundError(
      f'{option} = {inputs}: no file with an ending among {endings}'
    )
  return sorted(found.items())


def passed_over(
  inputs: tuple[str, ...], extensions: tuple[str, ...]
) -> dict[str, int]:
  """Returns notes on files that look like videos but have other endings."""
  others = set(VIDEO_ENDINGS) - {
    f'.{e.lstrip(".").lower()}' for e in extensions
  }
  roots = [pathlib.Path(text).expanduser() for text in inputs]
  notes: dict[str, int] = {}
  for root in filter(pathlib.Path.is_dir, roots):
    for _, path in find(root, tuple(others)):
      note = f'files not taken, with the ending {path.suffix} (--extensions)'
      notes[note] = notes.get(note, 0) + 1
  return notes


def convert_videos(
  config: VideoConfig, *, progress: bool = True
) -> dict[str, Any]:
  """Converts all files; returns the report of `convert.run`.

  Raises:
    FileNotFoundError: there is no file.
    FileExistsError: there is something at `config.out`.
    ValueError: no file could be read.
    ImportError: the extra is not installed.
  """
  need('video', 'av')
  files = find_files(config.inputs, config.extensions)
  how = Frames(
    size=config.size,
    fit=config.fit,
    rate=config.frame_rate,
    steady=config.steady,
  )
  size, rate = config.size, config.frame_rate
  if size is None or rate is None:
    first_size, first_rate = _probe(files, how)
    size, rate = size or first_size, rate or first_rate
  inputs = [
    convert.Input(
      name=name,
      split=convert.split_of(name, config.eval_share),
      what=str(path),
      files=(str(path),),
    )
    for name, path in files
  ]
  return convert.run(
    config,
    fmt.Description(
      actions=(),
      tasks=(),
      frame_shape=(*size, 3),
      chunk_length=config.chunk_length,
      frame_rate=rate,
      source={'converter': 'video', **dataclasses.asdict(how)},
    ),
    inputs,
    functools.partial(
      convert_file, how=how, min_frames=config.min_frames, rate=rate
    ),
    settings=[how, config.min_frames],
    notes=passed_over(config.inputs, config.extensions),
    progress=progress,
  )


def _probe(
  files: list[tuple[str, pathlib.Path]], how: Frames
) -> tuple[tuple[int, int], float]:
  """Returns size and rate of the first file that can be read."""
  for _, path in files:
    seen = Seen()
    try:
      frame = next(decode(path, how, seen=seen), None)
      if frame is not None:
        return frame.shape[:2], seen.rate
    except convert.SkipError:
      continue
  raise ValueError(f'none of {len(files)} files can be read as video')


if __name__ == '__main__':
  convert.main_of(VideoConfig, convert_videos)
