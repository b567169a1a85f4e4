"""Which steps are long and which bootstrap, against counting by hand."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from dreamer4_jax.config import PHASES, Config
from dreamer4_jax.training.schedule import bootstraps, clip_length_at, is_long

LONG = 'data.long_every'
LAST = 'data.long_only_share'
START = 'phases.dynamics.bootstrap_start'


def config_of(fields=(), steps=60, lengths=(4, 9)):
  """A run in which dynamics has these steps, and other phases none alike."""
  own = {'steps': steps, 'clip_lengths': lengths}
  own = {f'phases.dynamics.{name}': value for name, value in own.items()}
  return Config().edit({**own, **dict(fields)})


def lengths(config, phase='dynamics'):
  steps = range(getattr(config.phases, phase).steps)
  return [clip_length_at(step, config, phase) for step in steps]


def test_every_nth_step_is_long_and_the_last_all():
  config = config_of({LONG: 4}, 10)
  assert lengths(config) == [4, 4, 4, 9, 4, 4, 4, 9, 4, 4]
  config = config_of({LONG: 4, LAST: 0.3}, 10)
  assert lengths(config) == [4, 4, 4, 9, 4, 4, 4, 9, 9, 9]
  config = config_of({LONG: 3, LAST: 1.0}, 10)
  assert lengths(config) == [9] * 10
  assert lengths(config_of({LONG: 1}, 3)) == [9] * 3
  assert lengths(config_of({LONG: 1, LAST: 1.0}, 3, (4,))) == [4] * 3


@pytest.mark.parametrize('phase', PHASES)
def test_each_phase_has_lengths_of_its_own(phase):
  fields = {f'phases.{phase}.steps': 5, f'phases.{phase}.clip_lengths': (2, 3)}
  config = config_of({LONG: 2, **fields})
  assert lengths(config, phase) == [2, 3, 2, 3, 2]


@pytest.mark.parametrize(
  'every', [*itertools.product([1, 2, 3, 4, 6], [1, 2, 4])]
)
@pytest.mark.parametrize('last', [0.0, 0.25])
@pytest.mark.parametrize('start', [0, 7])
def test_long_and_short_clips_bootstrap_equally_often(every, last, start):
  bootstrap, long = every
  config = config_of({LONG: long, LAST: last, START: start})
  counts = {4: 0, 9: 0}
  for step, length in enumerate(lengths(config)):
    # Steps of each kind are counted separately.
    expected = step >= start and counts[length] % bootstrap == 0
    assert bool(bootstraps(step, config, 'dynamics', bootstrap)) == expected
    counts[length] += 1


def test_a_traced_step_gives_the_same():
  config = config_of({LAST: 0.2, START: 5})
  both = lambda s: (
    is_long(s, config, 'dynamics'),
    bootstraps(s, config, 'dynamics', 3),
  )
  traced = jax.jit(both)(jnp.arange(60))
  plain = [both(s) for s in range(60)]
  assert traced[0].tolist() == [bool(a) for a, _ in plain]
  assert traced[1].tolist() == [bool(b) for _, b in plain]
  assert 0 < sum(traced[1].tolist()) < 30


def test_without_long_clips_steps_count_alone():
  config = config_of(lengths=(4,))
  found = [bool(bootstraps(s, config, 'dynamics', 2)) for s in range(4)]
  assert found == [True, False] * 2


def test_phases_after_the_dynamics_bootstrap_from_the_first_step_on():
  config = config_of({START: 5})
  found = lambda phase: [bool(bootstraps(s, config, phase)) for s in range(6)]
  assert found('dynamics') == [False] * 5 + [True]
  assert found('finetune') == found('imagination') == [True] * 6
