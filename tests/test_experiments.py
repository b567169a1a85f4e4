"""The experiments that ship can be trained, and fit their environments."""

import runpy

import pytest

from dreamer4_jax.cli import checks, experiments
from dreamer4_jax.config import PHASES

DOORKEY = ('quickstart', 'doorkey_play', 'doorkey_mixture')


def load(name):
  return runpy.run_path(str(experiments.find(name)))


@pytest.mark.parametrize('name', experiments.shipped())
def test_an_experiment_has_what_the_command_needs(name):
  defined = load(name)
  assert defined['config'].name == name
  assert callable(defined['record']) and callable(defined['pretokenise'])
  defined['config'].check_context(PHASES)


def test_those_of_doorkey_differ_by_what_was_recorded():
  configs = [load(name)['config'] for name in DOORKEY]
  assert len({c.data.path for c in configs}) == 3
  for config in configs:
    assert checks.check_environment(config).spec.tiles.side == 8
  base, play, _ = configs
  assert (play.tokenizer, play.dynamics) == (base.tokenizer, base.dynamics)
