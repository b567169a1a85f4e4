import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.config import FinetunePhase, OptimizerConfig
from dreamer4_jax.models import distributions
from dreamer4_jax.objectives import Levels, TwoHot
from dreamer4_jax.training.dynamics_step import Corrupted
from dreamer4_jax.training.finetune_step import (
  _relevant_at_context,
  agent_losses,
  init_finetune_state,
  make_finetune_step,
)
from tests.models.tiny_world import (
  ACTIONS,
  CONFIG,
  make_batch,
  random_tokens,
  world_and_params,
)

PHASE = FinetunePhase(
  steps=1000,
  batch_size=8,
  bootstrap_rows=0.5,
  optimizer=OptimizerConfig(
    learning_rate=1e-2, warmup_steps=1, decay_share=0.0
  ),
)
WORLD, PARAMS = world_and_params()
# Odd rows are relevant; of those, row 3 is unlabeled, as is uniform row 4.
LABELS = np.ones((8, 5), bool)
LABELS[[3, 4]] = False
BATCH = make_batch(8, 5, starts=[(1, 2)])
BATCH = BATCH.replace(
  action_mask=LABELS, prev_action_mask=BATCH.prev_action_mask & LABELS
)
UNIFORM, RELEVANT = [0, 2, 4, 6], [1, 5, 7]


@functools.cache
def start():
  pretrained = {k: PARAMS[k] for k in ('tokenizer', 'latents', 'dynamics')}
  return jax.jit(
    lambda key: nn.unbox(init_finetune_state(WORLD, PHASE, key, pretrained))
  )(jax.random.key(0))


@functools.cache
def step():
  compiled = jax.jit(make_finetune_step(WORLD, PHASE))
  return lambda state, batch, seed=0: jax.device_get(
    compiled(state, batch, jax.random.key(seed))
  )


@functools.cache
def first():
  return step()(start(), BATCH)


def equal(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


def change_rows(field, rows):
  """Other values of a field in some rows."""
  moved = {
    'frames': lambda x: 255 - x,
    'reward': lambda x: 1 - x,
    'cont': lambda x: 1 - x,
  }
  if field == 'action':
    value = {k: v.copy() for k, v in BATCH.action.items()}
    value['move'][rows] = (value['move'][rows] + 1) % 3
    value['keys'][rows] = 1 - value['keys'][rows]
    return BATCH.replace(action=value)
  value = getattr(BATCH, field).copy()
  value[rows] = moved[field](value[rows])
  return BATCH.replace(**{field: value})


def test_the_world_model_is_carried_over_and_heads_are_new():
  state = start()
  assert set(state.params) == {
    'dynamics', 'task', 'policy', 'reward', 'continuation'
  }  # fmt: skip
  assert equal(state.params['dynamics'], PARAMS['dynamics'])
  assert equal(state.frozen, {k: PARAMS[k] for k in ('tokenizer', 'latents')})
  assert not np.any(state.params['reward']['out']['kernel'])


@pytest.mark.parametrize('rows', [UNIFORM, [3]], ids=['uniform', 'unlabeled'])
def test_actions_of_uniform_or_unlabeled_rows_are_not_cloned(rows):
  state, metrics = first()
  other, other_metrics = step()(start(), change_rows('action', rows))
  assert equal(state, other) and equal(metrics, other_metrics)


def test_actions_of_relevant_rows_are_cloned():
  _, metrics = first()
  _, other = step()(start(), change_rows('action', RELEVANT))
  assert other['finetune/policy'] != metrics['finetune/policy']
  for name in ('flow', 'bootstrap', 'reward', 'continuation'):
    assert other[f'finetune/{name}'] == metrics[f'finetune/{name}']


def test_the_dynamics_learns_from_uniform_rows_only():
  _, metrics = first()
  _, relevant = step()(start(), change_rows('frames', [1, 3, 5, 7]))
  _, uniform = step()(start(), change_rows('frames', UNIFORM))
  for name in ('flow', 'bootstrap'):
    here = metrics[f'finetune/{name}']
    np.testing.assert_allclose(relevant[f'finetune/{name}'], here, rtol=1e-5)
    assert abs(uniform[f'finetune/{name}'] / here - 1) > 1e-3
  assert relevant['finetune/policy'] != metrics['finetune/policy']


@pytest.mark.parametrize('field, term', [('reward', 'reward'), ('cont', 'con')])
@pytest.mark.parametrize('rows', [UNIFORM, [1, 3, 5, 7]])
def test_reward_and_continuation_learn_from_both(field, term, rows):
  name = 'finetune/reward' if term == 'reward' else 'finetune/continuation'
  _, metrics = first()
  state, other = step()(start(), change_rows(field, rows))
  if term == 'reward':  # a zero output layer: the loss is blind, not blunt
    state, _ = step()(state, BATCH)
    twice, _ = step()(first()[0], BATCH)
    assert not equal(state.params['reward'], twice.params['reward'])
  else:
    assert other[name] != metrics[name]
  assert other['finetune/policy'] == metrics['finetune/policy']


def test_relevant_rows_stand_at_the_context_level():
  z1, z_tau = random_tokens(0, 8, 5), random_tokens(1, 8, 5)
  levels = Levels(
    signal_index=jnp.full((8, 5), 2), step_index=jnp.full((8, 5), 1)
  )
  data = Corrupted(z1, z_tau, levels, z1)
  relevant = jnp.asarray(BATCH.relevant)
  got = _relevant_at_context(WORLD, data, relevant, jax.random.key(0))
  assert np.all(got.levels.signal_index[1::2] == 7)
  assert np.all(got.levels.step_index[1::2] == 3)
  assert np.all(got.levels.signal_index[::2] == 2)
  assert np.all(got.levels.step_index[::2] == 1)
  assert np.array_equal(got.z_tau[::2], z_tau[::2])
  noise = np.asarray(got.z_tau - z1 * 7 / 8)[1::2] * 8
  assert abs(noise.mean()) < 0.2 and abs(noise.std() - 1) < 0.15


@pytest.mark.parametrize('decay', [1.0, 0.5])
def test_head_losses_match_a_loop(decay):
  phase = dataclasses.replace(PHASE, distance_decay=decay)
  h = np.random.default_rng(0).normal(size=(8, 5, 16)).astype(np.float32)
  batch = jax.tree.map(jnp.asarray, BATCH)
  twohot = TwoHot(CONFIG.agent.bins, CONFIG.agent.bin_limit)

  @jax.jit
  def compute(h):
    terms, _ = agent_losses(WORLD, phase, PARAMS, h, batch)
    logits = WORLD.head(PARAMS, 'policy', h)
    rewards = WORLD.head(PARAMS, 'reward', h)
    conts = WORLD.head(PARAMS, 'continuation', h)
    losses = []
    for n in range(3):
      at = {k: v[:, : 5 - n, n] for k, v in logits.items()}
      later = {k: v[:, n:] for k, v in batch.action.items()}
      nll = -distributions.log_prob(at, later, ACTIONS)
      reward = twohot.loss(rewards[:, : 5 - n, n], batch.reward[:, n:])
      losses.append((nll, reward, conts[:, : 5 - n, n]))
    return terms, losses

  terms, losses = jax.device_get(compute(jnp.asarray(h)))
  # Every (frame, distance); the loop picks those that count.
  ahead = {'policy': [], 'reward': [], 'continuation': []}
  weights = {name: [] for name in ahead}

  def add(name, value, n):
    ahead[name].append(value)
    weights[name].append(decay**n)

  for n, (nll, reward, x) in enumerate(losses):
    x, y = x.astype(float), BATCH.cont[:, n:]
    bce = np.log1p(np.exp(x)) - x * y
    for b in range(8):
      for t in range(5 - n):
        if BATCH.segment_ids[b, t] != BATCH.segment_ids[b, t + n]:
          continue
        add('reward', reward[b, t], n)
        add('continuation', bce[b, t], n)
        if BATCH.relevant[b] and LABELS[b, t + n]:
          add('policy', nll[b, t], n)
  assert len(ahead['policy']) < len(ahead['reward']) / 2
  for name, values in ahead.items():
    expected = np.average(values, weights=weights[name])
    np.testing.assert_allclose(terms[name], expected, rtol=1e-4)


def test_overfitting_lowers_every_term():
  state, metrics = first()
  for _ in range(39):
    state, last = step()(state, BATCH)
  for name in ('flow', 'policy', 'reward', 'continuation'):
    before, after = metrics[f'finetune/{name}'], last[f'finetune/{name}']
    assert np.isfinite(after) and after < 0.8 * before, name
  assert state.step == 40 and equal(state.frozen, start().frozen)


@pytest.mark.parametrize('relevant', [False, True])
def test_a_batch_of_one_kind_leaves_the_other_terms_alone(relevant):
  batch = BATCH.replace(relevant=np.full(8, relevant))
  state, metrics = step()(start(), batch)
  assert np.isfinite(list(metrics.values())).all()
  seen = {k: bool(v.weight > 0) for k, v in state.rms.items()}
  assert seen == {
    'dynamics': not relevant,
    'policy': relevant,
    'reward': True,
    'continuation': True,
  }
