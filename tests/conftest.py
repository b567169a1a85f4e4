"""Settings of the whole test suite; made before JAX starts its backend."""

import gc
import logging
import os
import pathlib

import jax
import pytest

NUM_DEVICES = 8
_CACHE = pathlib.Path(__file__).parents[1] / '.cache' / 'jax'

# Most of the time goes into compiling programs that run for milliseconds.
# Processes that tests start inherit this.
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_backend_optimization_level=0'
)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.02'
# Tracing makes so many objects that looking for garbage takes a tenth.
gc.set_threshold(200_000, 50, 1000)

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', NUM_DEVICES)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_compilation_cache_dir', str(_CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.02)

_LONGEST = (
  'test_quickstart.py',
  'test_craftax_player.py',
  'test_distributed.py',
  'test_many_devices.py',
  'test_pong.py',
  'test_benchmarks.py',
  'test_pretokenise.py',
  'test_jobs.py',
  'test_recorders.py',
  'test_collect.py',
  'test_imagination_step.py',
  'test_finetune_step.py',
  'test_fields.py',
)
# Trains, evaluates and reports as a user does, so it is never left out.
_FIRST = ('test_run.py', *_LONGEST)


def pytest_addoption(parser):
  parser.addoption(
    '--skip-longest',
    action='store_true',
    help=f'leave out {", ".join(_LONGEST)}',
  )


def pytest_collection_modifyitems(config, items):
  """Begins with the longest files, so that no process waits for them."""
  items.sort(key=lambda item: item.path.name not in _FIRST)
  if config.getoption('--skip-longest'):
    left_out = [item for item in items if item.path.name in _LONGEST]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item.path.name not in _LONGEST]


@pytest.fixture(autouse=True)
def quiet():
  """Undoes what a command sets, lest other tests depend on having it run."""
  logger = logging.getLogger('dreamer4_jax')
  level = logger.level
  yield
  logger.setLevel(level)


@pytest.fixture(scope='session')
def recording_config(tmp_path_factory):
  """How a tiny dataset of the 5x5 level is recorded, once."""
  pytest.importorskip('navix')
  from data_pipelines import collect

  return collect.CollectConfig(
    out=str(tmp_path_factory.mktemp('data') / 'tiny'),
    env='navix:Navix-DoorKey-Random-5x5-v0',
    episodes=24,
    test_episodes=5,
    noise=(0.0, 0.6, 1.0),
    max_steps=30,
    seed=3,
    parallel=16,
    workers=1,
  )


@pytest.fixture(scope='session')
def recording_report(recording_config):
  from data_pipelines import collect

  return collect.collect(recording_config, progress=False)


@pytest.fixture(scope='session')
def recording(recording_config, recording_report):
  return recording_config.out
