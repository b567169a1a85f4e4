"""Frames that are made of tiles, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools

from einops import rearrange
import numpy as np

from dreamer4_jax.config import require

_CHUNK = 8192
"""Tiles that are compared at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tiles:
  """The squares that frames are made of, if a world has them."""

  side: int
  """Side of a tile in pixels; it divides height and width of the frames."""
  pictures: np.ndarray | None = None
  """`[n, side, side, C]` uint8, all tiles there are; none if not known."""
  names: tuple[str, ...] = ()
  """Names of the pictures; those of the player begin with 'player'."""
  places: Callable[[np.ndarray], np.ndarray] | None = None
  """Says where the player stands in frames, from their tiles alone: it maps
  numbers of pictures, `[N, rows, columns]` int, to `[N]` str, '' if unknown."""

  def __post_init__(self):
    require(self.side >= 1, 'Tiles.side', self.side, 'must be at least 1')
    count = 0 if self.pictures is None else len(self.pictures)
    require(
      len(self.names) == count,
      'Tiles.names',
      self.names,
      f'must name each of the {count} pictures',
    )

  @property
  def player(self) -> tuple[int, ...]:
    """Numbers of the pictures that show the player."""
    return tuple(
      i for i, name in enumerate(self.names) if name.startswith('player')
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Palette:
  """The pictures that tiles are read as.

  Attributes:
    tiles: the world's.
    pictures: `[n, side, side, C]` uint8.
  """

  tiles: Tiles
  pictures: np.ndarray

  @functools.cached_property
  def _scores(self) -> tuple[np.ndarray, np.ndarray]:
    """Factor `[values, n]` and bias `[n]` of the distance, up to a constant."""
    flat = _centred(self.pictures.reshape(len(self.pictures), -1))
    return -2 * flat.T, np.square(flat).sum(axis=1)

  def read(self, frames: np.ndarray) -> np.ndarray:
    """Reads each tile as the nearest picture.

    Args:
      frames: `[..., H, W, C]` uint8.

    Returns:
      `[..., H / side, W / side]` int32, numbers of `pictures`; of those equally
      near, the first.
    """
    cut = cut_tiles(frames, self.tiles.side)
    flat = cut.reshape(-1, cut.shape[-1])
    factor, bias = self._scores
    numbers = np.empty(len(flat), np.int32)
    for i in range(0, len(flat), _CHUNK):
      at = slice(i, i + _CHUNK)
      numbers[at] = (_centred(flat[at]) @ factor + bias).argmin(axis=1)
    return numbers.reshape(cut.shape[:-1])


def cut_tiles(frames: np.ndarray, side: int) -> np.ndarray:
  """Cuts `[..., H, W, C]` into `[..., H / side, W / side, side * side * C]`."""
  return rearrange(
    frames, '... (r y) (c x) k -> ... r c (y x k)', y=side, x=side
  )


def _centred(values: np.ndarray) -> np.ndarray:
  """Small whole numbers, whose products float32 sums exactly."""
  return values.astype(np.float32) - 128
