"""How pictures are to be shown, and how they are brought to a size.

What is stored is a raster. Its container may say that players cut its edges,
stretch its pixels, turn it or mirror it; a dataset holds what players show. One
plan of scaling, cropping and padding serves video and single pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import io
import struct
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from data_pipelines.episodes import EpisodeError
from dreamer4_jax.config import require

Fit = Literal['crop', 'pad', 'stretch']
FITS = ('crop', 'pad', 'stretch')
MOST_PIXELS = 1 << 28
"""Pixels of a picture, also on its way to its size; more is no picture."""
_TURNS = {
  (1, 0, 0, 1): (),
  (-1, 0, 0, 1): ('hflip',),
  (1, 0, 0, -1): ('vflip',),
  (-1, 0, 0, -1): ('hflip', 'vflip'),
  (0, 1, -1, 0): ('transpose=clock',),
  (0, -1, 1, 0): ('transpose=cclock',),
  (0, 1, 1, 0): ('transpose=cclock_flip',),
  (0, -1, -1, 0): ('transpose=clock_flip',),
}
"""FFmpeg's filters by the directions in which a picture's axes are shown."""
_PNG = b'\x89PNG\r\n\x1a\n'
_PLAIN_MODES = ('1', 'L', 'P', 'RGB', 'CMYK', 'YCbCr')
"""Pillow's modes of at most 8 bits per channel, without transparency."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a picture is brought to a size.

  Attributes:
    scaled: height and width after scaling.
    size: height and width in the end.
    top: rows cut off above, if positive, or padded there, if negative.
    left: columns, likewise.
  """

  scaled: tuple[int, int]
  size: tuple[int, int]
  top: int
  left: int


def check_fit(fit: str) -> None:
  """Raises `ValueError` if there is no such way to bring pictures to size."""
  require(fit in FITS, 'fit', fit, f'must be one of {FITS}')


def plan(shown: tuple[float, float], size: tuple[int, int], fit: str) -> Plan:
  """Plans how a picture is brought to a size.

  Args:
    shown: height and width as players show it.
    size: height and width that are wanted.
    fit: 'crop' to the middle, 'pad' with black, or 'stretch'.

  Raises:
    EpisodeError: the picture is so long that it would become huge.
  """
  ratios = [wanted / found for wanted, found in zip(size, shown, strict=True)]
  if fit == 'stretch':
    scaled = size
  elif fit == 'crop':
    scale = max(ratios)
    scaled = tuple(
      max(wanted, int(found * scale + 0.5))
      for wanted, found in zip(size, shown, strict=True)
    )
  else:
    scale = min(ratios)
    scaled = tuple(
      max(1, min(wanted, int(found * scale + 0.5)))
      for wanted, found in zip(size, shown, strict=True)
    )
  if scaled[0] * scaled[1] > MOST_PIXELS:
    raise EpisodeError(
      f'fit = {fit!r}: a picture of {shown[0]:.0f} x {shown[1]:.0f} would '
      f'become {scaled[0]} x {scaled[1]} on its way to {size[0]} x {size[1]}; '
      'use pad'
    )
  # Towards zero, so that padding rounds as cropping does.
  top, left = (
    int((found - wanted) / 2)
    for found, wanted in zip(scaled, size, strict=True)
  )
  return Plan(scaled, size, top, left)


def fitted(
  image: np.ndarray, size: tuple[int, int] | None, fit: str = 'stretch'
) -> np.ndarray:
  """Brings a picture `[H, W, 3]` uint8 to a size, averaging over pixels.

  Args:
    image: as it is shown.
    size: height and width that are wanted; none keeps those it has.
    fit: see `plan`.
  """
  if size is None or image.shape[:2] == tuple(size):
    return image
  way = plan(image.shape[:2], tuple(size), fit)
  picture = Image.fromarray(image)
  scaled = np.asarray(picture.resize(way.scaled[::-1], Image.Resampling.BOX))
  if way.scaled == way.size:
    return scaled
  out = np.zeros((*way.size, 3), np.uint8)
  rows, cols = (
    (slice(max(0, at), max(0, at) + n), slice(max(0, -at), max(0, -at) + n))
    for at, n in zip(
      (way.top, way.left), map(min, way.scaled, way.size), strict=True
    )
  )
  out[rows[1], cols[1]] = scaled[rows[0], cols[0]]
  return out


def decoded(name: str, data: bytes) -> np.ndarray:
  """Decodes a picture file, such as PNG or JPEG, as viewers show it.

  Args:
    name: of the field, for errors.
    data: the file.

  Returns:
    `[H, W, 3]` uint8, turned as its EXIF data say.

  Raises:
    EpisodeError: it is damaged, or no picture of 8 bits per channel.
  """
  try:
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  except Exception as error:
    raise EpisodeError(f'{name}: damaged image') from error
  # Pillow halves the bits of a colour PNG of 16 without a word.
  deep = data.startswith(_PNG) and data[24:25] == b'\x10'
  mode = f'{picture.mode} with 16 bits' if deep else picture.mode
  if mode in ('RGBA', 'LA', 'PA') or (
    'transparency' in picture.info and not deep
  ):
    picture = picture.convert('RGBA')
    if picture.getchannel('A').getextrema() != (255, 255):
      raise EpisodeError(
        f'{name}: found a picture with transparent pixels, whose colours are '
        'not known; expected an opaque one'
      )
  elif mode not in _PLAIN_MODES:
    raise EpisodeError(
      f'{name}: found a picture of mode {mode}, such as depth; expected colour '
      'or grey of 8 bits per channel'
    )
  return np.asarray(picture.convert('RGB'))


def turns(matrix: bytes) -> tuple[str, ...]:
  """Returns the FFmpeg filters that turn a video as its matrix says.

  Args:
    matrix: nine int32, as FFmpeg keeps a display matrix.

  Raises:
    EpisodeError: it turns by other angles than right ones.
  """
  a, b, _, c, d = struct.unpack('=9i', matrix[:36])[:5]
  longest = max(abs(x) for x in (a, b, c, d))
  if not longest:
    return ()
  # A degree more or less is a camera's rounding.
  signs = tuple(
    0 if abs(x) < 0.02 * longest else (1 if x > 0 else -1) for x in (a, b, c, d)
  )
  if signs not in _TURNS:
    angle = np.degrees(np.arctan2(b, a))
    raise EpisodeError(
      f'turned by {angle:.0f} degrees when shown; expected a right angle'
    )
  return _TURNS[signs]


def edges(side_data: bytes) -> Sequence[int]:
  """Returns the pixels a container cuts off: top, bottom, left, right."""
  return struct.unpack('<4I', side_data[:16])
