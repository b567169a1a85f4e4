"""Do actions stand where they act? A small probe of pixels.

The action that leads from frame t to frame t + 1 is the one of which frame
t + 1 tells something new. Whatever older actions did is to be seen in the
frames before; so a probe that predicts `action[t + k]` from frames t - 1, t and
t + 1 is compared with one that is given frames t - 1 and t alone. Without the
comparison, worlds with inertia, or those that draw the last action into the
picture, would seem to be a step early.

Players repeat themselves, so that one action tells much of the next. What is
predicted is therefore what is new in an action, after the two before it.

What an action does may be seen late, or for long, as in Atari; but never before
it is chosen. So the last k with a large gain is the one that must be 0.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from dreamer4_jax.evals import probes
from dreamer4_jax.evals.check import motion

REACH = 3
"""Steps by which actions are moved, at most."""
SHARE = 0.15
"""Of the largest gain, what counts as large."""
DOUBT = 3.0
"""Standard errors beyond which there is no doubt."""
LEAST = 0.003
"""A smaller gain tells nothing."""
_BEFORE = 2
"""Older actions, of which nothing is new."""
_CHANGES, _STILLS = 160, 64
_GROUPS = 12
"""Episodes from which on these are resampled; else clips."""
_SAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Clip:
  """What the probe is given of some consecutive steps.

  Attributes:
    episode: it comes from.
    still: `[T, m]` of each frame.
    change: `[T - 1, n]` from each to the next.
    actions: `[T, a]`, as `probes.encode_actions` writes them.
    known: `[T]` bool.
  """

  episode: int
  still: np.ndarray
  change: np.ndarray
  actions: np.ndarray
  known: np.ndarray

  @classmethod
  def of_frames(
    cls,
    episode: int,
    frames: np.ndarray,
    actions: np.ndarray,
    known: np.ndarray,
  ) -> Clip:
    """Takes frames `[T, H, W, C]` uint8."""
    small = motion.shrink(frames)
    return cls(
      episode, motion.still(small), motion.moving(small), actions, known
    )


@dataclasses.dataclass(frozen=True)
class Curve:
  """How much frame t + 1 tells of each action near it.

  Attributes:
    gain: by k, the share of what is new in `action[t + k]` that frame t + 1
      adds to what the frames before explain, held out.
    error: by k, the standard error of the gain.
    margin: by k, the standard error of its difference from `SHARE` of the
      largest gain.
    rows: frames that were used, the same for every k.
    groups: episodes or clips that were resampled for the errors.
  """

  gain: dict[int, float]
  error: dict[int, float]
  margin: dict[int, float]
  rows: int
  groups: int

  @property
  def best(self) -> int:
    """The k of the largest gain."""
    return max(self.gain, key=self.gain.__getitem__)

  @property
  def seen(self) -> bool:
    """Whether frames tell anything of actions, beyond doubt."""
    top = self.gain[self.best]
    return top > max(LEAST, DOUBT * self.error[self.best])

  def large(self, k: int) -> bool | None:
    """Whether a gain is large; None if there is doubt."""
    above = self.gain[k] - SHARE * self.gain[self.best]
    if abs(above) < DOUBT * self.margin[k]:
      return None
    return above > 0

  @property
  def onset(self) -> int | None:
    """The last k with a large gain, which should be 0; None in doubt."""
    if not self.seen:
      return None
    for k in sorted(self.gain, reverse=True):
      large = self.large(k)
      if large is None or large:
        return k if large else None
    return None


def _rows(clips: Sequence[Clip], reach: int) -> tuple[np.ndarray, np.ndarray]:
  """Clip and step of every frame t for which all is known."""
  found = []
  for number, clip in enumerate(clips):
    for t in range(reach + _BEFORE, len(clip.known) - reach):
      if clip.known[t - reach - _BEFORE : t + reach + 1].all():
        found.append((number, t))
  pairs = np.array(found, np.int64).reshape(-1, 2)
  return pairs[:, 0], pairs[:, 1]


def measure(clips: Sequence[Clip], reach: int = REACH) -> Curve | None:
  """Measures the curve; None where there is too little to learn from."""
  number, at = _rows(clips, reach)
  episodes = np.array([clip.episode for clip in clips])
  group = episodes[number]
  if len(np.unique(group)) < _GROUPS:
    group = number
  group = np.unique(group, return_inverse=True)[1]
  if len(at) < 200 or group.max() < 3:
    return None
  take = lambda name, step: np.stack(
    [getattr(clips[c], name)[t + step] for c, t in zip(number, at, strict=True)]
  )
  shifts = range(-reach, reach + 1)
  y = np.stack([_news(take, k) for k in shifts], axis=1)
  known, new = _features(take)
  # Halves at random: episodes may lie in the order of what they show.
  test = np.random.default_rng(4).permutation(group.max() + 1)[group] % 2 == 1
  losses = []
  target = y.reshape(len(y), -1)
  for x in (known, np.concatenate([known, new], axis=1)):
    guess = np.empty_like(target)
    for held in (test, ~test):
      guess[held] = probes.predicted(x, target, held)
    losses.append(np.square(target - guess).reshape(y.shape).sum(axis=-1))
  total = np.square(y).sum(axis=-1).mean(axis=1)
  if total.sum() < 1e-9:
    return None  # Every action follows from those before.
  return _curve(losses[0] - losses[1], total, group, shifts)


def _news(take, step: int) -> np.ndarray:
  """What of `action[t + step]` does not follow from those before."""
  value = take('actions', step).astype(np.float64)
  older = [take('actions', step - i - 1) for i in range(_BEFORE)]
  older = np.concatenate([np.ones((len(value), 1)), *older], axis=1)
  gram = older.T @ older + np.eye(older.shape[1])
  return value - older @ np.linalg.solve(gram, older.T @ value)


def _features(take) -> tuple[np.ndarray, np.ndarray]:
  """Returns features of frames t - 1 and t, and what frame t + 1 adds."""
  before, after = take('change', -1), take('change', 0)
  both = probes.principal(np.concatenate([before, after]), _CHANGES)
  before, after = both[: len(before)], both[len(before) :]
  still = probes.principal(take('still', 0), _STILLS)
  f = probes.random_features
  past = np.concatenate([before, still], axis=1)
  known = [past, f(past, 200, 0)]
  new = [
    after,
    f(after, 200, 1),
    f(np.concatenate([after, still], axis=1), 150, 2),
    f(np.concatenate([after, before], axis=1), 150, 3),
  ]
  return np.concatenate(known, axis=1), np.concatenate(new, axis=1)


def _curve(
  saved: np.ndarray, total: np.ndarray, group: np.ndarray, shifts: range
) -> Curve:
  """Resamples groups for the errors of the gains."""
  count = int(group.max()) + 1
  sums = np.zeros((count, len(shifts) + 1))
  np.add.at(sums, group, np.concatenate([saved, total[:, None]], axis=1))
  gain = sums.sum(axis=0)[:-1] / sums.sum(axis=0)[-1]
  rng = np.random.default_rng(0)
  drawn = rng.multinomial(count, np.full(count, 1 / count), _SAMPLES) @ sums
  drawn = drawn[:, :-1] / np.maximum(drawn[:, -1:], 1e-12)
  margin = (drawn - SHARE * drawn[:, [int(np.argmax(gain))]]).std(axis=0)
  by = lambda x: {k: float(v) for k, v in zip(shifts, x, strict=True)}
  return Curve(
    gain=by(gain), error=by(drawn.std(axis=0)), margin=by(margin),
    rows=len(saved), groups=count,
  )  # fmt: skip
