"""Reconstructions and dreams of tile worlds, read tile by tile.

A frame of such a world is a grid of pictures. Each tile of a frame is read as
the picture nearest to it by squared error; a tile is right if the true and the
predicted frame are read the same there, and a frame is exact if all its tiles
are right. This counts what a mean over pixels hides, such as a fading player.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamer4_jax.envs import Palette, Tiles
from dreamer4_jax.envs.tiles import cut_tiles
from dreamer4_jax.evals.video import OpenLoop

MOST = 1024
"""Most pictures of a palette that is found in frames."""
RARE = 0.02
"""A tile is rare if its share of all tiles is smaller than this."""


def find_palette(
  tiles: Tiles, frames: Sequence[np.ndarray], most: int = MOST
) -> Palette:
  """Returns a world's palette, or finds one in its frames.

  Args:
    tiles: the world's. Without pictures, the most common distinct tiles of the
      frames are used.
    frames: true ones, each `[..., H, W, C]` uint8.
    most: at most this many pictures are found.
  """
  if tiles.pictures is not None:
    return Palette(tiles, tiles.pictures)
  counts: Counter[bytes] = Counter()
  for part in frames:
    cut = np.ascontiguousarray(cut_tiles(part, tiles.side))
    counts.update(cut.view(f'V{cut.shape[-1]}').ravel().tolist())
  common = b''.join(picture for picture, _ in counts.most_common(most))
  shape = -1, tiles.side, tiles.side, frames[0].shape[-1]
  return Palette(tiles, np.frombuffer(common, np.uint8).reshape(shape))


def reconstruction_tiles(
  tiles: Tiles, true: np.ndarray, decoded: np.ndarray
) -> dict[str, Any]:
  """Compares decoded frames with true ones.

  Args:
    tiles: the world's.
    true: `[N, rows, columns]` int, true frames, as `Palette.read` returns them.
    decoded: same shape, decoded ones.

  Returns:
    Shares from 0 to 1: `exact` of the frames; `tiles` of all tiles that are
    right; `rare_tiles` of those that are rare in the true frames, None if there
    are none. If the world says where its player stands, also `player`: by place
    the share `right` of the player's tiles, direction included, and the number
    of `frames`.
  """
  right = true == decoded
  rare = np.bincount(true.ravel()) < RARE * true.size
  figures: dict[str, Any] = {
    'exact': float(right.all(axis=(1, 2)).mean()),
    'tiles': float(right.mean()),
    'rare_tiles': _share(right, rare[true]),
  }
  if tiles.places is not None:
    figures['player'] = _player(tiles, true, right)
  return figures


def _player(
  tiles: Tiles, true: np.ndarray, right: np.ndarray
) -> dict[str, dict[str, float | int]]:
  places = tiles.places(true)
  shown = np.isin(true, tiles.player)
  seen = (right | ~shown).all(axis=(1, 2))
  return {
    str(place): {
      'right': float(seen[places == place].mean()),
      'frames': int((places == place).sum()),
    }
    for place in np.unique(places[places != ''])
  }


def dream_tiles(
  palette: Palette, result: OpenLoop, horizons: Sequence[int]
) -> dict[str, float | None]:
  """Compares frame h after the context with the true one, for every h.

  Args:
    palette: of the world.
    result: dreams and the truth.
    horizons: frames after the context, from 1.

  Returns:
    Shares from 0 to 1: `exact_h` of the dreamed frames, and the baselines
    `exact_h_repeat_last`, `exact_h_shuffled_actions`; `changed_h` of the tiles
    that differ from the last context frame and are dreamed right, None if none
    differs.
  """
  last = palette.read(result.last)
  figures: dict[str, float | None] = {}
  for h in horizons:
    true, dreamed, shuffled = (
      palette.read(frames[:, h - 1])
      for frames in (result.frames, result.dreamed, result.shuffled)
    )
    for baseline, tiles in {
      '': dreamed,
      '_repeat_last': last,
      '_shuffled_actions': shuffled,
    }.items():
      exact = (tiles == true).all(axis=(1, 2)).mean()
      figures[f'exact_{h}{baseline}'] = float(exact)
    figures[f'changed_{h}'] = _share(dreamed == true, true != last)
  return figures


def _share(right: np.ndarray, among: np.ndarray) -> float | None:
  return float(right[among].mean()) if among.any() else None
