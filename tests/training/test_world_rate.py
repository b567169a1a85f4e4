"""Imagination with a world model that trains along."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import ImaginationPhase
from dreamer4_jax.models import World
from dreamer4_jax.training import imagination_step
from dreamer4_jax.training.imagination_step import (
  WORLD_MODULES,
  imagination_objective,
  init_imagination_state,
  make_phase_optimizer,
)
from dreamer4_jax.training.update import update
from dreamer4_jax.types import DreamBatch
from tests.models.tiny_world import make_batch, world_and_params
from tests.training.test_imagination_step import (
  BATCH,
  MODULES,
  PHASE,
  equal,
  moved_policy,
)

WAKING = dataclasses.replace(PHASE, world_rate=0.5)


@functools.cache
def waking():
  """A step that trains the world model as well, with beta as an argument."""
  world, params = world_and_params()
  finetuned = {k: params[k] for k in (*MODULES, 'continuation')}
  state = jax.jit(
    lambda key: nn.unbox(init_imagination_state(world, WAKING, key, finetuned))
  )(jax.random.key(0))
  state = state.replace(params={**state.params, 'policy': moved_policy()})
  clips = jax.tree.map(jnp.asarray, make_batch(4, 3, seed=1))
  batch = DreamBatch(contexts=BATCH, clips=clips)
  objective = imagination_objective(world, WAKING)
  optimizer = make_phase_optimizer(WAKING)

  @jax.jit
  def step(state, beta):
    weights = {**objective.weights, 'kl': beta}
    own = dataclasses.replace(objective, weights=weights)
    return update(state, batch, jax.random.key(0), own, optimizer, WAKING)

  return state, step


@functools.cache
def awake(beta=PHASE.beta):
  """The state before and after one such step, from a moved policy."""
  state, step = waking()
  return state, *jax.device_get(step(state, jnp.float32(beta)))


def test_the_world_model_trains_along():
  state, new, metrics = awake()
  assert set(state.params) == {'policy', 'value', *WORLD_MODULES}
  assert 'dynamics' not in state.frozen and 'tokenizer' in state.frozen
  assert np.isfinite(list(metrics.values())).all()
  for room in state.params:
    assert not equal(new.params[room], state.params[room]), room
  assert equal(new.frozen, state.frozen)
  # All losses of finetuning are there, each with statistics of its own.
  for name in ('dynamics', 'prior', 'reward', 'continuation', 'flow'):
    assert f'imagination/{name}' in metrics
  for name in ('value', 'dynamics', 'prior', 'reward', 'continuation'):
    assert new.rms[name].weight > 0
  assert new.rms['policy'].weight == 0


def test_the_prior_learns_from_cloning_alone():
  # Its gradient is that of the cloning term: the divergence does not pull it.
  _, _, metrics = awake()
  _, _, without = awake(beta=0.0)
  np.testing.assert_allclose(
    without['prior/grad_norm'], metrics['prior/grad_norm'], rtol=1e-4
  )
  assert metrics['prior/grad_norm'] > 0
  # But policy and dynamics feel it.
  for room in ('policy', 'dynamics'):
    ratio = without[f'{room}/grad_norm'] / metrics[f'{room}/grad_norm']
    assert abs(ratio - 1) > 1e-3


def test_the_world_model_has_a_rate_of_its_own():
  rooms = {room: {'x': jnp.float32(1)} for room in (*WORLD_MODULES, 'policy')}

  def updates(rate):
    phase = dataclasses.replace(PHASE, world_rate=rate)
    optimizer = make_phase_optimizer(phase)
    return optimizer.update(rooms, optimizer.init(rooms), rooms)[0]

  slow, full = updates(0.5), updates(1.0)
  for room in rooms:
    expected = 0.5 if room in WORLD_MODULES else 1
    np.testing.assert_allclose(slow[room]['x'] / full[room]['x'], expected)


def test_what_is_kept_up_is_finetuning_on_the_steps_of_imagination():
  world = world_and_params()[0]
  phases, replace = world.config.phases, dataclasses.replace
  finetune = replace(
    phases.finetune, relevant_share=0.3, distance_decay=0.7, baseline_share=0.1
  )
  config = replace(world.config, phases=replace(phases, finetune=finetune))
  phase = ImaginationPhase(relevant_share=0.9, steps=7, accumulate=2)
  kept = imagination_step._upkeep(World.from_config(config), phase)
  assert (kept.relevant_share, kept.distance_decay) == (0.3, 0.7)
  assert (kept.steps, kept.accumulate) == (7, 2)
  assert kept.baseline_share == 0
