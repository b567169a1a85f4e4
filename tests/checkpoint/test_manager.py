"""Saving, keeping and restoring."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.checkpoint import Best, Checkpoints
from dreamer4_jax.checkpoint.compatibility import model_fields
from dreamer4_jax.checkpoint.version import code_version
from dreamer4_jax.config import ComputeConfig, Config, DynamicsConfig
from tests.checkpoint.states import abstract, make_state, save_two


def test_what_was_saved_together_comes_back_together(tmp_path):
  data = {'8': b'\x00\xff', '16': {'next': np.int64(3), 'rest': [1, 'x']}}
  config = Config(seed=7)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() is None
    counters = {'count': 3, 'mean': 0.1}
    checkpoints.save(5, make_state(1.5), data, config, counters=counters)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 5
    found = checkpoints.restore(abstract(make_state(0.0)))
  chex.assert_trees_all_equal(found.state, make_state(1.5))
  assert found.data == {'8': b'\x00\xff', '16': {'next': 3, 'rest': [1, 'x']}}
  assert (found.step, found.config) == (5, config)
  assert (found.counters, found.code) == (counters, code_version())


def test_only_the_latest_are_kept_and_any_of_them_can_be_asked_for(tmp_path):
  with Checkpoints(tmp_path, keep_last=2) as checkpoints:
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
    same_model = Config(seed=3, compute=ComputeConfig(remat='full'))
    checkpoints.restore(abstract(make_state(0.0)), config=same_model)


def test_a_checkpoint_of_another_version_is_refused_with_its_path(tmp_path):
  save_two(tmp_path)
  file = tmp_path / 'checkpoints/20/config/metadata'
  plain = json.loads(file.read_text())
  refused = {
    'format = 1: the config was written by another version': {'format': 1},
    r'dynamics\.whitening: no config has such a field': {
      'dynamics': {**plain['dynamics'], 'whitening': 0.1}
    },
    r'DynamicsConfig\.depth = 7: must be a positive multiple': {
      'dynamics': {**plain['dynamics'], 'depth': 7}
    },
  }
  for text, changes in refused.items():
    file.write_text(json.dumps({**plain, **changes}))
    with Checkpoints(tmp_path) as checkpoints:
      with pytest.raises(ValueError, match=f'checkpoints/20: .*{text}'):
        checkpoints.restore(abstract(make_state(0.0)))
    assert file.is_file()  # It is not damaged, and is left where it is.


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


def steps_in(path):
  return sorted(int(p.name) for p in (path / 'checkpoints').iterdir())


@pytest.mark.parametrize('reopen', [False, True])
@pytest.mark.parametrize(('mode', 'kept'), [('min', [2, 6]), ('max', [1, 6])])
def test_the_best_is_kept_besides_the_latest(tmp_path, mode, kept, reopen):
  best = Best(metric='toy/loss', mode=mode)
  values = [9.0, 1.0, 3.0, 2.0, 7.0, 5.0]
  checkpoints = Checkpoints(tmp_path, keep_last=1, best=best)
  for step, value in enumerate(values, 1):
    if reopen:
      checkpoints.close()
      checkpoints = Checkpoints(tmp_path, keep_last=1, best=best)
    checkpoints.save(step, {'x': jnp.ones(2)}, None, Config(), value=value)
  checkpoints.close()
  assert steps_in(tmp_path) == kept
  with Checkpoints(tmp_path, keep_last=1, best=best) as checkpoints:
    found = checkpoints.restore(abstract({'x': jnp.ones(2)}))
  assert found.step == 6  # A run goes on from the latest.


def test_without_a_value_a_checkpoint_is_never_the_best(tmp_path):
  old, new = Best(metric='a'), Best(metric='b')
  for step, best, value in (
    (1, None, None),
    (2, old, 0.0),  # Of another metric.
    (3, new, 5.0),
    (4, new, None),
    (5, new, np.nan),
    (6, new, 6.0),
    (7, new, 7.0),
  ):
    with Checkpoints(tmp_path, keep_last=1, best=best) as checkpoints:
      state = {'x': jnp.ones(2)}
      checkpoints.save(step, state, None, Config(), value=value)
  assert steps_in(tmp_path) == [3, 7]


def test_all_processes_take_the_data_of_the_first_if_their_number_changed(
  tmp_path,
):
  save_two(tmp_path)
  data = tmp_path / 'checkpoints/20/data'
  (data / 'process_0-of-1.json').rename(data / 'process_0-of-2.json')
  with Checkpoints(tmp_path) as checkpoints:
    found = checkpoints.restore(abstract(make_state(0.0)))
  assert (found.step, found.data) == (20, {'8': b'\xfftwenty'})


def test_checkpoints_from_before_the_code_version_was_saved_are_read(tmp_path):
  save_two(tmp_path)
  shutil.rmtree(tmp_path / 'checkpoints/20/info')
  with Checkpoints(tmp_path) as checkpoints:
    found = checkpoints.restore(abstract(make_state(0.0)))
  assert (found.step, found.counters, found.code) == (20, {}, {})
