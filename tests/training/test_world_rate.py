"""Imagination with a world model that trains along."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.training import imagination_step
from dreamer4_jax.training.imagination_step import (
  WORLD_MODULES,
  imagination_objective,
  init_imagination_state,
)
from dreamer4_jax.training.update import update
from dreamer4_jax.types import DreamBatch
from tests.models.tiny_world import changed, make_batch, world_and_params
from tests.training.test_imagination_step import (
  BATCH,
  MODULES,
  RUN,
  WORLD,
  equal,
  moved_policy,
)

WAKING = RUN.edit({'phases.imagination.world_rate': 0.5})


@functools.cache
def waking():
  """A step that trains the world model as well, with beta as an argument."""
  world, params = world_and_params(WAKING)
  finetuned = {k: params[k] for k in (*MODULES, 'continuation')}
  state = jax.jit(
    lambda key: nn.unbox(init_imagination_state(world, key, finetuned))
  )(jax.random.key(0))
  state = state.replace(params={**state.params, 'policy': moved_policy()})
  clips = jax.tree.map(jnp.asarray, make_batch(4, 3, seed=1))
  batch = DreamBatch(contexts=BATCH, clips=clips)
  objective = imagination_objective(world)
  optimizer = imagination_step._optimizer(world)

  @jax.jit
  def step(state, beta):
    weights = {**objective.weights, 'kl': beta}
    own = dataclasses.replace(objective, weights=weights)
    return update(state, batch, jax.random.key(0), own, optimizer, WAKING)

  return state, step


@functools.cache
def awake(beta=RUN.phases.imagination.beta):
  """The state before and after one such step, from a moved policy."""
  state, step = waking()
  return state, *jax.device_get(step(state, jnp.float32(beta)))


def test_the_world_model_trains_along():
  state, new, metrics = awake()
  assert set(state.params) == {'policy', 'value', *WORLD_MODULES}
  assert 'dynamics' not in state.frozen and 'tokenizer' in state.frozen
  assert np.isfinite(list(metrics.values())).all()
  for module in state.params:
    assert not equal(new.params[module], state.params[module]), module
  assert equal(new.frozen, state.frozen)
  # All losses of finetuning are there, each with statistics of its own.
  for name in ('dynamics', 'prior', 'reward', 'continuation', 'flow'):
    assert f'imagination/{name}' in metrics
  for name in ('value', 'dynamics', 'prior', 'reward', 'continuation'):
    assert new.rms[name].weight > 0
  assert new.rms['policy'].weight == 0


def test_the_prior_learns_from_cloning_alone():
  # Its gradient is that of the cloning term alone, not of the divergence.
  _, _, metrics = awake()
  _, _, without = awake(beta=0.0)
  np.testing.assert_allclose(
    without['prior/grad_norm'], metrics['prior/grad_norm'], rtol=1e-4
  )
  assert metrics['prior/grad_norm'] > 0
  # But policy and dynamics feel it.
  for module in ('policy', 'dynamics'):
    ratio = without[f'{module}/grad_norm'] / metrics[f'{module}/grad_norm']
    assert abs(ratio - 1) > 1e-3


def test_the_world_model_has_a_rate_of_its_own():
  modules = {m: {'x': jnp.float32(1)} for m in (*WORLD_MODULES, 'policy')}

  def updates(rate):
    world = changed(WORLD, {'phases.imagination.world_rate': rate})
    optimizer = imagination_step._optimizer(world)
    return optimizer.update(modules, optimizer.init(modules), modules)[0]

  slow, full = updates(0.5), updates(1.0)
  for module in modules:
    expected = 0.5 if module in WORLD_MODULES else 1
    np.testing.assert_allclose(slow[module]['x'] / full[module]['x'], expected)


def test_without_clips_beside_the_contexts_it_is_refused():
  world = changed(WORLD, {'phases.imagination.world_rate': 0.5})
  with pytest.raises(TypeError, match=r'world_rate = 0\.5: .* DreamBatch'):
    imagination_objective(world).prepare(None, BATCH, jax.random.key(0))
