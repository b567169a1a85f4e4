"""Converts folders of video files without actions (mp4, mkv, webm, ...).

python -m data_pipelines.video --inputs DIR --out DIR --size 64 64

A file becomes an episode. Frames can be cropped to the shape wanted, padded to
it, or stretched; the frame rate can be changed by dropping or repeating frames
(FFmpeg's `fps` filter). Without any of these, a lossless RGB file comes back
bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import fractions
import functools
import itertools
import os
import pathlib
from typing import Any, Literal

import numpy as np

from data_pipelines import convert, writer
from data_pipelines.command import Deferred, need
from dreamer4_jax.config import require
from dreamer4_jax.data import format as fmt

av: Any = Deferred('av', 'video')
BLOCK = 64
"""Frames that are held in memory at once."""


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
  fit: Literal['crop', 'pad', 'stretch'] = 'crop'
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


@dataclasses.dataclass(frozen=True)
class Frames:
  """How frames come out of a file.

  Attributes:
    size: height and width, or None for those of the file.
    fit: see `VideoConfig`.
    rate: frames per second, or None for every frame.
    steady: a gap between frames is damage; for recordings whose lines of
      actions would no longer match their frames.
  """

  size: tuple[int, int] | None = None
  fit: str = 'crop'
  rate: float | None = None
  steady: bool = False


def decode(
  path: str | os.PathLike[str], how: Frames, *, start: float = 0.0
) -> Iterator[np.ndarray]:
  """Yields the frames of a file, `[H, W, 3]` uint8.

  Args:
    path: of the file.
    how: size and rate.
    start: seconds into the file at which to begin.

  Raises:
    SkipError: it cannot be opened, has no video, or is damaged.
  """
  try:
    # A name need not be UTF-8, so FFmpeg gets the open file.
    with open(path, 'rb') as raw, av.open(raw) as file:
      if not file.streams.video:
        raise convert.SkipError('no video stream')
      stream = file.streams.video[0]
      stream.thread_type = 'AUTO'
      # Damage is an error; FFmpeg must not conceal it.
      stream.codec_context.options = {'err_detect': 'crccheck+explode'}
      graph = None
      for frame in _from(file, stream, start, how.steady):
        graph = graph or _graph(stream, frame, how)
        graph.push(frame)
        yield from _ready(graph)
      if graph is not None:
        graph.push(None)
        yield from _ready(graph)
  except (OSError, av.error.FFmpegError) as error:
    raise convert.SkipError(
      f'damaged or no video ({error.strerror})'
    ) from error


def _from(file: Any, stream: Any, start: float, steady: bool) -> Iterator[Any]:
  """Decodes from the frame shown at `start` seconds on."""
  steady_count = steady and not start
  if start:
    file.seek(int(start / stream.time_base), stream=stream)
  half = 0.5 / float(stream.average_rate or 1000)
  before, count = None, 0
  for frame in file.decode(stream):
    count += 1
    if frame.is_corrupt:
      raise convert.SkipError('damaged frame')
    if not start or frame.time is None or frame.time > start - half:
      known = None not in (before, frame.time)
      if steady and known and frame.time - before > 3.5 * half:
        raise convert.SkipError('frames are missing in the video')
      before = frame.time
      yield frame
  # AVI and MP4 declare their number of frames.
  if steady_count and count < stream.frames:
    raise convert.SkipError('frames are missing in the video')


def _ready(graph: av.filter.Graph) -> Iterator[np.ndarray]:
  while True:
    try:
      yield graph.pull().to_ndarray(format='rgb24')
    except (av.error.BlockingIOError, av.error.EOFError):
      return


def _graph(stream: Any, frame: Any, how: Frames) -> av.filter.Graph:
  """Builds the chain of FFmpeg filters."""
  graph = av.filter.Graph()
  chain = [graph.add_buffer(template=stream)]
  if how.rate is not None:
    rate = fractions.Fraction(how.rate).limit_denominator(1001)
    chain.append(graph.add('fps', f'fps={rate}'))
  if how.size is not None and how.size != (frame.height, frame.width):
    height, width = how.size
    grow = {'crop': 'increase', 'pad': 'decrease', 'stretch': 'disable'}
    chain.append(
      graph.add(
        'scale',
        f'w={width}:h={height}:flags=area:'
        f'force_original_aspect_ratio={grow[how.fit]}',
      )
    )
    if how.fit == 'crop':
      chain.append(graph.add('crop', f'w={width}:h={height}'))
    if how.fit == 'pad':
      centred = 'x=(ow-iw)/2:y=(oh-ih)/2'
      chain.append(graph.add('pad', f'w={width}:h={height}:{centred}'))
  chain.append(graph.add('format', 'pix_fmts=rgb24'))
  chain.append(graph.add('buffersink'))
  for a, b in itertools.pairwise(chain):
    a.link_to(b)
  graph.configure()
  return graph


def blocks(frames: Iterator[np.ndarray], size: int = BLOCK):
  """Stacks frames, `size` at a time."""
  held: list[np.ndarray] = []
  for frame in frames:
    held.append(frame)
    if len(held) == size:
      yield np.stack(held)
      held = []
  if held:
    yield np.stack(held)


def convert_file(
  item: convert.Input, shard: writer.Shard, *, how: Frames, min_frames: int
) -> dict[str, int]:
  """Writes one file as an episode without actions."""
  count = 0
  for block in blocks(decode(item.what, how)):
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
  return {}


def find_files(
  inputs: tuple[str, ...], extensions: tuple[str, ...]
) -> list[tuple[str, pathlib.Path]]:
  """Returns name and path of every file, in order of name.

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
      raise FileNotFoundError(f'inputs = {text!r}: no such file or directory')
    for path in root.rglob('*'):
      if path.is_file() and path.name.lower().endswith(endings):
        name = str(path.relative_to(root))
        found[name if len(inputs) == 1 else str(path)] = path
  if not found:
    raise FileNotFoundError(
      f'inputs = {inputs}: no file with an ending among {endings}'
    )
  return sorted(found.items())


def frame_rate_of(path: str | os.PathLike[str]) -> float:
  """Returns the frames per second that a file declares; 0 if it does not."""
  with open(path, 'rb') as raw, av.open(raw) as file:
    rate = file.streams.video[0].average_rate if file.streams.video else None
  return float(rate or 0)


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
      name=name, split=convert.split_of(name, config.eval_share), what=str(path)
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
    functools.partial(convert_file, how=how, min_frames=config.min_frames),
    settings=[how, config.min_frames],
    progress=progress,
  )


def _probe(
  files: list[tuple[str, pathlib.Path]], how: Frames
) -> tuple[tuple[int, int], float]:
  """Returns size and rate of the first file that can be read."""
  for _, path in files:
    try:
      frame = next(decode(path, how), None)
      if frame is not None:
        return frame.shape[:2], frame_rate_of(path)
    except convert.SkipError:
      continue
  raise ValueError(f'none of {len(files)} files can be read as video')


if __name__ == '__main__':
  convert.main_of(VideoConfig, convert_videos)
