"""The experiments that ship can be trained, and fit their environments."""

import runpy

import numpy as np
import pytest

from data_pipelines import collect, players
from dreamer4_jax.config import PHASES, EnvConfig, experiments
from dreamer4_jax.envs import make_env
from dreamer4_jax.training import checks
from experiments import doctor_faults

MOST_LINES = 41
DOORKEY = ('quickstart', 'doorkey_play', 'doorkey_small', 'doorkey_mixture')


def load(name):
  return runpy.run_path(str(experiments.find(name)))


@pytest.mark.parametrize('name', experiments.shipped())
def test_an_experiment_has_what_the_command_needs(name):
  defined = load(name)
  assert callable(defined['record']) and callable(defined['pretokenise'])
  defined['config'].check_context(PHASES)


def test_experiments_are_read_at_a_glance():
  lines = {
    name: len(experiments.find(name).read_text().splitlines())
    for name in experiments.shipped()
  }
  # The others of their environments derive from these two.
  for name in ('quickstart', 'craftax_diamond'):
    lines.pop(name)
  assert len(lines) >= 6 and max(lines.values()) <= MOST_LINES, lines


def test_sweeps_are_no_experiments():
  names = {p.stem for p in experiments.find('pong').parent.glob('*.py')}
  sweeps = {'cascade', 'action_labels', 'doctor_faults'}
  assert sweeps < names and not sweeps & set(experiments.shipped())
  assert {'craftax_diamond', 'craftax_gpu'} <= set(experiments.shipped())


def test_those_of_doorkey_differ_by_what_was_recorded():
  configs = [load(name)['config'] for name in DOORKEY]
  assert len({c.data.path for c in configs}) == 4
  for config in configs:
    assert checks.check_environment(config).spec.tiles.side == 8
  base, play, *_ = configs
  assert (play.tokenizer, play.dynamics) == (base.tokenizer, base.dynamics)


@pytest.mark.parametrize('name', DOORKEY)
def test_what_is_recorded_can_be_played(name, tmp_path, monkeypatch):
  defined, asked, measured = load(name), [], []
  monkeypatch.setattr(collect, 'collect', asked.append)
  monkeypatch.setattr(
    collect.novelty, 'measure_dataset', lambda *of: measured.append(of)
  )
  path = str(tmp_path)
  defined['record'](defined['config'].edit({'data.sources.0.path': path}))
  (settings,) = asked
  env = make_env(EnvConfig(name=settings.env, max_steps=settings.max_steps))
  players.check_player(settings.policy, env, settings.env, settings.run)
  assert settings.out == str(tmp_path)
  rare = defined['config'].data.novel_share > 0
  assert measured == [(str(tmp_path), 'train')] * rare


def test_rows_that_are_moved_on_purpose_lose_nothing():
  steps = {
    'action': {'move': np.arange(5)},
    'reward': np.array([0, 0, 0, 1, 0], np.float32),
    'events': np.array([[1, 0], [0, 0], [0, 0], [0, 1], [0, 0]], np.uint8),
  }
  late = doctor_faults.late(steps)
  assert late['action']['move'].tolist() == [0, 0, 1, 2, 3]
  assert late['reward'] is steps['reward']
  early = doctor_faults.early(steps)
  assert early['reward'].tolist() == [0, 0, 1, 0, 0]
  assert early['events'].tolist() == [[1, 0], [0, 0], [0, 1], [0, 0], [0, 0]]
  assert early['events'].dtype == np.uint8
  assert early['action'] is steps['action']


def test_a_fault_is_named_by_its_own_figures_alone():
  fault = doctor_faults.FAULTS['early-tokenizer']
  finding = lambda name, verdict: {'name': name, 'verdict': verdict}
  assert doctor_faults.named([finding('player right, door', 'wrong')], fault)
  others = [finding('PSNR', 'look'), finding('steps', 'wrong')]
  assert not doctor_faults.named(others, fault)
