import numpy as np
import pytest
from scipy import stats

from dreamer4_jax.evals.statistics import paired_comparison


def table(both, only_a, only_b, neither):
  """Outcomes with the given counts."""
  a = [True] * (both + only_a) + [False] * (only_b + neither)
  b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
  return np.array(a), np.array(b)


def test_by_hand():
  # 10 against 2 disagreements among 40: difference 0.2. Exact McNemar:
  # 2 (1 + 12 + 66) / 4096. Spread 1.96 sqrt(12/40 - 0.04) / sqrt(40).
  got = paired_comparison(*table(18, 10, 2, 10))
  np.testing.assert_allclose(got['difference'], 0.2, rtol=1e-12)
  np.testing.assert_allclose(got['p_value'], 158 / 4096, rtol=1e-9)
  spread = 1.96 * np.sqrt(0.26 / 40)
  np.testing.assert_allclose(
    got['ci95'], [0.2 - spread, 0.2 + spread], rtol=1e-9
  )


def test_swapping_the_policies_changes_the_sign_only():
  a, b = table(100, 60, 20, 120)
  one, other = paired_comparison(a, b), paired_comparison(b, a)
  np.testing.assert_allclose(one['difference'], -other['difference'])
  np.testing.assert_allclose(one['ci95'], [-x for x in other['ci95'][::-1]])
  assert one['p_value'] == other['p_value'] < 1e-4


def test_interval_matches_the_paired_differences():
  rng = np.random.default_rng(0)
  a, b = rng.uniform(size=(2, 300)) < [[0.7], [0.5]]
  difference = a.astype(float) - b
  got = paired_comparison(a, b)
  error = difference.std() / np.sqrt(300)
  expected = stats.norm.interval(0.95, difference.mean(), error)
  np.testing.assert_allclose(got['ci95'], expected, rtol=1e-3)


def test_equal_outcomes_are_no_evidence():
  a, _ = table(5, 0, 0, 5)
  got = paired_comparison(a, a)
  assert got == {'difference': 0, 'ci95': [0, 0], 'p_value': 1}


def test_the_episodes_must_be_the_same():
  with pytest.raises(ValueError, match=r'a \(3,\) and b \(4,\)'):
    paired_comparison(np.ones(3, bool), np.ones(4, bool))
