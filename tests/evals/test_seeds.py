"""Several training seeds together, on results written by hand."""

import copy

import numpy as np
import pytest
from scipy import stats

from dreamer4_jax.evals import seeds


def agent(success, steps=10.0, returns=0.5):
  return {
    'success': success,
    'episodes': 4,
    'mean_return': returns,
    'std_return': 0.1,
    'mean_length': steps,
    'events': {},
  }


def results(seed=0, rl=0.9, best=0.6, **more):
  """What `results.json` holds of a run; its best clone is bc_0.5."""
  return {
    'seed': seed,
    'config': {
      'seed': seed,
      'data': {
        'sources': [
          {'path': 'data', 'latents': f'runs/{seed}/latents-0'},
          {'path': 'b', 'latents': f'runs/{seed}/latents-1'},
        ]
      },
      'eval': {'horizons': [4, 16]},
    },
    'tokenizer': {'psnr': 40.0 + seed},
    'dynamics': {'psnr_4': 30.0, 'psnr_16': 20.0 + seed},
    'agents': {
      'random': agent(0.1),
      'bc': agent(best - 0.2),
      'bc_0.5': agent(best, 12.0),
      'rl': agent(rl, 9.0 + seed),
      'rl_greedy': agent(rl - 0.1),
    },
    'best_clone': 'bc_0.5',
    'rl_vs_best_clone': {
      'measure': 'success',
      'test': 'exact McNemar test',
      'difference': rl - best,
      'ci95': [rl - best - 0.1, rl - best + 0.1],
      'p_value': 0.004,
    },
    'rl_vs_best_clone_steps': {
      'episodes': 3,
      'difference': -2.0 - seed,
      'ci95': [-3.0, -1.0],
      'p_value': 0.25,
    },
    **more,
  }


@pytest.mark.parametrize('level', [0.95, 0.8])
def test_the_interval_is_that_of_scipy(level):
  x = np.random.default_rng(0).normal(3, 2, 5)
  found = seeds.student_interval(x.tolist(), level)
  expected = stats.t.interval(level, 4, loc=x.mean(), scale=stats.sem(x))
  np.testing.assert_allclose(found['interval'], expected, rtol=1e-9)
  assert found['mean'] == pytest.approx(x.mean()) and found['n'] == 5


def test_a_single_value_has_no_interval_and_none_is_refused():
  found = seeds.student_interval([2.0])
  assert found == {'mean': 2.0, 'interval': None, 'n': 1}
  with pytest.raises(ValueError, match='at least one number'):
    seeds.student_interval([])
  with pytest.raises(ValueError, match='runs: there are none'):
    seeds.summarise({})


def test_the_unit_is_the_training_seed():
  runs = {
    'a': results(0, rl=0.9, best=0.6),
    'b': results(1, rl=0.8, best=0.7),
    'c': results(2, rl=1.0, best=0.5),
  }
  found = seeds.summarise(runs)
  assert found['measure'] == 'success' and not found['warnings']
  differences = [0.3, 0.1, 0.5]
  gain, expected = (
    found['rl_minus_best_clone'], seeds.student_interval(differences)
  )  # fmt: skip
  np.testing.assert_allclose(gain['interval'], expected['interval'])
  assert gain['mean'] == pytest.approx(0.3) and gain['n'] == 3
  assert found['steps'] == seeds.student_interval([-2, -3, -4])
  rows = found['runs']
  assert [row['run'] for row in rows] == ['a', 'b', 'c']
  assert rows[1]['best_clone'] == {'name': 'bc_0.5', 'score': 0.7}
  assert rows[1]['rl'] == {'rl': 0.8, 'rl_greedy': pytest.approx(0.7)}
  assert rows[1]['test']['p_value'] == 0.004
  policies = found['policies']
  assert policies['rl']['score']['mean'] == pytest.approx(0.9)
  assert policies['rl']['steps']['mean'] == 10
  assert policies[seeds.BEST] == policies['bc_0.5']


def test_a_policy_counts_in_the_runs_that_have_it():
  runs = {'a': results(0), 'b': results(1)}
  runs['b']['agents']['bc_all'] = agent(0.95)
  runs['b']['best_clone'] = 'bc_all'
  found = seeds.summarise(runs)
  assert found['policies']['bc_all']['score'] == {
    'mean': 0.95, 'interval': None, 'n': 1
  }  # fmt: skip
  best = found['policies'][seeds.BEST]['score']
  assert best['mean'] == pytest.approx((0.6 + 0.95) / 2) and best['n'] == 2


def test_a_difference_of_success_is_not_mixed_with_one_of_return():
  # Where all episodes end alike, the test within the run is of returns.
  runs = {'a': results(0), 'b': results(1, rl=1.0, best=1.0)}
  runs['b']['rl_vs_best_clone'] |= {'measure': 'return', 'difference': 7.0}
  found = seeds.summarise(runs)
  assert found['rl_minus_best_clone']['mean'] == pytest.approx(0.15)
  assert '| return +7.000 [' in seeds.markdown(found)


def test_returns_count_where_success_is_not_defined():
  run = results(0, rl_vs_best_clone_steps=None)
  run['agents'] = {k: agent(None, returns=i) for i, k in enumerate('ab')}
  run['agents'] |= {
    'random': agent(None, returns=0.0),
    'bc_0.5': agent(None, returns=3.0),
    'rl': agent(None, returns=5.0),
  }
  found = seeds.summarise({'a': run})
  assert found['measure'] == 'return' and found['steps'] is None
  assert found['rl_minus_best_clone']['mean'] == 2
  text = seeds.markdown(found)
  assert (
    'over 1 training seed: +2.000.' in text
    and 'steps where both succeed, over' not in text
  )


def test_figures_of_the_world_model_are_there_where_the_run_has_them():
  plain = results(0)
  rich = results(
    1,
    tokenizer={
      'psnr': 42.0,
      'exact': 0.99,
      'player': {
        'corridor': {'right': 1.0, 'frames': 9},
        'doorway': {'right': 0.875, 'frames': 8},
        'room': {'right': None, 'frames': 0},
      },
    },
    dynamics={'psnr_16': 25.0, 'exact_1': 0.98, 'exact_16': 0.77},
    reality={'bc': {'phantom': 0.03}, 'rl': {'phantom': 0.04}},
  )
  first, second = seeds.summarise({'a': plain, 'b': rich})['runs']
  assert first['tokenizer'] == {'psnr': 40.0, 'exact': None, 'player': None}
  assert first['dynamics'] == {
    'exact_1': None, 'exact_16': None, 'psnr_16': 20.0
  }  # fmt: skip
  assert first['phantom'] == {'bc': None, 'rl': None}
  assert second['tokenizer']['player'] == 0.875
  assert second['dynamics'] == {'exact_1': 0.98, 'exact_16': 0.77}
  assert second['phantom'] == {'bc': 0.03, 'rl': 0.04}
  header = lambda runs: seeds.markdown(seeds.summarise(runs)).split('\n')[0]
  assert 'exact' not in header({'a': plain})
  assert 'dreams dB 16' in header({'a': plain})
  assert '| dreams exact 16 | phantom bc | phantom rl |' in header({'b': rich})
  assert 'dB 16' not in header({'b': rich})


def test_the_tables_by_hand():
  runs = {'x/a': results(0), 'x/b': results(1)}
  lines = seeds.markdown(seeds.summarise(runs)).split('\n')
  assert lines[0] == (
    '| run | seed | tokenizer dB | dreams dB 16 | random | best clone | rl '
    '| rl_greedy | rl - best clone | rl - best clone, steps |'
  )
  assert lines[2] == (
    '| x/a | 0 | 40.0 | 20.0 | 0.100 | 0.600 (bc_0.5) | 0.900 | 0.800 '
    '| +0.300 [+0.200, +0.400], p = 0.004 | -2.0 [-3.0, -1.0], p = 0.25 |'
  )
  text = '\n'.join(lines)
  assert 'over 2 training seeds: +0.300 [+0.300, +0.300].' in text
  # t of one degree of freedom is 12.706; the mean of 2 and 3 is off by 0.5.
  assert 'training seeds: -2.500 [-8.853, +3.853].' in text
  assert '| random | 0.100 [0.100, 0.100] | 10.0 [10.0, 10.0] |' in text


def test_runs_that_are_not_seeds_of_one_experiment_are_named():
  base = results(0)
  other = copy.deepcopy(results(1))
  assert not seeds.summarise({'a': base, 'b': other})['warnings']
  other['config']['eval']['horizons'] = [4, 8]
  other['config']['data']['sources'][1]['path'] = 'c'
  other['config']['new'] = 3
  found = seeds.summarise({'a': base, 'b': other})
  (warning,) = found['warnings']
  assert 'seeds: data.sources.1.path, eval.horizons, new;' in warning
  assert seeds.markdown(found).startswith(f'Warning: {warning}.\n')
  (warning,) = seeds.summarise({'a': base, 'b': base})['warnings']
  assert warning.startswith('seed 0 is that of more than one run')


def test_results_of_an_older_version_are_refused():
  old = results(0)
  old.pop('best_clone')
  with pytest.raises(
    ValueError, match=r'a: results.json has no best_clone; .* evaluate a`'
  ):
    seeds.summarise({'a': old})
