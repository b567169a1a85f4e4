"""The processes that record: what they say, and how they end."""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from data_pipelines import collect
from dreamer4_jax.data import EpisodeSource

pytest.importorskip('navix')

ROOT = pathlib.Path(__file__).parents[2]
ENDLESS = 10**6


def settings(out, **kwargs):
  """Two processes with one environment each, which play a step at a time.

  So a recording of few episodes takes long enough to be disturbed.
  """
  return collect.CollectConfig(
    **{
      'out': str(out),
      'env': 'navix:Navix-DoorKey-Random-5x5-v0',
      'policy': 'random',
      'episodes': 24,
      'test_episodes': 24,
      'max_steps': 12,
      'parallel': 2,
      'block': 1,
      'workers': 2,
      **kwargs,
    }
  )


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
  """New processes share nearly all their programs through the disk."""
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')


def wait_for(condition, seconds=300):
  """Waits until a condition holds; returns what it gave."""
  end = time.monotonic() + seconds
  while not (found := condition()):
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.005)
  return found


def test_an_error_arrives_as_it_was(tmp_path):
  config = settings(tmp_path / 'd', policy='checkpoint', run='no/such/run')
  numbers = {'train': range(2), 'test': range(2)}
  shares = collect._deal(config, numbers, tmp_path)
  with pytest.raises(FileNotFoundError, match='no/such/run') as caught:
    collect._play_in_processes(shares, lambda count: None)
  (note,) = caught.value.__notes__
  assert 'in _child' in note and 'in load_params' in note
  assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_killed_recorder_stops_the_others_and_costs_nothing(tmp_path):
  config = settings(tmp_path / 'd')
  seen = []

  def kill():
    # The second process has begun to write, and has more to do.
    wait_for(lambda: list(tmp_path.glob('.*/train-1-*')))
    seen.extend(sorted(p.pid for p in multiprocessing.active_children()))
    os.kill(seen[-1], signal.SIGKILL)

  killer = threading.Thread(target=kill)
  killer.start()
  with pytest.raises(RuntimeError, match=r'ended with code -9, .*--workers 1'):
    collect.collect(config, progress=False)
  killer.join()
  assert seen and not multiprocessing.active_children()
  for pid in seen:
    with pytest.raises(ProcessLookupError):
      os.kill(pid, 0)
  assert not (tmp_path / 'd').exists()
  # Half of a recording is there, and the same command completes it.
  assert list(tmp_path.glob('.*/train-*'))
  report = collect.collect(config, progress=False)
  assert report['train']['episodes'] == report['test']['episodes'] == 24
  whole = dataclasses.replace(
    config, out=str(tmp_path / 'whole'), workers=1, parallel=1
  )
  collect.collect(whole, progress=False)
  for split in ('train', 'test'):
    a, b = (EpisodeSource(c.out, split) for c in (config, whole))
    assert len(a) == len(b) == 24
    for i in range(24):
      np.testing.assert_equal(a[i], b[i])


PARENT = """
import sys
from data_pipelines import collect
from tests.data_pipelines import test_recorders as test
collect.collect(test.settings(sys.argv[1], episodes=test.ENDLESS))
"""


@pytest.mark.slow
def test_recorders_end_with_their_parent(tmp_path):
  env = {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
  }
  parent = subprocess.Popen(
    [sys.executable, '-c', PARENT, str(tmp_path / 'd')],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    start_new_session=True,
  )
  try:
    for i in range(2):
      wait_for(lambda i=i: list(tmp_path.glob(f'.*/train-{i}-*')))
    assert parent.poll() is None
    parent.kill()
    # The pipe ends when nobody is left who could write to it.
    parent.communicate(timeout=30)
    assert parent.returncode == -signal.SIGKILL
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(parent.pid, signal.SIGKILL)
