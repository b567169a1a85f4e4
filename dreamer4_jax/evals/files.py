"""What an evaluation writes: JSON, pictures, videos."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import json
import logging
import os
import pathlib
import subprocess
from typing import Any

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np

_LOG = logging.getLogger(__name__)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON whole or not at all."""
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(value, indent=2) + '\n')
  os.replace(temporary, path)


def write_video(path: pathlib.Path, frames: np.ndarray, fps: int = 6) -> None:
  """Writes `[T, H, W, C]` uint8 frames, C = 1 or 3, as H.264.

  Raises:
    OSError: ffmpeg failed; the message has its last line of output.
  """
  # H.264 needs even sizes.
  odd = [(0, 0), *((0, n % 2) for n in frames.shape[1:3]), (0, 0)]
  frames = np.pad(_in_colour(frames), odd, mode='edge')
  # imageio's writer forks, which JAX warns about; this only starts a program.
  command = [
    imageio_ffmpeg.get_ffmpeg_exe(), '-y', '-v', 'error',
    '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-r', str(fps),
    '-s', f'{frames.shape[2]}x{frames.shape[1]}', '-i', '-', '-an',
    '-vcodec', 'libx264', '-crf', '10', '-pix_fmt', 'yuv420p', str(path),
  ]  # fmt: skip
  done = subprocess.run(command, input=frames.tobytes(), capture_output=True)
  if done.returncode:
    said = done.stderr.decode(errors='replace').strip().splitlines()
    raise OSError(f'{path}: ffmpeg failed ({(said or ["no reason"])[-1]})')


def _in_colour(frames: np.ndarray) -> np.ndarray:
  return frames if frames.shape[-1] == 3 else frames[..., :1].repeat(3, -1)


def write_image(path: pathlib.Path, image: np.ndarray) -> None:
  """Writes `[H, W, C]` uint8, C = 1 or 3, as PNG."""
  imageio.imwrite(path, _in_colour(image))


@contextlib.contextmanager
def optional(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Warns and goes on if a picture or video cannot be written."""
  try:
    yield path
  except Exception as error:
    reason = f'{type(error).__name__}: {error}'.splitlines()[0]
    _LOG.warning('%s is left out (%s)', path, reason)
