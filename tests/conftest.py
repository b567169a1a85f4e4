"""Settings of the whole test suite; made before JAX starts its backend."""

import gc
import logging
import os
import pathlib

# Before NumPy is imported: where several processes share the cores, threads of
# each that wait for one another take several times the time of one.
os.environ['OPENBLAS_NUM_THREADS'] = '1'

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

# What takes longest comes first.
_LONGEST = (
  'cli/test_run.py',
  'test_distributed.py',
  'test_quickstart.py',
  'test_pong.py',
  'training/test_imagination_step.py',
  'training/test_finetune_step.py',
  'training/test_many_devices.py',
  'play/test_dream.py',
  'data_pipelines/test_recorders.py',
  'play/test_ppo.py',
  'data_pipelines/test_collect.py',
  'data_pipelines/test_craftax_player.py',
  'data_pipelines/test_pretokenise.py',
  'envs/test_craftax_env.py',
  'evals/test_check.py',
  'test_benchmarks.py',
  'training/test_world_rate.py',
)
_INTERFACES = (
  'checkpoint/',
  'cli/test_run.py',
  'data/test_records.py',
  'data/test_transforms.py',
  'data_pipelines/test_lerobot.py',
  'data_pipelines/test_minari.py',
  'data_pipelines/test_rlds.py',
  'data_pipelines/test_video.py',
  'envs/',
  'evals/test_dataset.py',
  'evals/test_page.py',
  'evals/test_reality.py',
  'evals/test_report.py',
  'evals/test_seeds.py',
  'evals/test_similarity.py',
  'evals/test_statistics.py',
  'evals/test_tiles.py',
  'evals/test_video.py',
  'nn/test_alone.py',
  'nn/test_attention.py',
  'nn/test_backends.py',
  'nn/test_gpu_attention.py',
  'play/test_env.py',
  'play/test_loading.py',
  'serve/test_server.py',
  'test_devices.py',
  'test_exported.py',
  'test_sharding.py',
  'training/test_loop.py',
  'training/test_optimizer_step.py',
)
_ROOT = pathlib.Path(__file__).parent


def pytest_addoption(parser):
  parser.addoption(
    '--interfaces',
    action='store_true',
    help='only what leans on other packages, a whole run of all phases among '
    f'it: {", ".join(_INTERFACES)}',
  )


def pytest_configure(config):
  config.addinivalue_line(
    'markers',
    'slow: whole trainings, kills and several processes; more than ten seconds '
    'of computing',
  )


def _is_in(item, paths):
  return str(item.path.relative_to(_ROOT)).startswith(paths)


def _rank(item):
  found = (i for i, path in enumerate(_LONGEST) if _is_in(item, path))
  return next(found, len(_LONGEST))


def pytest_collection_modifyitems(config, items):
  """Begins with the longest files, so that no process waits for them."""
  items.sort(key=_rank)
  if config.getoption('--interfaces'):
    left_out = [item for item in items if not _is_in(item, _INTERFACES)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if _is_in(item, _INTERFACES)]


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
