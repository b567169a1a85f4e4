"""The one update that all phases share: accumulation, and bad steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax import sharding
from dreamer4_jax.config import MeshConfig, OptimizerConfig, PhaseConfig
from dreamer4_jax.objectives import rms_normalize
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.state import make_state, update

PHASE = PhaseConfig(
  batch_size=8,
  optimizer=OptimizerConfig(warmup_steps=1, clip_norm=1e6, learning_rate=0.1),
)
ROWS = np.arange(1.0, 9.0, dtype=np.float32)


def loss_fn(params, state, batch, key):
  """Mean of (row - x y)^2; the metric tells which rows were seen."""
  del key
  loss = ((batch - params['a']['x'] * params['b']['y']) ** 2).mean()
  _, rms = rms_normalize(loss, state.rms['mse'])
  return loss, ({'room/rows': batch.sum()}, {'mse': rms})


def start():
  optimizer = make_optimizer(PHASE.optimizer, 100)
  params = {'a': {'x': jnp.float32(2)}, 'b': {'y': jnp.float32(-1)}}
  return make_state(params, {}, optimizer, ('mse',)), optimizer


def step_of(optimizer, accumulate=1):
  phase = dataclasses.replace(PHASE, accumulate=accumulate)
  key = jax.random.key(0)
  return jax.jit(lambda s, b: update(s, b, key, loss_fn, optimizer, phase))


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
  np.testing.assert_allclose(b['room/rows'], 36 / parts)


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
  # And the next one goes on as if nothing had been.
  again, metrics = step(after, ROWS)
  assert (metrics['skipped'], metrics['skipped_total']) == (0, 1)
  straight, _ = step(state, ROWS)
  np.testing.assert_array_equal(
    again.params['a']['x'], straight.params['a']['x']
  )


@pytest.mark.parametrize('where', ['loss', 'gradient'])
def test_either_of_loss_and_gradient_spoils_a_step(where):
  state, optimizer = start()

  def spoiled(params, state, batch, key):
    loss, aux = loss_fn(params, state, batch, key)
    x = params['a']['x']
    # The root of 0 is 0, and its slope infinite.
    more = jax.lax.stop_gradient(x / 0) if where == 'loss' else jnp.sqrt(x * 0)
    return loss + more, aux

  key = jax.random.key(0)
  after, metrics = jax.jit(
    lambda s, b: update(s, b, key, spoiled, optimizer, PHASE)
  )(state, ROWS)
  assert np.isfinite(metrics['loss']) == (where == 'gradient')
  assert np.isfinite(metrics['grad_norm']) == (where == 'loss')
  assert metrics['skipped'] == after.skipped == 1
  assert after.params['a']['x'] == state.params['a']['x']


def test_accumulate_must_divide_the_batch():
  with pytest.raises(ValueError, match=r'accumulate = 3: must divide .* = 8'):
    dataclasses.replace(PHASE, accumulate=3)
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:4])
  sharding.check_batch(mesh, 8, 2)
  with pytest.raises(ValueError, match='accumulate = 4, that is by 16'):
    sharding.check_batch(mesh, 8, 4)
