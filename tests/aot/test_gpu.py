"""Programs for GPUs that are not there.

Compiling needs JAX's plugin for CUDA (the extra `cuda`), but no GPU.
"""

import importlib.util
import json

import pytest

from dreamer4_jax.aot import CHIPS, Job, compile_job, describe, standard
from dreamer4_jax.aot.analysis import Measured
from dreamer4_jax.aot.report import GPU_STANDARD, write_report
from dreamer4_jax.cli.main import main
from dreamer4_jax.config import MeshConfig

needs_plugin = pytest.mark.skipif(
  importlib.util.find_spec('jax_cuda12_plugin') is None,
  reason="needs the extra cuda, JAX's plugin",
)


@pytest.mark.parametrize(
  ('topology', 'message'),
  [
    ('h100', "topology = 'h100': must be CHIP:TORUS or GPU:NUMBER"),
    ('h100:9', "topology = 'h100:9': must be GPU:NUMBER with 1 to 8 GPUs"),
    ('h100:2x2', "topology = 'h100:2x2': must be GPU:NUMBER"),
    ('h300:1', "topology = 'h300:1': must be CHIP:TORUS or GPU:NUMBER"),
  ],
)
def test_mistakes_are_named(topology, message, capsys):
  assert main(['compile', '--topology', topology]) == 2
  assert message in capsys.readouterr().err


def test_without_the_plugin_the_remedy_is_named(monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert main(['compile', '--topology', 'h100:1']) == 2
  assert "pip install -e '.[cuda]'" in capsys.readouterr().err


def test_every_gpu_is_described_to_the_compiler():
  for chip in (CHIPS[name] for name in ('a100', 'h100', 'h200', 'b200')):
    assert chip.platform == 'gpu' and chip.bandwidth > 2e12
    text = chip.gpu.target(chip)
    assert text.count('{') == text.count('}')
    assert f'name: "{chip.gpu.name}"' in text
    # What a block may ask for is a kibibyte less than there is.
    assert f'block_optin: {chip.gpu.shared - 1024}' in text
  assert CHIPS['v5p'].platform == 'tpu'


def measured(**changes):
  kernel = {
    'kind': 'product', 'name': 'custom-call.1',
    'op': 'jit(f)/while/periods/space_0/mlp/gate/dot_general',
    'source': 'dreamer4_jax/nn/layers.py:114', 'count': 36, 'bytes': 52e6,
    'flops': 12e9, 'seconds': 24e-6,
  }  # fmt: skip
  fields = dict(
    chip='h100', devices=1, parameters=1000, model_flops=4.945e12,
    executed_flops=5e12, arguments=1 << 30, outputs=0, temporaries=1 << 28,
    code=0, computing=0.02, collectives={}, seconds_to_compile=3.0,
    kernels={'product': {'count': 36, 'bytes': 1e9, 'flops': 4e11,
                         'seconds': 0.02}},
    costliest=[kernel],
  )  # fmt: skip
  return Measured(**fields | changes)


def test_kernels_are_described():
  text = describe(measured())
  assert '| product | 36 | 20.00 | 1.00 | 0.400 |' in text
  # What it is for, and where it is in the code.
  assert (
    '| product custom-call.1 | 36 | 24.0 | 52.0 | space_0/mlp/gate '
    'dreamer4_jax/nn/layers.py:114 |'
  ) in text
  # Not of a TPU, of which the compiler tells nothing.
  assert 'takes longest' not in describe(measured(chip='v5p', kernels={}))


def test_gpus_have_a_list_and_a_table_of_their_own(tmp_path):
  assert standard('h200:1') is GPU_STANDARD
  assert all(job.topology[0] == 'v' for job in standard('v5p:8x8x4'))
  jobs = (
    Job(program='frame', topology='h100:1', mesh=MeshConfig(), rows=4),
    Job(topology='h100:8', length=64),
    Job(topology='h100:1', rows=99),
  )

  def measure(job, say):
    if job.rows == 99:
      raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory')
    if job.topology == 'h100:8':
      # A second of computing and a second on NVLink.
      return measured(
        devices=8, computing=1.0, collectives={'all-gather': (1, 450e9)}
      )
    return measured()

  path = tmp_path / 'gpu.md'
  write_report(path, jobs, measure=measure)
  text = path.read_text()
  # Four games in 20 ms; a quarter of a second's worth of the peak.
  assert (
    '| paper frame, K = 4 | 4 | h100:1 | 1.2 of 79 | 0.25 | 36 | 20.0 | 200 '
    '| 25% |'
  ) in text
  assert '| h100:8 | 1.2 of 79 | 0.25 | 36 | 2000.0 | 256 | 0% |' in text
  assert '| 99 | h100:1 | does not fit: RESOURCE_EXHAUSTED' in text
  assert len(json.loads((tmp_path / 'gpu.json').read_text())) == 3


@needs_plugin
def test_a_frame_of_the_paper_keeps_its_rings_in_place(tmp_path):
  path = tmp_path / 'hlo.txt'
  mesh = MeshConfig(data=1, fsdp=1)
  job = Job(program='frame', topology='h100:1', mesh=mesh)
  m = compile_job(job, text=path)
  assert m.num_kernels <= 2000
  assert m.temporaries < 0.5 * 2**30
  # Estimated; docs/gpu_report.md has what it is.
  assert m.computing < 0.018
  kernels = _kernels(path)
  copied = [k for k in kernels if k.kind in ('copy', 'transpose')]
  assert max(k.bytes for k in copied) < 32e6
  # The new keys and values of 1,472 tokens are written where the ring is, of
  # 4.6 GB.
  moved = [k for k in kernels if k.kind not in ('product', 'attention')]
  assert max(k.bytes for k in moved) < 50e6
  rings = [k for k in kernels if 'attention_ring' in k.op]
  # 9 time layers a pass, 4 of the decoder.
  assert sum(k.count for k in rings) == 9 * 4 + 4


def _kernels(path):
  from dreamer4_jax.aot.hlo import Program
  from dreamer4_jax.aot.kernels import list_kernels

  return list_kernels(Program(path.read_text()), CHIPS['h100'])
