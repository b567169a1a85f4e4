"""Truncated files, full disks, kills."""

import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.checkpoint import Checkpoints, DamagedCheckpointError
from dreamer4_jax.config import Config
from tests.checkpoint.states import BEST, abstract, files, make_state, save_two

# Orbax drops its readers when one of them fails.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)
ROOT = pathlib.Path(__file__).parents[2]


def test_any_truncated_file_leads_back_to_the_one_before(tmp_path, caplog):
  save_two(tmp_path / 'good')
  names = [
    p.relative_to(tmp_path / 'good')
    for p in files(tmp_path / 'good/checkpoints/20')
  ]
  fell_back = []
  for i, name in enumerate(names):
    run = tmp_path / str(i)
    shutil.copytree(tmp_path / 'good', run)
    os.truncate(run / name, (run / name).stat().st_size // 2)
    caplog.clear()
    with Checkpoints(run, best=BEST) as checkpoints:
      with caplog.at_level(logging.WARNING):
        found = checkpoints.restore(abstract(make_state(0.0)))
      warned = [r.getMessage() for r in caplog.records if 'damaged' in r.msg]
      if found.step == 10:
        fell_back.append(name)
        chex.assert_trees_all_equal(found.state, make_state(1.0))
        assert found.data == {'8': b'\x00ten'}
        assert len(warned) == 1 and str(run / 'checkpoints/20') in warned[0]
        assert (run / 'damaged_checkpoint_20').is_dir()
        # Training reaches the damaged step again.
        checkpoints.save(20, make_state(3.0), None, Config())
        checkpoints.wait()
        assert checkpoints.latest() == 20
      else:  # A file that nothing is read from.
        chex.assert_trees_all_equal(found.state, make_state(2.0))
        assert found.data == {'8': b'\xfftwenty'} and not warned
  parts = {p.parts[2] for p in fell_back}
  assert parts == {'state', 'data', 'config', 'info'}
  assert any(p.parts[-2] == 'd' for p in fell_back)


def test_with_nothing_readable_left_it_says_so_and_moves_nothing(tmp_path):
  save_two(tmp_path)
  for file in files(tmp_path):
    os.truncate(file, 0)
  # Metric values that cannot be read are dropped in any case.
  found = lambda: [f for f in files(tmp_path) if 'metrics' not in f.parts]
  before = found()
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(DamagedCheckpointError, match=r'20: .*10: '):
      checkpoints.restore(abstract(make_state(0.0)))
  assert found() == before
  with Checkpoints(tmp_path / 'empty') as checkpoints:
    with pytest.raises(FileNotFoundError, match='no complete checkpoint'):
      checkpoints.restore(abstract(make_state(0.0)))


def test_a_full_disk_keeps_the_complete_checkpoint(tmp_path):
  """A limit on the size of files stands in for the full disk."""
  rng = np.random.default_rng(0)
  big = [{'x': jnp.asarray(rng.random((256, 256)))} for _ in range(2)]
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, big[0], None, Config())
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
      with pytest.raises(
        RuntimeError, match=r'the last complete one .* step 1'
      ):
        checkpoints.save(2, big[1], None, Config())
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, old)
  with Checkpoints(tmp_path) as checkpoints:
    found = checkpoints.restore(abstract(big[0]))
    assert found.step == 1
    chex.assert_trees_all_equal(found.state, big[0])
    checkpoints.save(2, big[1], None, Config())
    checkpoints.wait()
    assert checkpoints.latest() == 2


_SAVE_FOREVER = """
import sys
import jax.numpy as jnp
from dreamer4_jax.checkpoint import Checkpoints
from dreamer4_jax.config import Config
with Checkpoints(sys.argv[1]) as checkpoints:
  for step in range(1, 10_000):
    state = {'x': jnp.full((400, 500), float(step))}
    checkpoints.save(step, state, step, Config())
    checkpoints.wait()
    print(step, flush=True)
"""


@pytest.mark.parametrize('delay', [0.0, 0.013, 0.029])
def test_a_kill_while_saving_costs_no_complete_checkpoint(tmp_path, delay):
  child = subprocess.Popen(
    [sys.executable, '-c', _SAVE_FOREVER, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
  )
  try:
    lines = [child.stdout.readline() for _ in range(3)]
    time.sleep(delay)
  finally:
    child.send_signal(signal.SIGKILL)
  lines += child.communicate()[0].splitlines()
  complete = int(lines[-1])
  with Checkpoints(tmp_path) as checkpoints:
    found = checkpoints.restore(abstract({'x': jnp.zeros((400, 500))}))
    assert found.step in (complete, complete + 1)
    assert found.data == found.step
    np.testing.assert_array_equal(found.state['x'], float(found.step))
    checkpoints.save(found.step + 1, {'x': jnp.zeros(1)}, None, Config())


def test_a_damaged_value_costs_no_checkpoint(tmp_path, caplog):
  save_two(tmp_path)
  file = tmp_path / 'checkpoints/10/metrics/metrics'
  os.truncate(file, 3)
  with Checkpoints(tmp_path, keep_last=1, best=BEST) as checkpoints:
    assert str(file) in caplog.text
    found = checkpoints.restore(abstract(make_state(0.0)), step=10)
    chex.assert_trees_all_equal(found.state, make_state(1.0))
    # It was the best before.
    checkpoints.save(30, make_state(3.0), None, Config(), value=3.0)
    checkpoints.wait()
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['20', '30']
