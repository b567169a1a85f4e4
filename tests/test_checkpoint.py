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
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamer4_jax import checkpoint
from dreamer4_jax.checkpoint import Checkpoints, DamagedCheckpointError
from dreamer4_jax.compatibility import model_fields
from dreamer4_jax.config import Config, DynamicsConfig, DynamicsPhase, Phases

# Orbax drops its readers when one of them fails.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)
ROOT = pathlib.Path(__file__).parents[1]


@struct.dataclass
class State:
  params: dict
  opt: tuple
  step: jax.Array


def make_state(value: float, width: int = 3) -> State:
  params = {
    'a': {'w': jnp.full((4, width), float(value))},
    'b': jnp.arange(2.0),
  }
  opt = optax.adam(1e-3).init(params)
  return State(params=params, opt=opt, step=jnp.int32(value))


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def assert_same(a, b):
  chex.assert_trees_all_equal(a, b)


def save_two(path):
  with Checkpoints(path) as checkpoints:
    checkpoints.save(10, make_state(1.0), {'8': b'\x00ten'}, Config())
    checkpoints.save(20, make_state(2.0), {'8': b'\xfftwenty'}, Config())


def test_what_was_saved_together_comes_back_together(tmp_path):
  data = {'8': b'\x00\xff', '16': {'next': np.int64(3), 'rest': [1, 'x']}}
  config = Config(name='here', seed=7)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(5, make_state(1.5), data, config)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 5
    found = checkpoints.restore(abstract(make_state(0.0)))
  assert_same(found.state, make_state(1.5))
  assert found.data == {'8': b'\x00\xff', '16': {'next': 3, 'rest': [1, 'x']}}
  assert (found.step, found.config) == (5, config)


def test_only_the_latest_are_kept_and_any_of_them_can_be_asked_for(tmp_path):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, make_state(step), step, Config())
  kept = sorted(p.name for p in (tmp_path / 'checkpoints').iterdir())
  assert kept == ['2', '3']
  with Checkpoints(tmp_path) as checkpoints:
    found = checkpoints.restore(abstract(make_state(0.0)), step=2)
  assert found.data == 2 and int(found.state.step) == 2


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
  state = {'x': jnp.zeros((1000, 500))}
  bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  bump({'x': jnp.zeros((1000, 500))})  # Compiled before the save starts.
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, None, Config())
    for _ in range(20):
      state = bump(state)
    checkpoints.wait()
    found = checkpoints.restore(abstract(state))
  assert float(jnp.abs(found.state['x']).max()) == 0.0
  assert float(state['x'].min()) == 20.0


def test_restores_onto_another_mesh(tmp_path):
  value = np.arange(8.0, dtype=np.float32)
  mesh = jax.make_mesh((4,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.NamedSharding(mesh, jax.P('x'))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {'v': jnp.asarray(value)}, None, Config())
    checkpoints.wait()
    target = jax.ShapeDtypeStruct((8,), np.float32, sharding=spread)
    found = checkpoints.restore({'v': target}).state['v']
  assert found.sharding == spread
  np.testing.assert_array_equal(found, value)


def test_a_config_that_makes_another_model_is_refused(tmp_path):
  save_two(tmp_path)
  other = Config(dynamics=DynamicsConfig(depth=4))
  message = r'dynamics\.depth = 4: the checkpoint in .*20 was made with 8'
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match=message):
      checkpoints.restore(abstract(make_state(0.0)), config=other)
    checkpoints.restore(
      abstract(make_state(0.0)),
      config=other,
      fields=model_fields('tokenizer'),
    )
    same_model = Config(seed=3, dynamics=DynamicsConfig(remat='full'))
    checkpoints.restore(abstract(make_state(0.0)), config=same_model)


def test_a_whole_run_is_checked_phase_by_phase(tmp_path):
  save_two(tmp_path / 'tokenizer')
  other = Config(dynamics=DynamicsConfig(depth=4))
  checkpoint.check_run(tmp_path, other)
  save_two(tmp_path / 'dynamics')
  with pytest.raises(ValueError, match=r'^dynamics\.depth = 4'):
    checkpoint.check_run(tmp_path, other)
  checkpoint.check_run(tmp_path / 'missing', other)


def test_an_array_of_another_shape_is_named(tmp_path):
  save_two(tmp_path)
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match=r'params\.a\.w.*\[4, 3\].*\[4, 5\]'):
      checkpoints.restore(abstract(make_state(0.0, width=5)))
    smaller = abstract(make_state(0.0)).replace(params={'b': jnp.zeros(2)})
    with pytest.raises(
      ValueError, match=r'params\.a\.w.* this run has nothing'
    ):
      checkpoints.restore(smaller)


def files(directory):
  return sorted(p for p in directory.rglob('*') if p.is_file())


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
    with Checkpoints(run) as checkpoints:
      with caplog.at_level(logging.WARNING):
        found = checkpoints.restore(abstract(make_state(0.0)))
      warned = [r.getMessage() for r in caplog.records if 'damaged' in r.msg]
      if found.step == 10:
        fell_back.append(name)
        assert_same(found.state, make_state(1.0))
        assert found.data == {'8': b'\x00ten'}
        assert len(warned) == 1 and str(run / 'checkpoints/20') in warned[0]
        assert (run / 'damaged_checkpoint_20').is_dir()
        # Training passes the damaged step again.
        checkpoints.save(20, make_state(3.0), None, Config())
        checkpoints.wait()
        assert checkpoints.latest() == 20
      else:  # A file that nothing is read from.
        assert_same(found.state, make_state(2.0))
        assert found.data == {'8': b'\xfftwenty'} and not warned
  parts = {p.parts[2] for p in fell_back}
  assert parts == {'state', 'data', 'config'}
  assert any(p.parts[-2] == 'd' for p in fell_back)


def test_with_nothing_readable_left_it_says_so_and_moves_nothing(tmp_path):
  save_two(tmp_path)
  for file in files(tmp_path):
    os.truncate(file, 0)
  before = files(tmp_path)
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(DamagedCheckpointError, match=r'20: .*10: '):
      checkpoints.restore(abstract(make_state(0.0)))
  assert files(tmp_path) == before
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
    assert_same(found.state, big[0])
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


def test_arrays_load_without_their_type_whole_or_in_part(tmp_path):
  save_two(tmp_path)
  arrays, config = checkpoint.load_arrays(tmp_path)
  assert config == Config() and set(arrays) == {'params', 'opt', 'step'}
  assert isinstance(arrays['params']['a']['w'], np.ndarray)
  assert_same(arrays['params'], jax.device_get(make_state(2.0).params))
  part, _ = checkpoint.load_arrays(tmp_path, only=('params',))
  assert_same(part, {'params': jax.device_get(make_state(2.0).params)})
  with pytest.raises(ValueError, match=r"no 'ema'; it has .*'params'"):
    checkpoint.load_arrays(tmp_path, only=('ema',))
  with pytest.raises(FileNotFoundError, match='absent'):
    checkpoint.load_arrays(tmp_path / 'absent')


def test_the_result_of_an_unfinished_phase_comes_with_a_warning(
  tmp_path, caplog
):
  config = Config(phases=Phases(dynamics=DynamicsPhase(steps=20)))
  for step, warned in ((19, True), (20, False)):
    with Checkpoints(tmp_path / 'dynamics') as checkpoints:
      checkpoints.save(step, make_state(2.0), None, config)
    caplog.clear()
    _, found = checkpoint.load_state_dict(tmp_path, 'dynamics', only=('step',))
    assert found == config
    assert ('stopped at step 19 of 20' in caplog.text) == warned
  with pytest.raises(FileNotFoundError, match='tokenizer first'):
    checkpoint.load_state_dict(tmp_path, 'tokenizer')


def test_loading_arrays_falls_back_too_and_moves_nothing(tmp_path):
  save_two(tmp_path)
  for file in files(tmp_path / 'checkpoints/20/state'):
    os.truncate(file, 0)
  before = files(tmp_path)
  arrays, _ = checkpoint.load_arrays(tmp_path)
  assert int(arrays['step']) == 1
  assert files(tmp_path) == before
