"""Paired comparisons of two policies on the same episodes, and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 100_000
"""Sign flips that are drawn if all would be too many."""
_EXACT = 16
"""Up to this many episodes, all sign flips are tried."""


def compare_policies(
  success_a: np.ndarray | None,
  success_b: np.ndarray | None,
  returns_a: np.ndarray,
  returns_b: np.ndarray,
) -> dict[str, Any]:
  """Compares success or, where that cannot tell two policies apart, returns.

  Args:
    success_a: `[n]` bool, or None where success is not defined.
    success_b: likewise, the same episodes.
    returns_a: `[n]` float.
    returns_b: `[n]` float.

  Returns:
    `measure`, which is `success`, or `return` if success is not defined or is
    the same in every episode; `test`, in words; and what `paired_comparison`
    or `paired_difference` returns.
  """
  if success_a is None or success_b is None or (success_a == success_b).all():
    return {
      'measure': 'return',
      'test': 'paired sign-flip permutation test',
      **paired_difference(returns_a, returns_b),
    }
  return {
    'measure': 'success',
    'test': 'exact McNemar test',
    **paired_comparison(success_a, success_b),
  }


def compare_steps(
  success_a: np.ndarray | None,
  success_b: np.ndarray | None,
  steps_a: np.ndarray,
  steps_b: np.ndarray,
) -> dict[str, Any] | None:
  """Compares the steps that two policies need where both succeed.

  Args:
    success_a: `[n]` bool, or None where success is not defined.
    success_b: likewise, the same episodes.
    steps_a: `[n]` int, length of each episode.
    steps_b: `[n]` int.

  Returns:
    `episodes` in which both succeed, and what `paired_difference` returns, a
    negative difference if a is faster; None for fewer than two episodes.
  """
  if success_a is None or success_b is None:
    return None
  both = success_a & success_b
  if both.sum() < 2:
    return None
  return {
    'episodes': int(both.sum()),
    **paired_difference(steps_a[both], steps_b[both]),
  }


def paired_comparison(a: np.ndarray, b: np.ndarray) -> dict[str, float | list]:
  """Compares success on the same episodes.

  Args:
    a: `[n]` bool.
    b: `[n]` bool, the same episodes.

  Returns:
    `difference` of the rates a - b; `ci95`, Wald's interval for a paired
    difference of proportions; `p_value` of the exact two-sided McNemar test,
    a binomial test on the episodes where the two disagree.

  Raises:
    ValueError: the arrays differ in shape.
  """
  _check(a, b)
  n = a.size
  only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
  difference = (only_a - only_b) / n
  spread = 1.96 * np.sqrt((only_a + only_b) / n - difference**2) / np.sqrt(n)
  disagree = only_a + only_b
  p = stats.binomtest(only_a, disagree).pvalue if disagree else 1.0
  return {
    'difference': difference,
    'ci95': [difference - spread, difference + spread],
    'p_value': float(p),
  }


def paired_difference(
  a: np.ndarray, b: np.ndarray, seed: int = 0
) -> dict[str, Any]:
  """Compares numbers, such as returns, on the same episodes.

  If the policies are equal, the sign of each episode's difference is a coin
  flip. The p-value is the share of sign flips whose mean difference is at least
  as far from 0 as the one found: of all flips for up to 16 episodes, and beyond
  that of `RESAMPLES` random ones plus the one found. Episodes without a
  difference change nothing.

  Args:
    a: `[n]` float.
    b: `[n]` float, the same episodes.
    seed: of the random flips.

  Returns:
    `difference` of the means a - b; `ci95`, Student's interval of the mean
    difference, None for a single episode; two-sided `p_value`.

  Raises:
    ValueError: the arrays differ in shape.
  """
  _check(a, b)
  d = a.astype(np.float64) - b.astype(np.float64)
  mean, interval = float(d.mean()), None
  if d.size > 1:
    error = d.std(ddof=1) / np.sqrt(d.size)
    spread = float(stats.t.ppf(0.975, d.size - 1) * error)
    interval = [mean - spread, mean + spread]
  return {'difference': mean, 'ci95': interval, 'p_value': _sign_flips(d, seed)}


def wilson(successes: int, trials: int) -> list[float]:
  """Wilson's 95 % interval of a share.

  Source: Wilson (1927). It stays within 0 and 1, and is of use at 0 of n.

  Args:
    successes: how many.
    trials: of how many, at least 1.

  Raises:
    ValueError: there are more successes than trials, or none of these.
  """
  if not 0 <= successes <= trials or trials < 1:
    raise ValueError(f'successes = {successes}: must lie in 0..{trials}')
  z = stats.norm.ppf(0.975)
  share, weight = successes / trials, z**2 / trials
  middle = (share + weight / 2) / (1 + weight)
  half = np.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
  return [max(float(middle - half), 0.0), min(float(middle + half), 1.0)]


def milestones(
  achieved: np.ndarray, first: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """Summarises what was achieved in episodes, and when.

  Args:
    achieved: `[n, tasks]` bool.
    first: `[n, tasks]` int step on which each was first achieved.
    names: of the tasks.

  Returns:
    By name: `share` of the episodes, `ci95` (Wilson's), and `median_step` where
    it was achieved, None if never.
  """
  found = {}
  for i, name in enumerate(names):
    count = int(achieved[:, i].sum())
    steps = first[achieved[:, i], i]
    found[name] = {
      'share': count / len(achieved),
      'ci95': wilson(count, len(achieved)),
      'median_step': float(np.median(steps)) if count else None,
    }
  return found


def _sign_flips(d: np.ndarray, seed: int) -> float:
  d = d[d != 0]
  if not d.size:
    return 1.0
  # Sums in another order differ in their last bits, but count as equally far.
  least = abs(d.sum()) - 1e-9 * np.abs(d).sum()
  if d.size <= _EXACT:
    numbers = np.arange(2**d.size)[:, None]
    signs = 1 - 2 * (numbers >> np.arange(d.size) & 1)
    return float((np.abs(signs @ d) >= least).mean())
  rng, found, block = np.random.default_rng(seed), 0, 1_000
  for _ in range(RESAMPLES // block):
    signs = 1 - 2 * rng.integers(0, 2, (block, d.size), np.int8)
    found += int((np.abs(signs @ d) >= least).sum())
  return (found + 1) / (RESAMPLES + 1)


def _check(a: np.ndarray, b: np.ndarray) -> None:
  if a.shape != b.shape or a.ndim != 1:
    raise ValueError(f'a {a.shape} and b {b.shape} must be the same episodes')
