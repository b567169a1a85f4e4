"""Verdicts and probes of `dreamer4 doctor`, on what is known by hand."""

import numpy as np
import pytest

from dreamer4_jax.config import ActionComponent
from dreamer4_jax.evals import findings, probes
from dreamer4_jax.evals.doctor import heads

SPACE = (
  ActionComponent(name='move', kind='categorical', size=4),
  ActionComponent(name='look', kind='continuous', size=2),
)


@pytest.mark.parametrize(
  ('scale', 'value', 'verdict'),
  [
    (findings.Scale(fine=30, wrong=20), 31, 'fine'),
    (findings.Scale(fine=30, wrong=20), 30, 'fine'),
    (findings.Scale(fine=30, wrong=20), 25, 'look'),
    (findings.Scale(fine=30, wrong=20), 20, 'wrong'),
    (findings.Scale(fine=0.1, wrong=0.5), 0.05, 'fine'),
    (findings.Scale(fine=0.1, wrong=0.5), 0.3, 'look'),
    (findings.Scale(fine=0.1, wrong=0.5), 0.6, 'wrong'),
    (findings.Scale(fine=0.1, wrong=0.5), None, 'unknown'),
    (findings.Scale(fine=0.1, wrong=0.5), float('nan'), 'unknown'),
  ],
)
def test_figures_are_judged_from_either_side(scale, value, verdict):
  assert scale.verdict(value) == verdict


def test_the_page_names_what_is_wrong_first():
  scale = findings.Scale(fine=30, wrong=20, digits=1, unit=' dB')
  some = [
    findings.judge('tokenizer', 'PSNR', 12.25, scale, 'Train longer.'),
    findings.judge('tokenizer', 'worst', 24, scale, 'Look.'),
    findings.judge('dynamics', 'dreams', 31, scale, 'No advice.'),
    findings.note('dynamics', 'context', '8 frames'),
  ]
  page = findings.page(some, 'A run')
  assert page.startswith('# A run\n')
  summary, tables = page.split('## Tokenizer')
  assert 'tokenizer, PSNR: 12.2 dB (at least 30.0 dB). Train long' in summary
  assert summary.index('PSNR') < summary.index('worst')
  assert 'No advice' not in page
  assert '| PSNR | 12.2 dB | at least 30.0 dB | **wrong** |' in tables
  assert tables.index('| worst |') < tables.index('## Dynamics')
  assert '| context | 8 frames |  | - |' in tables
  assert 'Nothing found' in findings.page(some[2:], 'Another')


def test_a_ridge_regression_explains_what_is_linear_and_nothing_else():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(600, 20))
  linear = x @ rng.normal(size=(20, 1))
  noisy = linear + linear.std() * rng.normal(size=(600, 1))
  noise = rng.normal(size=(600, 1))
  still = np.ones((600, 1))
  y = np.concatenate([linear, noisy, noise, still], axis=1)
  found = probes.explained(x, y, np.arange(600) >= 400)
  assert found[0] > 0.99
  assert found[1] == pytest.approx(0.5, abs=0.12)
  assert found[2] < 0.1 and found[3] == 0
  # Features that never vary are no reason to fail.
  x[:, 3] = 7
  assert np.isfinite(probes.explained(x, y, np.arange(600) >= 400)).all()


def test_a_marginal_policy_is_the_entropy_of_the_actions():
  from dreamer4_jax.config import Config
  from dreamer4_jax.types import Batch

  rng = np.random.default_rng(0)
  move = rng.choice(4, (50, 40), p=[0.7, 0.1, 0.1, 0.1])
  batch = Batch.of(
    np.zeros((50, 40, 2, 2, 3), np.uint8),
    {'move': move, 'look': rng.uniform(-1, 1, (50, 40, 2))},
  )
  config = Config(actions=SPACE)
  found = heads._marginal(batch, np.ones((50, 40), bool), config)
  share = np.array([0.7, 0.1, 0.1, 0.1])
  # Fifteen bins around their centres: the outermost are half as wide.
  bins = np.array([0.5, *[1.0] * 13, 0.5]) / 14
  expected = -(share * np.log(share)).sum() - 2 * (bins * np.log(bins)).sum()
  assert found == pytest.approx(expected, abs=0.03)
