"""Decodes video: whole frames, as players show them, with their times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import fractions
import itertools
import os
from typing import Any

import numpy as np

from data_pipelines import convert, geometry, writer
from data_pipelines.command import Deferred

av: Any = Deferred('av', 'video')
BLOCK = 64
"""Frames that are held in memory at once."""
_COVER = 0x400
"""FFmpeg's flag of a stream that holds the picture on the file's cover."""
MOST_SECONDS = 60.0
"""A frame is not repeated for longer to keep a frame rate."""


@dataclasses.dataclass(frozen=True)
class Frames:
  """How frames come out of a file.

  Attributes:
    size: height and width, or None for those that players show.
    fit: see `geometry.plan`.
    rate: frames per second, or None for every frame.
    steady: a gap between frames is damage; for recordings whose lines of
      actions would no longer match their frames.
  """

  size: tuple[int, int] | None = None
  fit: str = 'crop'
  rate: float | None = None
  steady: bool = False


@dataclasses.dataclass
class Seen:
  """What was noticed while a file was decoded; filled in on the way.

  Attributes:
    rate: frames per second that the file declares; 0 if it does not.
    left_out: frames at the beginning that lack what they are decoded from.
    least: shortest time between two frames, in seconds.
    most: longest time between two frames, in seconds.
  """

  rate: float = 0.0
  left_out: int = 0
  least: float = float('inf')
  most: float = 0.0

  @property
  def uneven(self) -> bool:
    """Whether frames come at different distances, rounding aside."""
    return self.most > 1.5 * self.least + 0.002


Pick = Callable[[Iterator[Any]], Iterator[Any]]
"""Chooses among decoded frames, which have a `time` in seconds."""


def decode(
  path: str | os.PathLike[str],
  how: Frames,
  *,
  seen: Seen | None = None,
  start: float = 0.0,
  pick: Pick | None = None,
) -> Iterator[np.ndarray]:
  """Yields the frames of a file as players show them, `[H, W, 3]` uint8.

  Args:
    path: of the file.
    how: size and rate.
    seen: takes what is noticed on the way.
    start: seconds into the file; decoding begins at or before it.
    pick: chooses frames, which may repeat; none takes all of them.

  Raises:
    SkipError: it cannot be opened, has no video, or is damaged.
  """
  seen = Seen() if seen is None else seen
  try:
    # A name need not be UTF-8, so FFmpeg gets the open file.
    with open(path, 'rb') as raw, av.open(raw) as file:
      stream = _stream_of(file)
      if stream is None:
        raise convert.SkipError('no video stream')
      if stream.codec_context is None:
        raise convert.SkipError('FFmpeg has no decoder for this video')
      seen.rate = float(stream.average_rate or 0)
      stream.thread_type = 'AUTO'
      # Damage is an error; FFmpeg must not conceal it.
      stream.codec_context.options = {'err_detect': 'crccheck+explode'}
      frames = _timed(_whole(file, stream, start, how, seen), how, seen)
      if pick is not None:
        frames = pick(_from_zero(frames, stream))
      yield from _pictures(frames, stream, how)
  except (OSError, av.error.FFmpegError) as error:
    raise convert.SkipError(
      f'damaged or no video ({error.strerror})'
    ) from error


def _stream_of(file: Any) -> Any:
  """Returns the first video that is not a cover; None if there is none."""
  films = (s for s in file.streams.video if not int(s.disposition) & _COVER)
  return next(films, None)


def _whole(
  file: Any, stream: Any, start: float, how: Frames, seen: Seen
) -> Iterator[Any]:
  """Decodes the frames that do not need what lies before the file's start.

  A recording may start between two frames that can be decoded by themselves,
  and what is decoded without them is an error, or looks like a picture.
  """
  if start:
    origin = stream.start_time or 0
    file.seek(origin + int(start / stream.time_base), stream=stream)
  packets, due = 0, 0
  lacking = _Lacking(stream.codec_context.codec.intra_only)
  for packet in file.demux(stream):
    packets += packet.size > 0
    if lacking(packet):
      seen.left_out += 1
      continue
    due += packet.size > 0 and not packet.is_discard
    for frame in packet.decode():
      if frame.is_corrupt:
        raise convert.SkipError('damaged frame')
      due -= 1
      yield frame
  if packets and not lacking.found:
    raise convert.SkipError('no frame that can be decoded by itself')
  # AVI and MP4 declare their number of frames, also of those that a cut hides.
  known = how.steady and not start and stream.frames
  if known and (packets < stream.frames or due > 0):
    raise convert.SkipError('frames are missing in the video')


class _Lacking:
  """Tells which packets need what lies before the first keyframe."""

  def __init__(self, by_itself: bool):
    """Takes whether every frame can be decoded by itself."""
    self._by_itself = by_itself
    self._begin: int | None = None
    self.found = self._past = by_itself

  def __call__(self, packet: Any) -> bool:
    """Takes packets in the order of the file; an empty one ends it."""
    if self._past or not packet.size:
      return False
    if not self.found:
      self.found, self._begin = packet.is_keyframe, packet.pts
      return not self.found
    # Frames that are shown before the keyframe may directly follow it.
    early = None not in (packet.pts, self._begin) and packet.pts < self._begin
    self._past = not early
    return early


def _timed(frames: Iterator[Any], how: Frames, seen: Seen) -> Iterator[Any]:
  """Checks the time between frames."""
  before, longest = None, 1.75 / (seen.rate or 1000)
  for frame in frames:
    now = frame.time
    if before is not None and now is not None:
      gap = now - before
      if gap < seen.least:
        seen.least = gap
      if gap > seen.most:
        seen.most = gap
      if how.steady and gap > longest:
        raise convert.SkipError('frames are missing in the video')
      if how.rate is not None and not 0 <= gap <= MOST_SECONDS:
        raise convert.SkipError(
          f'the time jumps from {before:.3f} s to {now:.3f} s between two '
          f'frames, more than {MOST_SECONDS:g} s or backwards'
        )
    before = now
    yield frame


@dataclasses.dataclass(frozen=True)
class Timed:
  """A decoded frame, and its time in seconds since the file's start."""

  frame: Any
  time: float


def _from_zero(frames: Iterator[Any], stream: Any) -> Iterator[Timed]:
  """Yields frames with the time since the first one that the file holds."""
  zero = float((stream.start_time or 0) * stream.time_base)
  for frame in frames:
    if frame.time is None:
      raise convert.SkipError('a frame without a time')
    yield Timed(frame, frame.time - zero)


def _pictures(
  frames: Iterator[Any], stream: Any, how: Frames
) -> Iterator[np.ndarray]:
  """Turns decoded frames into pictures."""
  graph, kind = None, None
  for frame in frames:
    frame = frame.frame if isinstance(frame, Timed) else frame
    own = (frame.width, frame.height, frame.format.name)
    if graph is None or own != kind:
      if graph is not None:
        yield from _rest(graph)
      graph, kind = _graph(stream, frame, how), own
    graph.push(frame)
    yield from _ready(graph)
  if graph is not None:
    yield from _rest(graph)


def _rest(graph: Any) -> Iterator[np.ndarray]:
  graph.push(None)
  yield from _ready(graph)


def _ready(graph: Any) -> Iterator[np.ndarray]:
  while True:
    try:
      yield graph.pull().to_ndarray(format='rgb24')
    except (av.error.BlockingIOError, av.error.EOFError):
      return


def _graph(stream: Any, frame: Any, how: Frames) -> Any:
  """Builds the chain of FFmpeg filters."""
  graph = av.filter.Graph()
  chain = [
    graph.add_buffer(
      width=frame.width,
      height=frame.height,
      format=frame.format.name,
      time_base=frame.time_base or stream.time_base,
    )
  ]
  for text in _filters(stream, frame, how):
    name, _, settings = text.partition('=')
    chain.append(graph.add(name, settings or None))
  chain.append(graph.add('buffersink'))
  for a, b in itertools.pairwise(chain):
    a.link_to(b)
  graph.configure()
  return graph


def _filters(stream: Any, frame: Any, how: Frames) -> Iterator[str]:
  """Yields filters that show a frame as players do, and bring it to size.

  Raises:
    SkipError: it cannot be shown, or is no picture.
  """
  channels = frame.format.components
  if len(channels) == 1 and channels[0].bits > 8:
    raise convert.SkipError(
      f'holds {frame.format.name}, one channel of {channels[0].bits} bits such '
      'as depth; only colour, or grey of 8 bits, is read'
    )
  if how.rate is not None:
    rate = fractions.Fraction(how.rate).limit_denominator(1001)
    yield f'fps={rate}'
  height, width = frame.height, frame.width
  beside = getattr(stream.codec_context, 'coded_side_data', {})
  cut = beside.get('frame_cropping')
  if cut:
    top, bottom, left, right = geometry.edges(cut)
    height, width = height - top - bottom, width - left - right
    if min(height, width) < 1:
      raise convert.SkipError('the container cuts off the whole picture')
    # Without `exact`, edges would be moved to whole samples of colour.
    yield f'crop=w={width}:h={height}:x={left}:y={top}:exact=1'
  aspect = float(stream.sample_aspect_ratio or 1)
  matrix = frame.side_data.get('DISPLAYMATRIX')
  try:
    shown = (height, max(1, round(width * aspect)))
    for turn in geometry.turns(bytes(matrix)) if matrix else ():
      if turn.startswith('transpose'):
        height, width, shown = width, height, shown[::-1]
      yield turn
    way = geometry.plan(shown, how.size or shown, how.fit)
  except writer.EpisodeError as error:
    raise convert.SkipError(str(error)) from error
  (height, width), raster = way.scaled, (height, width)
  if way.scaled != raster:
    yield f'scale=w={width}:h={height}:flags=area'
  (high, wide), x, y = way.size, way.left, way.top
  if height > high or width > wide:
    yield f'crop=w={wide}:h={high}:x={x}:y={y}:exact=1'
  if height < high or width < wide:
    yield f'pad=w={wide}:h={high}:x={-x}:y={-y}'
  yield 'format=pix_fmts=rgb24'


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


def count_and_rate(path: str | os.PathLike[str]) -> tuple[int, float]:
  """Returns the frames that a file declares, and frames per second.

  Each is 0 if the file does not say.

  Raises:
    SkipError: it cannot be opened.
  """
  try:
    with open(path, 'rb') as raw, av.open(raw) as file:
      stream = _stream_of(file)
      if stream is None:
        return 0, 0.0
      return stream.frames, float(stream.average_rate or 0)
  except (OSError, av.error.FFmpegError) as error:
    raise convert.SkipError(
      f'damaged or no video ({error.strerror})'
    ) from error
