"""Paired comparison of two success rates."""

from __future__ import annotations

import numpy as np
from scipy import stats


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
  if a.shape != b.shape or a.ndim != 1:
    raise ValueError(f'a {a.shape} and b {b.shape} must be the same episodes')
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
