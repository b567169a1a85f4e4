"""Weights to safetensors and back."""

import json
import os
import pathlib
import stat
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import safe_open

from dreamer4_jax.checkpoint import Checkpoints, exported
from dreamer4_jax.cli.main import main
from dreamer4_jax.models import World
from tests.models.tiny_world import CONFIG


@pytest.fixture(scope='module')
def weights():
  from flax.core.meta import unbox

  world = World.from_config(CONFIG)
  modules = ('task', 'policy', 'value')
  made = jax.jit(lambda key: world.init(key, modules))(jax.random.key(0))
  return jax.tree.map(np.asarray, unbox(made))


def test_weights_and_config_come_back(weights, tmp_path):
  path = exported.save(tmp_path / 'out', weights, CONFIG)
  loaded, config = exported.load(tmp_path / 'out')
  assert config == CONFIG
  jax.tree.map(np.testing.assert_array_equal, weights, loaded)
  # Others read it by the names of modules.
  with safe_open(path, framework='numpy') as file:
    assert {name.split('/')[0] for name in file.keys()} == set(weights)
  # What is loaded works: a head gives the same logits.
  world = World.from_config(config)
  h = jax.random.normal(jax.random.key(1), (1, 1, config.dynamics.width))
  same = [world.head(r, 'value', h) for r in (weights, loaded)]
  np.testing.assert_array_equal(*same)


def test_arrays_that_are_views_are_written_as_they_look(tmp_path):
  table = np.arange(6, dtype=np.float32).reshape(2, 3)
  module = {'a': table.T, 'b': table[:, 1], 'c': np.float32(3.0)}
  exported.save(tmp_path, {'module': module}, CONFIG)
  module = exported.load(tmp_path)[0]['module']
  assert module['c'].shape == () and module['c'] == 3
  np.testing.assert_array_equal(module['a'], table.T)
  np.testing.assert_array_equal(module['b'], table[:, 1])


def test_the_config_of_a_run_is_not_replaced(weights, tmp_path):
  (tmp_path / 'config.json').write_text('mine')
  with pytest.raises(FileExistsError, match=r'config\.json: exists'):
    exported.save(tmp_path, weights, CONFIG)
  assert (tmp_path / 'config.json').read_text() == 'mine'


@pytest.mark.parametrize(('umask', 'mode'), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_is_up_to_the_umask(weights, tmp_path, umask, mode):
  before = os.umask(umask)
  try:
    path = exported.save(tmp_path, weights, CONFIG)
  finally:
    os.umask(before)
  for file in (path, tmp_path / exported.CONFIG):
    assert stat.S_IMODE(file.stat().st_mode) == mode, file


def test_nothing_is_replaced_unasked(weights, tmp_path):
  exported.save(tmp_path, weights, CONFIG)
  with pytest.raises(FileExistsError, match=r'model\.safetensors: exists'):
    exported.save(tmp_path, {'x': {'y': np.zeros(1)}}, CONFIG)
  assert exported.load(tmp_path)[0].keys() == weights.keys()
  exported.save(tmp_path, {'x': {'y': np.zeros(1)}}, CONFIG, overwrite=True)
  assert exported.load(tmp_path)[0].keys() == {'x'}


@pytest.mark.parametrize(
  'damage',
  [
    lambda data: data[:100],
    lambda data: b'',
    lambda data: struct.pack('<Q', 1 << 60) + data[8:],
    lambda data: b'text instead',
  ],
)
def test_damage_is_named(weights, tmp_path, damage):
  path = exported.save(tmp_path, weights, CONFIG)
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(ValueError, match=r'model\.safetensors: damaged'):
    exported.load(tmp_path)


def test_missing_files_are_named(weights, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no model\.safetensors'):
    exported.load(tmp_path)
  exported.save(tmp_path, weights, CONFIG)
  (tmp_path / exported.CONFIG).unlink()
  with pytest.raises(FileNotFoundError, match=r'no config\.json'):
    exported.load(tmp_path)


def test_a_wrong_config_is_named(weights, tmp_path):
  exported.save(tmp_path, weights, CONFIG)
  path = tmp_path / exported.CONFIG
  plain = json.loads(path.read_text())
  plain['dynamics']['width'] = -3
  path.write_text(json.dumps(plain))
  with pytest.raises(ValueError, match='width'):
    exported.load(tmp_path)


@pytest.fixture(scope='module')
def run_dir(weights, tmp_path_factory):
  """A run with two phases; their averages differ from what is trained."""
  path = tmp_path_factory.mktemp('runs') / 'toy'
  for phase, trained in (('finetune', 'task'), ('imagination', 'policy')):
    kept = {'value': weights['value']} if phase == 'imagination' else {}
    state = {
      'params': {trained: weights[trained]},
      'ema': {trained: jax.tree.map(lambda x: x + 1, weights[trained])},
      'frozen': kept,
    }
    with Checkpoints(path / phase) as checkpoints:
      checkpoints.save(1, state, {}, CONFIG)
  return path


def test_the_command_writes_the_averages_of_a_phase(
  weights, run_dir, tmp_path, capsys
):
  out = tmp_path / 'deep' / 'out'
  assert main(['export', str(run_dir), '--out', str(out)]) == 0
  said = capsys.readouterr().out
  path = out / exported.WEIGHTS
  assert said.startswith(f'{path}: {path.stat().st_size:,} bytes, modules ')
  loaded, config = exported.load(out)
  assert config == CONFIG and set(loaded) == {'policy', 'value'}
  jax.tree.map(
    np.testing.assert_array_equal,
    loaded,
    {
      'policy': jax.tree.map(lambda x: x + 1, weights['policy']),
      'value': weights['value'],
    },
  )


def test_nothing_but_our_own_lines_are_printed(run_dir, tmp_path):
  # In a process of its own, where nobody has set up logging.
  code = 'import sys; from dreamer4_jax.cli.main import main; sys.exit(main())'
  child = subprocess.run(
    [sys.executable, '-c', code, 'export', str(run_dir), '--out', tmp_path],
    capture_output=True,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    cwd=pathlib.Path(__file__).parents[1],
  )
  assert child.returncode == 0, child.stderr
  said = f'{run_dir}: phase imagination stopped at step 1 of 1000\n'
  assert child.stderr == said
  assert child.stdout.count('\n') == 1


def test_the_command_exports_any_phase_and_replaces_when_told(
  run_dir, tmp_path, capsys
):
  command = ['export', str(run_dir), '--out', str(tmp_path)]
  assert main(command) == 0
  assert main([*command, '--phase', 'finetune']) == 2
  assert 'exists; pass overwrite=True (--overw' in capsys.readouterr().err
  assert set(exported.load(tmp_path)[0]) == {'policy', 'value'}
  assert main([*command, '--phase', 'finetune', '--overwrite']) == 0
  assert set(exported.load(tmp_path)[0]) == {'task'}


def test_mistakes_of_the_command_are_named(run_dir, tmp_path, capsys):
  out = tmp_path / 'out'
  command = ['export', str(run_dir), '--phase', 'dynamics', '--out', str(out)]
  assert main(command) == 2
  said = capsys.readouterr().err
  assert said.startswith('dreamer4: ') and str(run_dir / 'dynamics') in said
  assert not out.exists()
  for wrong in (['--phase', 'sleep', '--out', 'x'], []):
    with pytest.raises(SystemExit) as info:
      main(['export', str(run_dir), *wrong])
    assert info.value.code == 2
