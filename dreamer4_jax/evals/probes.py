"""Small probes in closed form: ridge regression on random features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dreamer4_jax.config import ActionComponent

SHIFTS = (-3, -2, -1, 0, 1, 2, 3)
"""Steps by which actions are moved."""
_FEATURES = 768
_PENALTIES = (1e-2, 1.0, 30.0, 1000.0)
_FAR, _LARGE = 4.0, 1.5
"""Standard deviations at which a feature, and all of a row, are cut off."""


def predicted(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
  """What a ridge regression says of held-out targets.

  Args:
    x: `[n, D]` features, related rows beside each other.
    y: `[n, m]` targets.
    test: `[n]` bool, rows that are held out.

  Returns:
    `[held out, m]` float64, within the range of the targets of the other rows.
    The penalty of each target, for standardised features, is the best of a
    few on the last quarter of the other rows.
  """
  x = np.asarray(x, np.float32)
  mean, spread = x[~test].mean(axis=0), x[~test].std(axis=0)
  keep = spread > 1e-8
  x = np.clip((x[:, keep] - mean[keep]) / spread[keep], -_FAR, _FAR)
  # Of rows that are like no other little is said, instead of anything.
  size = np.sqrt(np.square(x).mean(axis=1, keepdims=True))
  x *= np.minimum(1, _LARGE / np.maximum(size, 1e-6))
  seen = np.flatnonzero(~test)
  fit, inner = np.split(seen, [len(seen) - len(seen) // 4])
  y = np.asarray(y, np.float64)
  tried = [
    _regress(x[fit], y[fit], x[inner], penalty) for penalty in _PENALTIES
  ]
  errors = [np.square(y[inner] - found).sum(axis=0) for found in tried]
  best = np.argmin(errors, axis=0)
  found = np.empty((int(test.sum()), y.shape[1]))
  for i in np.unique(best):
    of = best == i
    found[:, of] = _regress(x[seen], y[seen][:, of], x[test], _PENALTIES[i])
  # A frame like no other would otherwise make an error like no other.
  return np.clip(found, y[seen].min(axis=0), y[seen].max(axis=0))


def _regress(
  x: np.ndarray, y: np.ndarray, at: np.ndarray, penalty: float
) -> np.ndarray:
  """Fits targets `[n, m]` to features; returns what is said for others."""
  centre = y.mean(axis=0)
  gram = (x.T @ x).astype(np.float64)
  gram[np.diag_indices_from(gram)] += penalty * len(x) * 1e-2
  weights = np.linalg.solve(gram, x.T.astype(np.float64) @ (y - centre))
  return centre + at.astype(np.float64) @ weights


def explained(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
  """Share of the variance of held-out targets that a ridge regression explains.

  Args:
    x: `[n, D]` features, as for `predicted`.
    y: `[n, m]` targets.
    test: `[n]` bool, rows that are held out.

  Returns:
    `[m]`, at most 1; 0 for targets that do not vary.
  """
  y = np.asarray(y, np.float64)
  error = np.square(y[test] - predicted(x, y, test)).sum(axis=0)
  total = np.square(y[test] - y[test].mean(axis=0)).sum(axis=0)
  varies = total > 1e-12
  return np.where(varies, 1 - error / np.where(varies, total, 1), 0.0)


def random_features(
  x: np.ndarray, count: int = _FEATURES, seed: int = 0
) -> np.ndarray:
  """Rectified random projections `[n, count]` of standardised features."""
  x = np.asarray(x, np.float32)
  x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)
  rng = np.random.default_rng(seed)
  matrix = rng.standard_normal((x.shape[1], count), np.float32)
  return np.maximum(x @ (matrix / np.sqrt(x.shape[1])) + 0.3, 0)


def principal(x: np.ndarray, count: int) -> np.ndarray:
  """The first principal components `[n, count]` of `[n, D]`, by random search.

  Features that hardly vary are not blown up. All of them are returned,
  standardised, if there are no more than `count`.
  """
  x = np.asarray(x, np.float32)
  spread = x.std(axis=0)
  x = (x - x.mean(axis=0)) / (spread + 1e-2 * spread.max() + 1e-9)
  if x.shape[1] <= count:
    return x
  rng = np.random.default_rng(3)
  basis = rng.standard_normal((x.shape[1], count + 16), np.float32)
  for _ in range(2):
    basis = np.linalg.qr(x.T @ (x @ basis))[0]
  small = x @ basis
  _, turn = np.linalg.eigh(small.T @ small)
  return small @ turn[:, : -count - 1 : -1]


def encode_actions(
  actions: Mapping[str, np.ndarray], space: Sequence[ActionComponent]
) -> np.ndarray:
  """Writes actions `[...]` as numbers `[..., m]`, classes as one of n."""
  columns = []
  for part in space:
    value = np.asarray(actions[part.name])
    if part.kind == 'categorical':
      columns.append(np.eye(part.size)[value])
    else:
      columns.append(value.astype(np.float64))
  return np.concatenate(columns, axis=-1)
