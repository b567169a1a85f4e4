"""Which frames of a dataset show something rare.

Rare and decisive frames, like the room behind the door, drown among common
ones. Counts tell them apart, as in count-based exploration with hashed states
(Tang et al., arXiv 1611.04717): an image is cut into regions, and the look of
each is coarsened to a mean colour for each of its quarters, in four levels per
channel. The count of a region is the number of frames of the split with the
same look in the same place, and that of a frame is the least of its regions'.
Frames are then drawn in inverse proportion to their counts, so that each rare
look is seen about as often as any other.

The weights of a split lie beside the records, in `novelty-SPLIT.npy`,
`[frames]` float32, episodes in order.
"""

from __future__ import annotations

from collections.abc import Iterator
import os
import pathlib

import einops
import numpy as np

from dreamer4_jax.data.sources import EpisodeSource, Request, Stretch

REGION = 8
"""Smallest side of a region in pixels."""
MOST_REGIONS = 32
"""Regions along the longer side of an image, at most about this many."""
_LEVELS = 4
_BUCKETS = 1 << 22
"""Looks are counted by hash: two that collide count as one."""
_RARE = 10_000
"""Looks that fewer than one frame in this many shows are all equally rare."""
_KEEP = 1 << 30
"""Bytes of hashes that are kept."""
_BLOCK = 1 << 24
"""Values of frames that are processed at once."""


def weights_path(dataset: str | os.PathLike, split: str) -> pathlib.Path:
  """Returns where the weights of a split are, or would be."""
  return pathlib.Path(dataset) / f'novelty-{split}.npy'


def load_weights(source: EpisodeSource) -> np.ndarray:
  """Returns the weights `[frames]` float32 of a split.

  Raises:
    FileNotFoundError: they have not been measured.
    ValueError: they belong to other episodes.
  """
  path = weights_path(source.path, source.split)
  if not path.is_file():
    latents = source.description.tokenizer
    raise FileNotFoundError(
      f'{path}: no such file, and novel_share is above 0; '
      + (
        'run `dreamer4 data novelty` on the dataset of frames, and make the '
        'latents again'
        if latents
        else f'run `dreamer4 data novelty {source.path}`, or set novel_share '
        'to 0'
      )
    )
  weights = np.load(path)
  frames = int(source.index.lengths.sum())
  if weights.shape != (frames,):
    raise ValueError(
      f'{path}: found {weights.shape} weights, expected ({frames},), one for '
      'each frame; run `dreamer4 data novelty` again'
    )
  return weights


def measure(source: EpisodeSource) -> np.ndarray:
  """Measures a split of frames.

  Returns:
    `[frames]` float32, positive, the weight with which each frame is drawn:
    about 1 over the number of frames that show the rarest of what it shows.

  Raises:
    ValueError: the dataset holds latents, or is damaged.
  """
  if source.description.tokenizer:
    raise ValueError(
      f'{source.path}: holds latents; measure the dataset of frames that they '
      'were made from'
    )
  total = int(source.index.lengths.sum())
  kept: list[np.ndarray] = []
  counts = np.zeros(_BUCKETS, np.int64)
  for found in map(looks, _blocks(source)):
    np.add.at(counts, found.ravel(), 1)
    if total * found.shape[1] * found.itemsize <= _KEEP:
      kept.append(found)
  # What does not fit into memory is hashed twice.
  again = kept or map(looks, _blocks(source))
  found = [counts[x].min(axis=1) for x in again]
  floor = total / _RARE
  return (1 / (np.concatenate(found) + floor)).astype(np.float32)


def measure_dataset(dataset: str | os.PathLike, split: str) -> np.ndarray:
  """Measures a split, writes its weights beside it and returns them."""
  source = EpisodeSource(dataset, split, cache_bytes=0)
  weights = measure(source)
  path = weights_path(dataset, split)
  temporary = path.with_suffix('.tmp')
  with temporary.open('wb') as file:
    np.save(file, weights)
  os.replace(temporary, path)
  return weights


def looks(frames: np.ndarray) -> np.ndarray:
  """Hashes what each region of images looks like, and where it is.

  Args:
    frames: `[N, H, W, C]` uint8.

  Returns:
    `[N, regions]` uint32, below `_BUCKETS`.
  """
  height, width = frames.shape[1:3]
  side = max(REGION, -(-max(height, width) // MOST_REGIONS))
  side += side % 2
  rest = [(0, 0), (0, -height % side), (0, -width % side), (0, 0)]
  frames = np.pad(frames, rest, mode='edge')
  quarter = side // 2
  coarse = _pool(frames, quarter) * _LEVELS // (256 * quarter * quarter)
  coarse = einops.rearrange(
    coarse, 'n (h y) (w x) c -> n (h w) (y x c)', y=2, x=2
  )
  digits = _LEVELS ** np.arange(coarse.shape[-1], dtype=np.uint64)
  look = (coarse.astype(np.uint64) * digits).sum(axis=-1, dtype=np.uint64)
  place = np.arange(look.shape[1], dtype=np.uint64)
  # The finalizer of MurmurHash3 for 64 bits.
  h = look ^ (place * np.uint64(0x9E3779B97F4A7C15))
  for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
    h = (h ^ (h >> np.uint64(33))) * np.uint64(factor)
  return ((h ^ (h >> np.uint64(33))) % np.uint64(_BUCKETS)).astype(np.uint32)


def _pool(frames: np.ndarray, side: int) -> np.ndarray:
  """Sums squares of pixels, `[N, H / side, W / side, C]` uint32."""
  # Slice by slice, whole rows first: much faster than one sum over axes.
  rows = sum(frames[:, i::side].astype(np.uint32) for i in range(side))
  return sum(rows[:, :, i::side] for i in range(side))


def _blocks(source: EpisodeSource) -> Iterator[np.ndarray]:
  """Yields all frames in order, some episodes at a time."""
  lengths = source.index.lengths
  shape, dtype = source.description.observation
  most = max(1, _BLOCK // int(np.prod(shape)))
  begin = 0
  while begin < len(lengths):
    end = begin + 1
    while end < len(lengths) and lengths[begin : end + 1].sum() <= most:
      end += 1
    frames = np.empty((1, int(lengths[begin:end].sum()), *shape), dtype)
    requests, column = [], 0
    for episode in range(begin, end):
      length = int(lengths[episode])
      whole = Stretch(episode, 0, length)
      requests.append(Request(whole, {'observation': frames}, 0, column))
      column += length
    source.read(requests)
    yield frames[0]
    begin = end
