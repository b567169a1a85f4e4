"""The loss of a phase, called by itself, is what its train step minimises."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax import training
from dreamer4_jax.models import World
from dreamer4_jax.objectives import Mean
from dreamer4_jax.training import phases
from dreamer4_jax.training.dynamics_step import dynamics_objective
from dreamer4_jax.training.finetune_step import finetune_objective
from dreamer4_jax.training.imagination_step import imagination_objective
from dreamer4_jax.training.state import TrainState
from dreamer4_jax.training.tokenizer_step import tokenizer_objective
from tests.models.tiny_world import CONFIG, make_batch, world_and_params

RUN = CONFIG.edit(
  {
    'phases.tokenizer.latent_noise': 0.5,
    'phases.finetune.context_share': 0.5,
    'phases.imagination.horizon': 2,
    'phases.imagination.sampling_steps': 1,
    'forcing.bootstrap_share': 0.5,
  }
)
BATCH = jax.tree.map(jnp.asarray, make_batch(4, 5))
KEY = jax.random.key(3)
OBJECTIVES = {
  'tokenizer': tokenizer_objective,
  'dynamics': dynamics_objective,
  'finetune': finetune_objective,
  'imagination': imagination_objective,
}
TRAINED = {
  'tokenizer': ('tokenizer',),
  'dynamics': ('dynamics',),
  'finetune': ('dynamics', 'task', 'policy', 'reward', 'continuation'),
  'imagination': ('policy', 'value'),
}


def alone(phase, world, params):
  """The loss as others call it: terms, others."""
  if phase == 'tokenizer':
    return training.tokenizer_loss(
      world.tokenizer, params['tokenizer'], BATCH.frames, KEY,
      vectors=BATCH.vectors, segment_ids=BATCH.segment_ids,
      phase=RUN.phases.tokenizer,
    )  # fmt: skip
  loss = getattr(training, f'{phase}_loss')
  return loss(world, params, BATCH, KEY)


@functools.cache
def both(phase):
  """Values and gradients of the loss alone, and as a train step has it."""
  world, params = world_and_params(RUN)
  objective = OBJECTIVES[phase](world)
  trained = {name: params[name] for name in TRAINED[phase]}
  frozen = {k: v for k, v in params.items() if k not in trained}

  def of_step(trained):
    state = TrainState(
      step=jnp.int32(0), params=trained, ema={}, frozen=frozen, opt_state=(),
      rms={}, skipped=jnp.int32(0),
    )  # fmt: skip
    data = jax.lax.stop_gradient(objective.prepare(state, BATCH, KEY))
    terms, others = objective.terms(trained, state, data)
    return training.total(terms, objective.weights), (terms, others)

  def by_itself(trained):
    terms, others = alone(phase, world, {**frozen, **trained})
    return training.total(terms, objective.weights), (terms, others)

  @jax.jit  # One program: what both compute alike is compiled once.
  def run(trained):
    ways = (by_itself, of_step)
    return [jax.value_and_grad(f, has_aux=True)(trained) for f in ways]

  return run(trained)


@pytest.mark.parametrize('phase', TRAINED)
def test_terms_and_gradients_are_those_of_the_train_step(phase):
  got, expected = both(phase)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
  jax.tree.map(close, got, expected)
  (loss, (terms, _)), gradients = got
  assert np.isfinite(loss) and all(m.weight > 0 for m in terms.values())
  for name, module in gradients.items():
    assert max(np.abs(x).max() for x in jax.tree.leaves(module)) > 1e-6, name


def test_total_weighs_terms_and_leaves_the_others_at_one():
  terms = {'a': Mean.of(jnp.float32(3)), 'b': Mean.of(jnp.float32(5))}
  assert training.total(terms) == 8
  assert training.total(terms, {'b': -2.0}) == -7


@pytest.mark.parametrize('phase', TRAINED)
def test_a_state_of_plain_arrays(phase):
  _, params = world_and_params()
  world, key = World.from_config(RUN), jax.random.key(0)
  given = None if phase == 'tokenizer' else params
  init, _ = phases.init_and_step(world, phase)
  expected = jax.eval_shape(lambda: nn.unbox(init(key, given)))
  state = jax.eval_shape(lambda: training.init_state(world, phase, key, given))
  assert jax.tree.structure(state) == jax.tree.structure(expected)
  plain = jax.tree.leaves(state, is_leaf=lambda x: not isinstance(x, dict))
  assert not any(isinstance(x, nn.meta.AxisMetadata) for x in plain)
  assert set(state.params) == set(TRAINED[phase])
