"""Deals out training data evenly: frames in epochs, rows by share.

In each epoch the episodes are joined end to end in random order, this ring of
frames is cut into windows from a random offset on, and the windows are taken in
random order. So every epoch shows every frame once (except for a remainder
shorter than a window), each time at a different place in a window.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools

import numpy as np

from dreamer4_jax.data.sources import Stretch


class Epochs:
  """The uniform windows of one split, numbered without end."""

  def __init__(
    self,
    lengths: np.ndarray,
    length: int,
    seed: int,
    *,
    stream: Sequence[int] = (),
    only: np.ndarray | None = None,
  ):
    """Lays the episodes out.

    Args:
      lengths: `[episodes]` frames of each episode; those of 0 are left out.
      length: frames of a window.
      seed: of all random choices.
      stream: further numbers that the order depends on.
      only: `[episodes]` bool, those that are used; by default all are.
    """
    used = lengths > 0 if only is None else only & (lengths > 0)
    self._episodes = np.flatnonzero(used)
    self._lengths = lengths
    self._length = length
    self._seeds = (seed, *stream)
    self._frames = int(lengths[self._episodes].sum())
    self.windows = max(1, self._frames // length)
    self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

  def __getitem__(self, number: int) -> tuple[Stretch, ...]:
    """Returns a window; an epoch has `windows` of them."""
    epoch, place = divmod(number, self.windows)
    order, ends, offset, places = self._epoch(epoch)
    frame = (offset + int(places[place]) * self._length) % self._frames
    at = int(np.searchsorted(ends, frame, side='right'))
    segments, left = [], self._length
    start = frame - int(ends[at] - self._lengths[order[at]])
    while left:
      episode = int(order[at])
      stop = min(int(self._lengths[episode]), start + left)
      segments.append(Stretch(episode, start, stop))
      left -= stop - start
      at, start = (at + 1) % len(order), 0
    return tuple(segments)

  def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng([*self._seeds, epoch])
    order = self._episodes[rng.permutation(len(self._episodes))]
    ends = np.cumsum(self._lengths[order])
    offset = int(rng.integers(self._frames))
    return order, ends, offset, rng.permutation(self.windows)


def spread(rows: int, count: int, size: int) -> int:
  """Returns how many of `count`, spread over `size`, the first `rows` hold."""
  return rows * count // size


def apportion(number: int, weights: Sequence[float]) -> tuple[int, int]:
  """Deals out numbers 0, 1, 2, ... by weight, evenly and deterministically.

  Returns:
    The index of the recipient, and how many numbers it got before.
  """
  for i, weight in enumerate(weights[:-1]):
    share = weight / sum(weights[i:])
    before = int(number * share)
    if int((number + 1) * share) > before:
      return i, before
    number -= before
  return len(weights) - 1, number
