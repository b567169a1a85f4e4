"""Converts Minecraft contractor recordings (VPT) with all their quirks.

python -m data_pipelines.vpt --index INDEX.json --root DIR --out DIR

An index names recordings: `NAME.mp4` with actions in `NAME.jsonl`, one line per
frame. `data_pipelines/vpt_actions.py` says what the lines mean. The pointer,
which the video lacks, is drawn in while a GUI is open. Frames without any
action stay: a world model needs them. All recordings of a session go to the
same split.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import json
import pathlib
import re
from typing import Any

import numpy as np

from data_pipelines import convert, decoding, video, vpt_actions, writer
from data_pipelines.command import need
from dreamer4_jax.config import require
from dreamer4_jax.data import format as fmt

FRAME_RATE = 20.0
SCREEN_HEIGHT = 720.0
"""Height of the screen on which pointer positions are given."""
RATE_TOLERANCE = 0.02
"""How far a video's rate may be from that of its lines, as a share."""
MAX_BROKEN = 0.1
"""Share of lines that may be unreadable."""
_NAME = re.compile(r'(?P<player>.+)-(?P<session>[^-]+)-\d{8}-\d{6}')
_SUBSET = re.compile(r'\d+\.\d+')


@dataclasses.dataclass(frozen=True, kw_only=True)
class VptConfig(convert.Output):
  """Which recordings, and what to make of them."""

  index: tuple[str, ...] = ()
  """Index files; without any, every mp4 under root is taken."""
  root: str = ''
  """Directory that the index's paths start from, in place of its `basedir`."""
  size: tuple[int, int] = (360, 640)
  """Height and width of frames."""
  subset: str = ''
  """Recorder version, such as 6.9; empty reads it off the directory's name."""
  eval_share: float = 0.1
  """Share of sessions in the split 'test'."""

  def __post_init__(self):
    super().__post_init__()
    require(
      bool(self.index or self.root),
      'root',
      self.root,
      'name an index file or a directory',
    )
    require(min(self.size) >= 1, 'size', self.size, 'must be height and width')
    require(
      0 <= self.eval_share < 1,
      'eval_share',
      self.eval_share,
      'must lie in [0, 1)',
    )


@functools.cache
def pointer() -> tuple[np.ndarray, np.ndarray]:
  """Draws an arrow, white with a black edge.

  Returns:
    Colours `[16, 16, 1]` float32 in 0 to 255, and opacity `[16, 16, 1]`.
  """
  rows, cols = np.indices((16, 16), np.float32)
  head = (cols <= rows * 0.8) & (rows <= 11)
  tail = (np.abs(cols - 0.5 * (rows - 2)) <= 1.6) & (rows <= 15) & (rows > 6)
  shape = head & ~((cols > 4) & (rows > 9)) | tail & (rows > 9)
  inner = shape.copy()
  for axis in (0, 1):
    for shift in (1, -1):
      moved = np.roll(shape, shift, axis)
      inner &= moved
  inner[0] = inner[-1] = False
  inner[:, 0] = inner[:, -1] = False
  colour = np.where(inner, 255.0, 0.0).astype(np.float32)
  return colour[..., None], shape.astype(np.float32)[..., None]


def draw_pointer(frame: np.ndarray, x: float, y: float) -> None:
  """Blends the pointer into a frame, with its tip at (x, y), cut at the edges.

  Args:
    frame: `[H, W, 3]` uint8, changed in place.
    x: position on a screen 720 pixels high.
    y: likewise.
  """
  height, width = frame.shape[:2]
  left, top = (int(v * height / SCREEN_HEIGHT) for v in (x, y))
  colour, alpha = pointer()
  rows = slice(max(top, 0), min(top + 16, height))
  cols = slice(max(left, 0), min(left + 16, width))
  if rows.start >= rows.stop or cols.start >= cols.stop:
    return
  part = (
    slice(rows.start - top, rows.stop - top),
    slice(cols.start - left, cols.stop - left),
  )
  under = frame[rows, cols]
  blend = under * (1 - alpha[part]) + colour[part] * alpha[part]
  frame[rows, cols] = blend.astype(np.uint8)


def list_recordings(config: VptConfig) -> list[convert.Input]:
  """Returns every recording that an index names, or that lies under the root.

  Raises:
    FileNotFoundError: an index or the root does not exist.
    ValueError: an index is malformed.
  """
  found: dict[str, pathlib.Path] = {}
  for text in config.index:
    base, names = _read_index(pathlib.Path(text))
    root = pathlib.Path(config.root or base).expanduser()
    found |= {name: root / name for name in names}
  if not config.index:
    found = dict(video.find_files((config.root,), ('mp4',), 'root'))
  inputs = []
  for name, path in found.items():
    match = _NAME.fullmatch(path.stem)
    session = match.group('session') if match else path.stem
    player = match.group('player') if match else ''
    subset = config.subset or next(
      (p for p in reversed(path.parent.parts) if _SUBSET.fullmatch(p)), ''
    )
    split = convert.split_of(f'{player}-{session}', config.eval_share)
    what = {
      'path': str(path),
      'subset': subset,
      'player': player,
      'session': session,
    }
    files = (str(path), str(path.with_suffix('.jsonl')))
    inputs.append(convert.Input(name=name, split=split, what=what, files=files))
  return inputs


def _read_index(path: pathlib.Path) -> tuple[str, list[str]]:
  """Returns the directory and the relative paths that an index holds."""
  if not path.is_file():
    raise FileNotFoundError(f'index = {str(path)!r}: no such file')
  try:
    data = json.loads(path.read_bytes())
    base, names = data['basedir'], data['relpaths']
    good = isinstance(base, str) and all(isinstance(n, str) for n in names)
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'index = {str(path)!r}: must be JSON with basedir and relpaths '
      f'({type(error).__name__}: {error})'
    ) from error
  if not good:
    raise ValueError(
      f'index = {str(path)!r}: basedir must be text, relpaths a list of texts'
    )
  return base, names


def convert_recording(
  item: convert.Input, shard: writer.Shard, *, size: tuple[int, int]
) -> dict[str, int]:
  """Writes one recording as an episode.

  Where the numbers of lines and of frames differ, the smaller one counts.
  """
  path = pathlib.Path(item.what['path'])
  recording = _read_actions(path, item.what['subset'])
  lines = len(recording.known)
  seen = decoding.Seen()
  decoded = decoding.decode(path, decoding.Frames(steady=True), seen=seen)
  frames = 0
  pictures = _with_pointer(decoded, recording.cursor, size)
  for block, last in _mark_last(decoding.blocks(pictures)):
    part = slice(frames, frames + len(block))
    frames += len(block)
    events = recording.events[part].copy()
    if last:
      events[-1] = False  # No frame shows what it earned.
    shard.append(
      {
        'observation': block,
        'action': {
          'buttons': recording.buttons[part],
          'camera': recording.camera[part],
        },
        'action_known': recording.known[part],
        'reward': events.any(axis=1).astype(np.float32),
        'events': events,
      }
    )
  _check_times(seen)
  if frames < 2:
    raise convert.SkipError('fewer than 2 frames with actions')
  shard.end(
    terminal=False,
    attributes={
      'file': convert.printable(item.name),
      **{name: item.what[name] for name in ('player', 'session', 'subset')},
    },
  )
  return {
    'lines that could not be read': recording.broken,
    'lines without a frame': lines - frames,
    'frames without a line': sum(1 for _ in decoded),
  }


def _check_times(seen: decoding.Seen) -> None:
  """Raises `SkipError` if lines, one per frame, cannot be matched to frames."""
  if seen.rate and abs(seen.rate / FRAME_RATE - 1) > RATE_TOLERANCE:
    raise convert.SkipError(
      f'the video has {seen.rate:g} frames a second, its lines {FRAME_RATE:g}; '
      'they cannot be matched'
    )
  if seen.left_out:
    raise convert.SkipError(
      f'the first {seen.left_out} frames of the video cannot be decoded, so it '
      'is not known which line belongs to the next'
    )


def _read_actions(path: pathlib.Path, subset: str) -> vpt_actions.Recording:
  """Reads the file beside a video; raises `SkipError`."""
  if not path.is_file():
    raise convert.SkipError('listed, but there is no such video')
  actions = path.with_suffix('.jsonl')
  if not actions.is_file():
    raise convert.SkipError('no actions beside the video')
  lines = actions.read_bytes().rstrip().split(b'\n')
  recording = vpt_actions.read_lines(lines, subset=subset)
  if recording.broken > MAX_BROKEN * len(lines):
    raise convert.SkipError(
      f'more than {MAX_BROKEN:.0%} of the lines cannot be read'
    )
  return recording


def _with_pointer(
  frames: Iterator[np.ndarray], cursor: np.ndarray, size: tuple[int, int]
) -> Iterator[np.ndarray]:
  """Yields one picture for each row of `cursor`, brought to size."""
  # In this order, zip consumes no frame that has no row.
  for (x, y), frame in zip(cursor, frames, strict=False):
    if not np.isnan(x):
      draw_pointer(frame, float(x), float(y))
    if frame.shape[:2] != size:
      picture = decoding.av.VideoFrame.from_ndarray(frame, format='rgb24')
      picture = picture.reformat(
        width=size[1], height=size[0], interpolation='AREA'
      )
      frame = picture.to_ndarray(format='rgb24')
    yield frame


def _mark_last(blocks: Iterator[np.ndarray]) -> Iterator[tuple[Any, bool]]:
  """Yields each block, and whether it is the last one."""
  held = next(blocks, None)
  while held is not None:
    following = next(blocks, None)
    yield held, following is None
    held = following


def convert_vpt(config: VptConfig, *, progress: bool = True) -> dict[str, Any]:
  """Converts all recordings; returns the report of `convert.run`.

  Raises:
    FileNotFoundError: an index or the root does not exist.
    FileExistsError: there is something at `config.out`.
    ValueError: an index is damaged, or no recording could be read.
    ImportError: the extra is not installed.
  """
  need('video', 'av')
  return convert.run(
    config,
    fmt.Description(
      actions=vpt_actions.ACTIONS,
      tasks=vpt_actions.TASKS,
      frame_shape=(*config.size, 3),
      chunk_length=config.chunk_length,
      frame_rate=FRAME_RATE,
      labels={
        'buttons': list(vpt_actions.BUTTONS),
        'camera': [
          f'yaw {yaw:+.1f} pitch {pitch:+.1f}'
          for yaw, pitch in vpt_actions.camera_degrees(
            np.arange(vpt_actions.CAMERA_BINS**2)
          )
        ],
      },
      source={'converter': 'vpt'},
    ),
    list_recordings(config),
    functools.partial(convert_recording, size=config.size),
    settings=config.size,
    progress=progress,
  )


if __name__ == '__main__':
  convert.main_of(VptConfig, convert_vpt)
