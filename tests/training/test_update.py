"""The one update that all phases share: accumulation, and bad steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax import sharding
from dreamer4_jax.config import (
  Config,
  DynamicsPhase,
  MeshConfig,
  OptimizerConfig,
  Phases,
)
from dreamer4_jax.objectives import Mean
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.state import make_state
from dreamer4_jax.training.update import Objective, in_parts, update

CONFIG = Config(
  phases=Phases(dynamics=DynamicsPhase(batch_size=8, learning_rate=0.1)),
  optimizer=OptimizerConfig(warmup_steps=1, clip_norm=1e6),
)
ROWS = np.arange(1.0, 9.0, dtype=np.float32)


def terms(params, state, rows):
  """Mean of (row - x y)^2; the other mean tells which rows were seen."""
  del state
  error = (rows - params['a']['x'] * params['b']['y']) ** 2
  return {'mse': Mean.of(error)}, {'rows': Mean.of(rows)}


SQUARE = Objective(
  prepare=lambda state, batch, key: batch,
  terms=terms,
  weights={'mse': 1.0},
  report=lambda means: {'toy/rows': means['rows']},
  plain=('mse',),
)


def start(objective=SQUARE):
  optimizer = make_optimizer(CONFIG, 'dynamics')
  params = {'a': {'x': jnp.float32(2)}, 'b': {'y': jnp.float32(-1)}}
  return make_state(params, {}, optimizer, tuple(objective.weights)), optimizer


def step_of(optimizer, accumulate=1, objective=SQUARE):
  config = CONFIG.edit({'accumulate': accumulate})
  key = jax.random.key(0)
  return jax.jit(lambda s, b: update(s, b, key, objective, optimizer, config))


@pytest.mark.parametrize('parts', [2, 8])
def test_gradients_of_parts_add_up_to_that_of_the_whole(parts):
  state, optimizer = start()
  whole, a = step_of(optimizer)(state, ROWS)
  split, b = step_of(optimizer, parts)(state, ROWS)
  # d/dx mean (r - x y)^2 = -2 y (mean r - x y) = 2 (4.5 + 2) = 13; y: -26.
  np.testing.assert_allclose(a['a/grad_norm'], 13, rtol=1e-6)
  np.testing.assert_allclose(a['b/grad_norm'], 26, rtol=1e-6)
  np.testing.assert_allclose(a['grad_norm'], np.hypot(13, 26), rtol=1e-6)
  for name in ('loss', 'grad_norm', 'a/update_norm'):
    np.testing.assert_allclose(b[name], a[name], rtol=1e-6)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
    (whole.params, whole.opt_state, whole.ema),
    (split.params, split.opt_state, split.ema),
  )
  # Every row was seen, once.
  np.testing.assert_allclose(b['toy/rows'], 4.5)


@pytest.mark.parametrize('seed', [0, 5])
def test_the_data_are_drawn_with_the_key_of_the_step(seed):
  draw = lambda state, batch, key: batch + jax.random.uniform(key)
  state, optimizer = start()
  key = jax.random.key(seed)
  objective = dataclasses.replace(SQUARE, prepare=draw)
  _, metrics = update(state, ROWS, key, objective, optimizer, CONFIG)
  expected = 4.5 + jax.random.uniform(key)
  np.testing.assert_allclose(metrics['toy/rows'], expected, rtol=1e-6)


@pytest.mark.parametrize('parts', [2, 8])
def test_terms_of_unequal_parts_have_the_gradient_of_the_whole(parts):
  # A mean over some rows only, which are spread unevenly over the parts, one
  # that is not divided by its RMS, and one without data.
  def mixed(params, state, rows):
    x, y = params['a']['x'], params['b']['y']
    few = (rows == 1) | (rows > 6)
    return {
      'few': Mean.of((rows - x) ** 2, few * rows),
      'plain': Mean.of(x * y * rows),
      'none': Mean.of(x / rows, rows < 0),
    }, {}

  objective = Objective(
    prepare=lambda state, batch, key: batch,
    terms=mixed,
    weights={'few': 0.5, 'plain': 2.0, 'none': 1.0},
    report=dict,
    plain=('plain',),
  )
  state, optimizer = start(objective)
  whole, a = step_of(optimizer, 1, objective)(state, ROWS)
  split, b = step_of(optimizer, parts, objective)(state, ROWS)
  # Rows 1, 7, 8 with weights 1, 7, 8: the loss is 0.5 L / sg(L), plus
  # 2 * 4.5 x y. d/dx = 0.5 L' / L + 9 y, and d/dy = 9 x.
  weights, left = np.array([1, 7, 8]), np.array([1, 7, 8]) - 2.0
  value, slope = (weights * left**2).sum(), -2 * (weights * left).sum()
  np.testing.assert_allclose(a['few'], value / 16, rtol=1e-6)
  expected = 0.5 * slope / value - 9
  np.testing.assert_allclose(a['a/grad_norm'], abs(expected), rtol=1e-6)
  np.testing.assert_allclose(a['b/grad_norm'], 18, rtol=1e-6)
  assert a['none'] == 0 and whole.rms['none'].weight == 0
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), (whole, a),
    (split, b),
  )  # fmt: skip


def test_rows_in_parts_keep_their_order():
  mesh = sharding.make_mesh(MeshConfig(data=2), jax.devices()[:2])
  with sharding.use_mesh(mesh):
    batch = sharding.place_batch(mesh, ROWS)
    found = jax.jit(
      lambda x: in_parts(lambda n, part: (part * 2, part * 0 + n), x, 2)
    )(batch)
  assert found[0].tolist() == (ROWS * 2).tolist()
  # Each of the two devices gave half of its four rows to either part.
  assert found[1].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_each_device_gives_its_own_rows_to_every_part():
  state, optimizer = start()
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
  with sharding.use_mesh(mesh):
    batch = sharding.place_batch(mesh, ROWS)
    step = step_of(optimizer, 2)
    text = step.lower(state, batch).compile().as_text()
    new, _ = step(state, batch)
  expected, _ = step_of(optimizer)(state, ROWS)
  np.testing.assert_allclose(
    new.params['a']['x'], expected.params['a']['x'], rtol=1e-6
  )
  # Sums of losses travel, rows do not.
  assert 'all-reduce' in text
  for name in ('all-gather', 'all-to-all', 'collective-permute'):
    assert name not in text


@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e30])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(bad):
  state, optimizer = start()
  step = step_of(optimizer)
  state, metrics = step(state, ROWS)
  assert metrics['skipped'] == metrics['skipped_total'] == 0
  # 1e30 squared overflows in float32.
  after, metrics = step(state, np.where(ROWS == 3, np.float32(bad), ROWS))
  assert metrics['skipped'] == metrics['skipped_total'] == 1
  assert not np.isfinite(metrics['loss'])
  for name in ('params', 'ema', 'opt_state', 'rms'):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(after, name), getattr(state, name)
    )
  assert (after.step, after.skipped) == (2, 1)
  # And the next one goes on as if nothing had happened.
  again, metrics = step(after, ROWS)
  assert (metrics['skipped'], metrics['skipped_total']) == (0, 1)
  straight, _ = step(state, ROWS)
  np.testing.assert_array_equal(
    again.params['a']['x'], straight.params['a']['x']
  )


@pytest.mark.parametrize('where', ['loss', 'gradient'])
def test_either_of_loss_and_gradient_spoils_a_step(where):
  def spoiled(params, state, rows):
    found, others = terms(params, state, rows)
    x = params['a']['x']
    # The root of 0 is 0, and its slope infinite.
    more = jax.lax.stop_gradient(x / 0) if where == 'loss' else jnp.sqrt(x * 0)
    mean = found['mse']
    return {'mse': mean.replace(total=mean.total + more)}, others

  objective = dataclasses.replace(SQUARE, terms=spoiled)
  state, optimizer = start(objective)
  after, metrics = step_of(optimizer, 1, objective)(state, ROWS)
  assert np.isfinite(metrics['loss']) == (where == 'gradient')
  assert np.isfinite(metrics['grad_norm']) == (where == 'loss')
  assert metrics['skipped'] == after.skipped == 1
  assert after.params['a']['x'] == state.params['a']['x']


def test_accumulate_must_divide_every_batch():
  message = r'accumulate = 3: must divide phases\.tokenizer\.batch_size = 16'
  with pytest.raises(ValueError, match=message):
    CONFIG.edit({'accumulate': 3})
  message = r'accumulate = 16: must divide phases\.dynamics\.batch_size = 8'
  with pytest.raises(ValueError, match=message):
    CONFIG.edit({'accumulate': 16})
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:4])
  sharding.check_batch(mesh, 8, 2)
  with pytest.raises(ValueError, match='accumulate = 4, that is by 16'):
    sharding.check_batch(mesh, 8, 4)
