"""Jobs on devices of this machine, in place of a topology's."""

import dataclasses
import importlib.util
import json

import jax
import pytest

from dreamer4_jax.aot import Job, compile_job, describe, jobs
from dreamer4_jax.aot.report import write_report
from dreamer4_jax.cli.main import main
from dreamer4_jax.config import MeshConfig

JOB = Job(preset='tiny', topology='v5p:2x2x2', length=4, rows=4)


@pytest.fixture
def here(monkeypatch):
  monkeypatch.setattr(
    jobs, 'open_topology', lambda name: (jax.devices(), 'v5p')
  )


def test_the_dynamics_step_is_measured(here, tmp_path):
  said = []
  # With remat: otherwise the gathered weights would be kept.
  job = dataclasses.replace(JOB, remat='dots')
  m = compile_job(job, said.append, tmp_path / 'hlo.txt')
  assert said[0] == (
    'tiny dynamics 4 frames v5p:2x2x2 data=1,fsdp=-1,tensor=1 remat=dots: '
    'tracing'
  )
  assert (tmp_path / 'hlo.txt').read_text().startswith('HloModule')
  assert m.devices == 8
  # 0.1 M by the table of presets, for another action space; in float32 with
  # two moments and the average, an eighth of it on each device.
  assert 0.1e6 < m.parameters < 0.2e6
  assert 16 * m.parameters / 8 < m.arguments < 1.3 * 16 * m.parameters / 8
  # No product is computed twice.
  assert 0 < m.model_flops <= m.executed_flops < 1.01 * m.model_flops
  # Weights are gathered in each of: two bootstrap passes, forward, backward.
  assert m.collectives['all-gather'][0] > 4 * 14
  assert m.used < m.memory and 0.9 < m.spare < 1
  assert '| spare' in describe(m)


@pytest.fixture
def not_compiled(here, monkeypatch):
  monkeypatch.setattr(jobs, 'measure', lambda compiled, **found: found)
  monkeypatch.setattr(jax.stages.Lowered, 'compile', lambda self, **_: None)


def test_what_is_computed_again_is_executed_but_not_of_the_model(not_compiled):
  plain, full = (
    compile_job(dataclasses.replace(JOB, remat=remat))
    for remat in ('none', 'full')
  )
  assert full['model_flops'] == plain['model_flops']
  # The forward pass once more, beside two bootstrap passes of a quarter of the
  # rows, forward, and backward, which is twice the forward pass.
  assert 1.2 < full['executed_flops'] / plain['executed_flops'] < 1.3


def test_twice_the_rows_are_twice_the_arithmetic(not_compiled):
  one, two = (
    compile_job(dataclasses.replace(JOB, program='frame', rows=rows))
    for rows in (1, 2)
  )
  assert two['model_flops'] == 2 * one['model_flops']
  assert two['parameters'] == one['parameters']


def test_a_mesh_that_does_not_divide_the_heads_is_named(here):
  job = dataclasses.replace(JOB, mesh=MeshConfig(data=-1, tensor=2))
  with pytest.raises(ValueError, match=r'mesh\.tensor = 2: must divide 1'):
    compile_job(job)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--topology', 'v9:2x2'], "topology = 'v9:2x2': must be CHIP:TORUS or"),
    (['--topology', 'v5p'], "topology = 'v5p': must be CHIP:TORUS or"),
    (['--preset', 'huge'], "preset = 'huge': must be one of tiny, small"),
    (['--phase', 'play'], "phase = 'play': must be one of tokenizer"),
    (['--mesh', 'data=2,rows=3'], "'rows' is no axis"),
    (['--length', '0'], 'length = 0: must be at least 1'),
  ],
)
def test_mistakes_are_named(arguments, message, capsys):
  assert main(['compile', *arguments]) == 2
  assert message in capsys.readouterr().err


def test_without_libtpu_the_remedy_is_named(monkeypatch, capsys):
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert main(['compile', '--topology', 'v5p:2x2x1']) == 2
  assert "pip install -e '.[tpu]'" in capsys.readouterr().err


def test_a_report_goes_on_where_it_was_interrupted(here, tmp_path, monkeypatch):
  path, asked = tmp_path / 'tpu.md', []
  first, second, third = (
    dataclasses.replace(JOB, length=n) for n in (4, 8, 16)
  )
  sample = _sample()

  def measure(job, say):
    asked.append(job.length)
    if job is third and len(asked) == 3:
      raise KeyboardInterrupt
    if job is second:
      raise RuntimeError('RESOURCE_EXHAUSTED: of memory\nand more')
    return sample

  with pytest.raises(KeyboardInterrupt):
    write_report(path, (first, second, third), measure=measure)
  text = path.read_text()
  assert '| dynamics | 4 | v5p:2x2x2 | 1, -1, 1 | 3.0 of 95 GiB | 97% |' in text
  assert (
    '| 8 | v5p:2x2x2 | 1, -1, 1 | does not fit: RESOURCE_EXHAUSTED: of' in text
  )
  assert '| 16 |' not in text and 'and more' not in text
  write_report(path, (first, second, third), measure=measure)
  assert asked == [4, 8, 16, 16]
  # 2 s of computing, 1 s on the links; a second's worth of FLOPs at the peak.
  assert '| 97% | 2 s | 1 s | 33.3% to 50.0% |' in path.read_text()
  assert len(json.loads((tmp_path / 'tpu.json').read_text())) == 3
  # Another compiler says something else.
  monkeypatch.setattr(jax, '__version__', '99.0')
  write_report(path, (first,), measure=measure)
  assert asked == [4, 8, 16, 16, 4]
  assert 'with jax 99.0 and\nlibtpu' in path.read_text()


def _sample():
  from dreamer4_jax.aot.analysis import Measured

  return Measured(
    chip='v5p',
    devices=8,
    parameters=1000,
    model_flops=4.59e14,
    executed_flops=5e14,
    arguments=1 << 30,
    outputs=0,
    temporaries=1 << 31,
    code=0,
    computing=2.0,
    # 540 GB a second over all links, and sums travel twice.
    collectives={'all-gather': (3, 270e9), 'all-reduce': (1, 135e9)},
    seconds_to_compile=3.0,
  )


def test_an_experiment_is_compiled_with_its_own_batches(not_compiled):
  job = dataclasses.replace(
    JOB, experiment='quickstart', mesh=MeshConfig(data=1, fsdp=1)
  )
  found = compile_job(job)
  # Twice the preset's batch is nothing to it.
  assert found == compile_job(dataclasses.replace(job, rows=8)) | {
    'seconds_to_compile': found['seconds_to_compile']
  }
  assert 1e5 < found['parameters'] < 2e6
