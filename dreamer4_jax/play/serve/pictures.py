"""Frames as files: a picture for the page, a film to keep."""

from __future__ import annotations

from collections.abc import Sequence
import io
import pathlib
import subprocess

import imageio_ffmpeg
import numpy as np
from PIL import Image

_TINY = 160 * 160
"""Pixels up to which a frame is sent without loss."""
_FILM_SIDE = 256
"""Least side of a film: a frame of 48 pixels is no fun to watch."""


def encode(frame: np.ndarray) -> bytes:
  """Returns a frame as PNG if it is tiny, else as JPEG.

  Args:
    frame: `[H, W, C]` uint8, C = 1 or 3.
  """
  image = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)
  out = io.BytesIO()
  if frame.shape[0] * frame.shape[1] <= _TINY:
    image.save(out, 'PNG', compress_level=1)
  else:
    image.save(out, 'JPEG', quality=88)
  return out.getvalue()


def media_type(picture: bytes) -> str:
  """Returns `image/png` or `image/jpeg`."""
  return 'image/png' if picture[:4] == b'\x89PNG' else 'image/jpeg'


def decode(picture: bytes) -> np.ndarray:
  """Returns `[H, W, 3]` uint8."""
  return np.asarray(Image.open(io.BytesIO(picture)).convert('RGB'))


def write_film(
  path: pathlib.Path, pictures: Sequence[bytes], rate: float
) -> None:
  """Writes encoded pictures as H.264, enlarged by a whole number.

  Args:
    path: MP4 to write.
    pictures: encoded, at least one, of the same size.
    rate: frames per second.

  Raises:
    OSError: ffmpeg failed; the message has its last line of output.
  """
  height, width = decode(pictures[0]).shape[:2]
  scale = max(1, -(-_FILM_SIDE // min(height, width)))
  if height % 2 or width % 2:
    scale += scale % 2  # H.264 needs even sides.
  size = (width * scale, height * scale)
  command = [
    imageio_ffmpeg.get_ffmpeg_exe(), '-y', '-v', 'error', '-threads', '1',
    '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-r', f'{rate:g}',
    '-s', f'{size[0]}x{size[1]}', '-i', '-', '-an', '-vcodec', 'libx264',
    '-preset', 'veryfast', '-crf', '12', '-pix_fmt', 'yuv420p',
    '-movflags', '+faststart', '-f', 'mp4', str(path),
  ]  # fmt: skip
  with subprocess.Popen(
    command, stdin=subprocess.PIPE, stderr=subprocess.PIPE
  ) as child:
    try:
      for picture in pictures:
        frame = decode(picture)
        child.stdin.write(frame.repeat(scale, 0).repeat(scale, 1).tobytes())
    except BrokenPipeError:
      pass  # What went wrong is on its error output.
    said = child.communicate()[1].decode(errors='replace').strip()
  if child.returncode:
    reason = (said.splitlines() or ['no reason'])[-1]
    raise OSError(f'{path}: ffmpeg failed ({reason})')
