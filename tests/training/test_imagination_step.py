import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.models import World, distributions
from dreamer4_jax.objectives import TwoHot
from dreamer4_jax.training import imagination_step
from dreamer4_jax.training.imagination_step import (
  agent_states,
  dream_losses,
  gather_experience,
  imagination_objective,
  init_imagination_state,
  make_imagination_step,
)
from dreamer4_jax.training.update import combine
from tests.models.tiny_world import (
  ACTIONS,
  CONFIG,
  changed,
  make_batch,
  world_and_params,
)

RUN = CONFIG.edit(
  {
    'phases.imagination.horizon': 5,
    'phases.imagination.sampling_steps': 2,
    'phases.imagination.gamma': 0.9,
    'phases.imagination.lam': 0.8,
    'phases.imagination.learning_rate': 1e-2,
    'optimizer.warmup_steps': 1,
    'optimizer.decay_share': 0.0,
  }
)


@dataclasses.dataclass(frozen=True)
class MortalWorld(World):
  """The continuation logit is one number, given with the parameters."""

  def head(self, params, name, h):
    x = super().head(params, name, h)
    return x * 0 + params['logit'] if name == 'continuation' else x


def mortal_world():
  world, params = world_and_params(RUN)
  names = [f.name for f in dataclasses.fields(World)]
  world = MortalWorld(**{n: getattr(world, n) for n in names})
  return world, {**params, 'logit': jnp.float32(2)}


WORLD, PARAMS = mortal_world()
MODULES = ('tokenizer', 'latents', 'dynamics', 'task', 'policy', 'reward')
FINETUNED = {k: PARAMS[k] for k in (*MODULES, 'continuation', 'logit')}
BATCH = jax.tree.map(jnp.asarray, make_batch(4, 3))


def equal(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


@functools.cache
def start():
  return jax.jit(
    lambda key: nn.unbox(init_imagination_state(WORLD, key, FINETUNED))
  )(jax.random.key(0))


@functools.cache
def step():
  compiled = jax.jit(make_imagination_step(WORLD))
  return lambda state, seed=0: jax.device_get(
    compiled(state, BATCH, jax.random.key(seed))
  )


@functools.cache
def trained():
  state, metrics = start(), []
  for _ in range(30):
    state, m = step()(state)
    metrics.append(m)
  return state, metrics


@functools.cache
def gathered(logit):
  sharp = {k: v for k, v in PARAMS['policy'].items()}
  for part in ACTIONS:  # nearly deterministic
    kernel = sharp[part.name]['kernel']
    sharp[part.name] = {'kernel': kernel * 1000}
  params = {**PARAMS, 'policy': sharp, 'logit': jnp.float32(logit)}
  cont = BATCH.cont.at[1, -1].set(0)  # a context that ends in a terminal
  return jax.device_get(_gather()(params, BATCH.replace(cont=cont)))


@functools.cache
def _gather():
  return jax.jit(
    lambda params, batch: gather_experience(
      WORLD, params, batch, jax.random.key(0)
    )
  )


def test_policy_equals_prior_exactly_at_the_first_step():
  state = start()
  assert equal(state.params['policy'], FINETUNED['policy'])
  assert equal(state.frozen['prior'], FINETUNED['policy'])
  assert set(state.params) == {'policy', 'value'}
  assert not np.any(state.params['value']['out']['kernel'])
  assert trained()[1][0]['imagination/kl'] == 0
  assert trained()[1][0]['imagination/value_mean'] == 0
  assert trained()[1][5]['imagination/kl'] > 0


def test_only_policy_and_value_change():
  state, metrics = trained()
  assert equal(state.frozen, start().frozen)
  assert not equal(state.params['policy'], start().params['policy'])
  assert not equal(state.params['value'], start().params['value'])
  assert not equal(state.ema['policy'], start().ema['policy'])
  assert np.isfinite([list(m.values()) for m in metrics]).all()
  for x in jax.tree.leaves((state.params, state.ema, state.opt_state)):
    assert x.dtype in (jnp.float32, jnp.int32)


def test_the_value_learns_its_returns():
  # With the policy put back, so that dreams stay what they are.
  state, values = start(), []
  for _ in range(30):
    state, metrics = step()(state)
    policy = start().params['policy']
    state = state.replace(params={**state.params, 'policy': policy})
    values.append(metrics['imagination/value'])
  assert np.mean(values[-5:]) < 0.7 * values[0]
  # The policy term is not normalised, so only the value has statistics.
  assert state.rms['policy'].weight == 0
  np.testing.assert_allclose(state.rms['value'].weight, 1 - 0.99**30, rtol=1e-4)


def test_nothing_counts_after_an_imagined_termination():
  e = gathered(-50.0)
  # The first action was taken alive, except where the context had ended.
  assert e.weight[:, 0].tolist() == [1, 0, 1, 1]
  assert np.all(e.weight[:, 1:] < 1e-20)
  np.testing.assert_allclose(e.returns, e.reward, rtol=1e-5, atol=1e-6)


def test_weights_multiply_the_continuations():
  e = gathered(0.0)
  expected = np.broadcast_to(0.5 ** np.arange(5), (4, 5)).copy()
  expected[1] = 0
  np.testing.assert_allclose(e.weight, expected, rtol=1e-6)


def test_an_imagined_event_ends_what_counts():
  world = changed(WORLD, {'phases.imagination.stop_at_event': True})
  params = {**PARAMS, 'logit': jnp.float32(50)}  # nothing else ends
  e = jax.device_get(
    jax.jit(
      lambda params: gather_experience(world, params, BATCH, jax.random.key(0))
    )(params)
  )
  left = 1 - np.clip(e.reward, 0, 1)
  assert np.ptp(left) > 0.1
  np.testing.assert_allclose(e.weight[:, 0], 1)
  np.testing.assert_allclose(
    e.weight[:, 1:], np.cumprod(left, axis=1)[:, :-1], atol=1e-6
  )
  for t in range(4):
    expected = e.reward[:, t] + 0.9 * left[:, t] * (
      0.2 * e.value[:, t + 1] + 0.8 * e.returns[:, t + 1]
    )
    np.testing.assert_allclose(e.returns[:, t], expected, rtol=1e-4, atol=1e-5)


def test_rewards_values_and_returns_are_read_where_they_belong():
  e = gathered(0.0)
  twohot = TwoHot(CONFIG.agent.bins, CONFIG.agent.bin_limit)
  read = lambda head: np.asarray(
    twohot.mean(WORLD.head(PARAMS, head, jnp.asarray(e.agent))[:, :, 0])
  )
  # reward[i] is read at the frame that action i led to.
  np.testing.assert_allclose(
    e.reward[:, :-1], read('reward')[:, 1:], rtol=2e-3, atol=1e-4
  )
  np.testing.assert_allclose(e.value, read('value'), rtol=2e-3, atol=1e-4)
  assert np.ptp(e.reward) > 0.1 and np.ptp(e.value) > 0.1
  # R[t] = r[t+1] + 0.9 * 0.5 * (0.2 v[t+1] + 0.8 R[t+1]).
  for t in range(4):
    expected = e.reward[:, t] + 0.45 * (
      0.2 * e.value[:, t + 1] + 0.8 * e.returns[:, t + 1]
    )
    np.testing.assert_allclose(e.returns[:, t], expected, rtol=1e-4, atol=1e-5)


def test_an_action_was_drawn_at_the_state_it_is_judged_at():
  # The policy is nearly deterministic: its most likely action, at this state.
  e = gathered(0.0)
  logits = WORLD.head(PARAMS, 'policy', jnp.asarray(e.agent))
  best = np.argmax(logits['move'][:, :, 0], axis=-1)
  assert len(np.unique(best)) > 1
  assert (best == e.actions['move']).mean() > 0.95
  bits = np.asarray(logits['keys'][:, :, 0]) > 0
  assert (bits == e.actions['keys']).mean() > 0.9


def moved_policy():
  """The policy of some later step: no longer the prior."""
  return jax.tree.map(lambda x: x + 0.2 * jnp.sin(100 * x), PARAMS['policy'])


def test_the_terms_match_a_loop():
  e = gathered(0.0)
  params = {**PARAMS, 'policy': moved_policy()}
  twohot = TwoHot(CONFIG.agent.bins, CONFIG.agent.bin_limit)

  @jax.jit
  def compute(e):
    now = lambda head: {
      k: v[:, :, 0] for k, v in WORLD.head(params, head, e.agent).items()
    }
    policy, prior = now('policy'), now('prior')
    each = {
      'log_prob': distributions.log_prob(policy, e.actions, ACTIONS),
      'kl': distributions.kl(policy, prior, ACTIONS),
      'kl back': distributions.kl(prior, policy, ACTIONS),
      'entropy': distributions.entropy(policy, ACTIONS),
      'value': twohot.loss(
        WORLD.head(params, 'value', e.agent)[:, :, 0], e.returns
      ),
    }
    return dream_losses(WORLD, params, e), each

  (terms, others), each = jax.device_get(compute(jax.tree.map(jnp.asarray, e)))
  assert abs(each['kl'].mean() / each['kl back'].mean() - 1) > 0.02
  sums = {}

  def add(name, value, weight):
    pairs = sums.setdefault(name, [])
    pairs.append((float(value), float(weight)))

  for b in range(4):
    add('reward_per_rollout', (e.reward[b] * e.weight[b]).sum(), 1)
    for t in range(5):
      w = e.weight[b, t]
      good = e.returns[b, t] >= e.value[b, t]
      add('positive' if good else 'negative', each['log_prob'][b, t], w)
      add('positive_share', good, w)
      for name in ('kl', 'entropy', 'value'):
        add(name, each[name][b, t], w)
      add('return', e.returns[b, t], w)
      add('value_mean', e.value[b, t], w)
      add('cont', e.cont[b, t], 1)
  found = {**terms, **others}
  assert set(found) == set(sums)
  assert set(terms) == {'positive', 'negative', 'kl', 'value'}
  for name, pairs in sums.items():
    values, weights = zip(*pairs, strict=True)
    np.testing.assert_allclose(
      found[name].value(), np.average(values, weights=weights),
      rtol=1e-4, atol=1e-6, err_msg=name,
    )  # fmt: skip


def test_the_loss_has_the_weights_of_the_config():
  fields = {'phases.imagination.alpha': 0.3, 'phases.imagination.beta': 0.7}
  objective = imagination_objective(changed(WORLD, fields))
  params = {**PARAMS, 'policy': moved_policy()}
  e = jax.tree.map(jnp.asarray, gathered(0.0))
  terms, others = jax.jit(lambda e: objective.terms(params, start(), e))(e)
  of = {name: float(mean.value()) for name, mean in terms.items()}
  policy = 0.7 * of['negative'] - 0.3 * of['positive'] + 0.7 * of['kl']
  m = objective.report({k: x.value() for k, x in {**terms, **others}.items()})
  np.testing.assert_allclose(m['imagination/policy'], policy, rtol=1e-4)
  # The value loss is divided by its RMS, which is itself at first.
  loss, _ = combine(terms, start().rms, objective)
  np.testing.assert_allclose(loss, policy + 1, rtol=1e-4)


def test_accumulation_changes_nothing_but_the_draws(monkeypatch):
  # The dreams are given, so that parts of the batch have those of the whole.
  numbered = BATCH.replace(
    reward=jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (4, 3, 2))
  )
  e = jax.tree.map(jnp.asarray, gathered(0.0))
  keys = []

  def given(world, params, batch, key):
    keys.append(key)
    rows = batch.reward[:, 0, 0].astype(int)
    return jax.tree.map(lambda x: x[rows], e)

  monkeypatch.setattr(imagination_step, 'gather_experience', given)
  state = start().replace(params={**start().params, 'policy': moved_policy()})
  run = lambda parts: jax.jit(
    make_imagination_step(changed(WORLD, {'accumulate': parts}))
  )(state, numbered, jax.random.key(0))
  whole, split = run(1), run(4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    whole, split,
  )  # fmt: skip
  assert len(keys) == 2


def test_agent_states_of_a_dream_can_be_found_again():
  e = jax.tree.map(jnp.asarray, gathered(0.0))
  again = jax.jit(lambda e: agent_states(WORLD, PARAMS, e))(e)
  np.testing.assert_allclose(again, e.agent, atol=1e-4)
  assert np.ptp(e.agent) > 1
