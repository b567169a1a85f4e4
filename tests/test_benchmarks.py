"""The benchmarks on the smallest sizes: what they count, time and write."""

import dataclasses
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from benchmarks import harness, imagination, interactive, suite, train
from dreamer4_jax.aot.flops import count_flops


def cases_of(times, warm=True):
  """Cases that only note that they ran."""
  return lambda settings: {
    name: harness.Case(run=lambda n=name: times.append(n), warm=warm, flops=1e9)
    for name in ('a', 'b')
  }


def test_programs_take_turns_and_are_warm():
  ran = []
  cases = cases_of(ran)(None)
  slow = {
    name: harness.Case(run=lambda c=case: (c.run(), time.sleep(0.21)))
    for name, case in cases.items()
  }
  seconds = harness.time_in_turns(slow, 2)
  # Each runs twice beforehand, then once per turn, since it takes long enough.
  assert ran == ['a', 'a', 'b', 'b', 'a', 'b', 'a', 'b']
  assert all(len(x) == 2 and min(x) >= 0.2 for x in seconds.values())


def test_what_compiles_is_not_run_before():
  ran = []
  harness.time_in_turns(cases_of(ran, warm=False)(None), 1)
  assert ran == ['a', 'b']


def test_two_configurations_are_compared(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['x', '--repeats', '1', '--compare', 'k=2'])
  monkeypatch.setattr(harness, 'measure_matmul', lambda dtype: one())
  monkeypatch.setattr(harness, 'measure_copy', one)
  seen = []

  def make(settings):
    seen.append(settings)
    return cases_of([])(settings)

  harness.main(Sized, make, lambda s, seconds: {'k': s.k, 'n': len(seconds)})
  printed = json.loads(capsys.readouterr().out)
  assert [s.k for s in seen] == [1, 2] and seen[1].repeats == 1
  assert (printed['k'], printed['second']['k']) == (1, 2)
  assert set(printed['ratios']) == {'a', 'b'}
  assert printed['programs']['a']['share_of_matmul'] > 0
  assert printed['machine']['jax'] == jax.__version__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sized(harness.Settings):
  k: int = 1


def one():
  return harness.Case(run=lambda: None, flops=1.0)


def test_a_preset_that_is_not_there_is_named():
  with pytest.raises(ValueError, match=r"preset = 'huge': must be one of tiny"):
    train.make_cases(train.Train(preset='huge'))


@pytest.mark.parametrize(
  'settings, make, pattern',
  [
    ({'repeats': 0}, train.Train, 'repeats = 0'),
    ({'length': 3}, train.Train, 'length = 3'),
    ({'play': 5}, interactive.Interactive, 'play = 5'),
    ({'batches': ()}, imagination.Imagination, 'batches = '),
    ({'only': ('nothing',), 'device': 'cpu'}, suite.Suite, "only = 'nothing'"),
  ],
)
def test_settings_that_cannot_work_are_named(settings, make, pattern):
  with pytest.raises(ValueError, match=pattern):
    make(**settings)


@pytest.fixture
def counted(monkeypatch):
  """Counts products without compiling anything."""

  def case_of(fn, *args, **fields):
    traced = jax.make_jaxpr(fn)(*args)
    return harness.Case(run=None, flops=count_flops(traced), **fields)

  def stepping_case(fn, state, *args, **fields):
    return case_of(fn, state, jnp.uint32(0), *args, **fields)

  monkeypatch.setattr(harness, 'case_of', case_of)
  monkeypatch.setattr(harness, 'stepping_case', stepping_case)


def dynamics_case(remat):
  settings = train.Train(
    preset='tiny', phases=('dynamics',), length=4, remat=remat
  )
  return train.make_cases(settings)['dynamics']


def test_products_count_once_whatever_is_computed_again(counted):
  none, full = dynamics_case('none'), dynamics_case('full')
  assert none.flops == full.flops > 0
  assert none.frames == 8 * 4


def test_a_train_step_runs_on_the_state_that_it_left():
  case = dynamics_case('none')
  case.run()
  case.run()


def test_a_frame_is_its_passes_and_a_picture():
  settings = interactive.Interactive(preset='tiny', steps=2, play=200)
  cases = interactive.make_cases(settings)
  flops = {name: case.flops for name, case in cases.items()}
  assert flops['frame'] == flops['dynamics_frame'] + flops['picture']
  # The two frames of the first pass are compared with each other as well.
  ratio = flops['dynamics_frame'] / (flops['passes'] / 2 * 3)
  assert 1 < ratio < 1.01
  for case in cases.values():
    case.run()
    case.run()
  seconds = {'frame': 4.0, 'late_frame': 4.0, 'dynamics_frame': 3.0}
  seconds |= {'passes': 2.0, 'picture': 1.0}
  found = interactive.summarise(settings, seconds)
  assert found['frame_over_its_passes_and_picture'] == 1.0
  assert found['dynamics_frame_over_its_passes'] == 1.0
  assert found['play']['frames'] == 200


def test_a_rollout_is_its_passes(counted):
  s = imagination.Imagination(preset='tiny', batches=(2,), context=3, horizon=4)
  flops = {k: c.flops for k, c in imagination.make_cases(s).items()}
  heads = flops['rollout_2'] - flops['context_2']
  heads -= 4 * (4 * flops['pass_2'] + flops['append_2'])
  # The policy's, once a frame: little beside the transformer's passes.
  assert 0 <= heads < 0.05 * flops['rollout_2']


def test_the_suite_goes_on_and_says_what_is_missing(tmp_path):
  called = []

  def run(command, **kwargs):
    called.append(command[2:])
    bad = 'train' in command[2]
    printed = {
      'ratio': 1.25,
      'programs': {},
      'machine': {'device': 'z80', 'cores': 1, 'jax': '1', 'date': 'today'},
      'commit': 'abc',
    }
    return subprocess.CompletedProcess(
      command, int(bad), json.dumps(printed), 'why\nout of memory\n'
    )

  chosen = suite.Suite(
    device='cpu', results=tmp_path, only=('compile-time', 'train-reference')
  )
  assert suite.main(chosen, run) == {'train-reference': 'out of memory'}
  assert called == [['benchmarks.compile_time'], ['benchmarks.train']]
  table = (tmp_path / 'README.md').read_text()
  assert '| 1.25 |' in table and 'z80, 1 cores, jax 1, today, abc' in table
  rows = [x for x in table.splitlines() if x.startswith('| ')]
  assert sum('not yet measured' in x for x in rows) == len(rows) - 2 - 1
  suite.main(chosen, run)
  assert len(called) == 3  # What is there is not measured again.


def test_the_table_in_the_repository_is_that_of_its_results(tmp_path):
  for file in suite.RESULTS.rglob('*.json'):
    copy = tmp_path / file.relative_to(suite.RESULTS)
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(file.read_text())
  suite.write_table(tmp_path)
  expected = (tmp_path / 'README.md').read_text()
  assert (suite.RESULTS / 'README.md').read_text() == expected


def test_a_case_donates_its_state_and_keeps_its_arguments():
  case = harness.stepping_case(
    lambda x, n, y: (x @ y, x + y), jnp.zeros((4, 4)), jnp.ones((4, 4))
  )
  case.run()
  case.run()
  assert case.flops == 2 * 4**3
