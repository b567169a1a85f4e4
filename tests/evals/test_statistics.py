import numpy as np
import pytest
from scipy import stats

from dreamer4_jax.evals.statistics import (
  compare_policies,
  compare_steps,
  milestones,
  paired_comparison,
  paired_difference,
  wilson,
)


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


def test_returns_by_hand():
  # Differences 1, 2, 3, 0: mean 1.5. Of the 8 sign flips of those that are
  # not 0, only +++ and --- sum to 6 or more.
  a, b = np.array([2.0, 2.0, 4.0, 5.0]), np.array([1.0, 0.0, 1.0, 5.0])
  got = paired_difference(a, b)
  np.testing.assert_allclose(got['difference'], 1.5, rtol=1e-12)
  np.testing.assert_allclose(got['p_value'], 2 / 8, rtol=1e-12)
  # s^2 = (0.25 + 0.25 + 2.25 + 2.25) / 3; t_{0.975, 3} = 3.1824463.
  spread = 3.1824463 * np.sqrt(5 / 3 / 4)
  np.testing.assert_allclose(
    got['ci95'], [1.5 - spread, 1.5 + spread], rtol=1e-6
  )


@pytest.mark.parametrize('n', [12, 60])
def test_sign_flips_agree_with_scipy(n):
  rng = np.random.default_rng(n)
  a = rng.normal(0.3, 1, n)
  b = rng.normal(0.0, 1, n)
  expected = stats.permutation_test(
    (a - b,),
    np.mean,
    permutation_type='samples',
    n_resamples=100_000,
    rng=np.random.default_rng(1),
  )
  got = paired_difference(a, b)
  # 100,000 flips: three standard errors of a p of 0.1 are 0.003.
  np.testing.assert_allclose(got['p_value'], expected.pvalue, atol=0.004)
  assert 0 < got['p_value'] < 1
  interval = stats.ttest_rel(a, b).confidence_interval(0.95)
  np.testing.assert_allclose(got['ci95'], interval, rtol=1e-9)


@pytest.mark.filterwarnings('error')
def test_a_single_episode_and_equal_differences_have_finite_answers():
  one = paired_difference(np.array([3.0]), np.array([1.0]))
  assert one == {'difference': 2.0, 'ci95': None, 'p_value': 1.0}
  same = paired_difference(np.ones(9), np.ones(9))
  assert same == {'difference': 0.0, 'ci95': [0.0, 0.0], 'p_value': 1.0}
  shifted = paired_difference(np.ones(9) * 3, np.ones(9))
  assert shifted == {
    'difference': 2.0,
    'ci95': [2.0, 2.0],
    'p_value': 2 / 2**9,
  }


def test_returns_are_compared_where_success_says_nothing():
  returns = np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 0.0])
  a, b = np.array([True, False, True]), np.array([True, False, False])
  for success in ((None, None), (a, a), (a & ~a, a & ~a)):
    got = compare_policies(*success, *returns)
    assert got['measure'] == 'return' and got['difference'] == 2.0
    assert got['test'] == 'paired sign-flip permutation test'
  got = compare_policies(a, b, *returns)
  assert got['measure'] == 'success' and got['test'] == 'exact McNemar test'
  np.testing.assert_allclose(got['difference'], 1 / 3)


def test_steps_are_compared_where_both_succeed():
  a, b = np.array([1, 1, 1, 1, 0], bool), np.array([1, 1, 1, 0, 1], bool)
  steps_a, steps_b = np.array([5, 6, 7, 99, 1]), np.array([7, 7, 10, 1, 99])
  got = compare_steps(a, b, steps_a, steps_b)
  expected = paired_difference(np.array([5, 6, 7]), np.array([7, 7, 10]))
  assert got == {'episodes': 3, **expected} and got['difference'] == -2
  one = np.array([1, 0, 0, 0, 0], bool)
  assert compare_steps(one, b, steps_a, steps_b) is None
  assert compare_steps(None, b, steps_a, steps_b) is None


@pytest.mark.parametrize(
  ('successes', 'trials'), [(0, 256), (1, 10), (5, 10), (256, 256), (30, 300)]
)
def test_wilsons_interval_is_that_of_scipy(successes, trials):
  expected = stats.binomtest(successes, trials).proportion_ci(method='wilson')
  found = wilson(successes, trials)
  np.testing.assert_allclose(found, [expected.low, expected.high], atol=1e-9)


def test_wilsons_interval_refuses_what_cannot_be():
  for wrong in ((-1, 3), (4, 3), (0, 0)):
    with pytest.raises(ValueError, match='successes = '):
      wilson(*wrong)


def test_milestones_by_hand():
  achieved = np.array([[1, 0], [1, 0], [0, 0], [1, 0]], bool)
  first = np.array([[3, -1], [9, -1], [-1, -1], [5, -1]])
  found = milestones(achieved, first, ['wood', 'table'])
  assert found['wood']['share'] == 0.75 and found['wood']['median_step'] == 5
  assert found['wood']['ci95'] == wilson(3, 4)
  assert found['table'] == {
    'share': 0.0, 'ci95': wilson(0, 4), 'median_step': None
  }  # fmt: skip
