"""Loading the results of a phase elsewhere."""

import os

import chex
import jax
import numpy as np
import pytest

from dreamer4_jax import checkpoint
from dreamer4_jax.checkpoint import Best, Checkpoints
from dreamer4_jax.config import (
  Config,
  DynamicsConfig,
  DynamicsPhase,
  Phases,
  SavingConfig,
)
from tests.checkpoint.states import BEST, files, make_state, save_two


def test_a_whole_run_is_checked_phase_by_phase(tmp_path):
  save_two(tmp_path / 'tokenizer')
  other = Config(dynamics=DynamicsConfig(depth=4))
  checkpoint.check_run(tmp_path, other)
  save_two(tmp_path / 'dynamics')
  with pytest.raises(ValueError, match=r'^dynamics\.depth = 4'):
    checkpoint.check_run(tmp_path, other)
  checkpoint.check_run(tmp_path / 'missing', other)


def test_arrays_load_without_their_type_whole_or_in_part(tmp_path):
  save_two(tmp_path)
  arrays, config = checkpoint.load_arrays(tmp_path)
  assert config == Config() and set(arrays) == {'params', 'opt', 'step'}
  assert isinstance(arrays['params']['a']['w'], np.ndarray)
  chex.assert_trees_all_equal(
    arrays['params'], jax.device_get(make_state(2.0).params)
  )
  part, _ = checkpoint.load_arrays(tmp_path, only=('params',))
  chex.assert_trees_all_equal(
    part, {'params': jax.device_get(make_state(2.0).params)}
  )
  with pytest.raises(ValueError, match=r"no 'ema'; it has .*'params'"):
    checkpoint.load_arrays(tmp_path, only=('ema',))
  with pytest.raises(FileNotFoundError, match='absent'):
    checkpoint.load_arrays(tmp_path / 'absent')


def test_the_result_of_an_unfinished_phase_comes_with_a_warning(
  tmp_path, caplog
):
  config = Config(phases=Phases(dynamics=DynamicsPhase(steps=20)))
  for step, warned in ((19, True), (20, False)):
    with Checkpoints(tmp_path / 'dynamics') as checkpoints:
      checkpoints.save(step, make_state(2.0), None, config)
    caplog.clear()
    _, found = checkpoint.load_state_dict(tmp_path, 'dynamics', only=('step',))
    assert found == config
    assert ('stopped at step 19 of 20' in caplog.text) == warned
  with pytest.raises(FileNotFoundError, match='tokenizer first'):
    checkpoint.load_state_dict(tmp_path, 'tokenizer')


def test_loading_arrays_falls_back_too_and_moves_nothing(tmp_path):
  save_two(tmp_path)
  for file in files(tmp_path / 'checkpoints/20/state'):
    os.truncate(file, 0)
  before = files(tmp_path)
  arrays, _ = checkpoint.load_arrays(tmp_path)
  assert int(arrays['step']) == 1
  assert files(tmp_path) == before


def test_the_result_of_a_phase_that_keeps_the_best_is_the_best(
  tmp_path, caplog
):
  config = Config(
    phases=Phases(dynamics=DynamicsPhase(steps=20)),
    saving=SavingConfig(best_metric='dynamics/flow'),
  )
  best = Best.of(config.saving, 'dynamics')
  directory = tmp_path / 'dynamics'
  with Checkpoints(directory, best=best) as checkpoints:
    for step, value in ((5, 4.0), (10, 1.0), (15, 3.0), (20, 2.0)):
      state = make_state(step)
      checkpoints.save(step, state, None, config, value=value)
  load = lambda **kwargs: int(
    checkpoint.load_state_dict(tmp_path, 'dynamics', only=('step',), **kwargs)[
      0
    ]['step']
  )
  assert load() == 10
  assert load(which='latest') == 20
  assert int(checkpoint.load_arrays(directory)[0]['step']) == 20
  assert int(checkpoint.load_arrays(directory, best=best)[0]['step']) == 10
  said = lambda: [r for r in caplog.records if r.name.startswith('dreamer4')]
  assert not said()
  os.truncate(directory / 'checkpoints/10/metrics/metrics', 3)
  assert load() == 20 and not said()
  for file in files(directory / 'checkpoints/20/state'):
    os.truncate(file, 0)
  assert load() == 15  # The next best.


def test_the_best_metric_of_another_phase_leaves_the_latest(tmp_path):
  config = Config(saving=SavingConfig(best_metric='dynamics/flow'))
  best = Best.of(config.saving, 'finetune')
  with Checkpoints(tmp_path / 'finetune', best=best) as checkpoints:
    for step, value in ((10, 1.0), (1000, 2.0)):
      checkpoints.save(step, make_state(step), None, config, value=value)
  arrays, _ = checkpoint.load_state_dict(tmp_path, 'finetune', only=('step',))
  assert int(arrays['step']) == 1000


def test_without_values_the_latest_is_the_result(tmp_path, caplog):
  with Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(step), None, Config())
  arrays, _ = checkpoint.load_arrays(tmp_path, best=BEST)
  assert int(arrays['step']) == 2
  assert 'no checkpoint has a value of toy/loss' in caplog.text
