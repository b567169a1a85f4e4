import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.models import distributions
from tests.models.tiny_world import ACTIONS

CENTERS = (-1.0, 1.0, 3.0)


def draw_logits(seed):
  """Two distributions: 3 classes, 2 bits, 2 dimensions of 3 bins."""
  rng = np.random.default_rng(seed)
  shapes = {'move': (2, 3), 'keys': (2, 2), 'look': (2, 2, 3)}
  return {k: rng.normal(size=s) * 2 for k, s in shapes.items()}


def enumerate_actions():
  """All 3 * 4 * 9 actions, as arrays `[108, ...]`."""
  bits = itertools.product(range(2), range(2))
  looks = itertools.product(CENTERS, CENTERS)
  table = list(itertools.product(range(3), bits, looks))
  move, keys, look = zip(*table, strict=True)
  return {
    'move': np.array(move, np.int32),
    'keys': np.array(keys, np.int32),
    'look': np.array(look, np.float32),
  }


def probabilities(logits, row):
  """Probability of every action, in float64, from the definition."""
  softmax = lambda x: np.exp(x) / np.exp(x).sum()
  actions, result = enumerate_actions(), []
  for i in range(108):
    p = softmax(logits['move'][row])[actions['move'][i]]
    for bit in range(2):
      one = 1 / (1 + np.exp(-logits['keys'][row, bit]))
      p *= one if actions['keys'][i, bit] else 1 - one
      p *= softmax(logits['look'][row, bit])[
        CENTERS.index(actions['look'][i, bit])
      ]
    result.append(p)
  return np.array(result)


def as_jax(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def spread(logits, row):
  """One distribution, once for each action."""
  one = {k: np.repeat(v[row : row + 1], 108, 0) for k, v in logits.items()}
  return as_jax(one)


@pytest.mark.parametrize('row', [0, 1])
def test_log_prob_entropy_and_kl_match_enumeration(row):
  logits, others = draw_logits(0), draw_logits(1)
  p, q = probabilities(logits, row), probabilities(others, row)
  np.testing.assert_allclose(p.sum(), 1, rtol=1e-12)
  actions = jax.tree.map(jnp.asarray, enumerate_actions())
  log_prob = distributions.log_prob(spread(logits, row), actions, ACTIONS)
  np.testing.assert_allclose(log_prob, np.log(p), atol=1e-5)
  entropy = distributions.entropy(as_jax(logits), ACTIONS)
  np.testing.assert_allclose(entropy[row], -(p * np.log(p)).sum(), rtol=1e-5)
  kl = distributions.kl(as_jax(logits), as_jax(others), ACTIONS)
  expected = (p * np.log(p / q)).sum()
  assert expected > 0.5
  np.testing.assert_allclose(kl[row], expected, rtol=1e-5)
  # KL[p || q] differs from KL[q || p], so the order is the stated one.
  back = distributions.kl(as_jax(others), as_jax(logits), ACTIONS)
  np.testing.assert_allclose(back[row], (q * np.log(q / p)).sum(), rtol=1e-5)


def test_kl_of_equal_logits_is_exactly_zero():
  logits = as_jax(draw_logits(0))
  assert not np.any(distributions.kl(logits, logits, ACTIONS))


def test_samples_have_the_stated_frequencies():
  # 20,000 draws: the standard error of a frequency is at most 0.0035.
  logits = draw_logits(0)
  many = {k: np.repeat(v[:1], 20_000, 0) for k, v in logits.items()}
  sample = jax.jit(lambda k, x: distributions.sample(k, x, ACTIONS))
  drawn = sample(jax.random.key(0), as_jax(many))
  assert drawn['move'].dtype == jnp.int32 and drawn['keys'].dtype == jnp.int32
  assert set(np.unique(drawn['look'])) <= set(CENTERS)
  code = lambda a: (
    (np.asarray(a['move']) * 4 + np.asarray(a['keys']) @ [2, 1]) * 9
    + ((np.asarray(a['look']) + 1) // 2) @ [3, 1]
  ).astype(int)
  assert code(enumerate_actions()).tolist() == list(range(108))
  share = np.bincount(code(drawn), minlength=108) / 20_000
  assert np.abs(share - probabilities(logits, 0)).max() < 0.014


def test_a_continuous_action_counts_for_the_nearest_bin():
  logits = as_jax(draw_logits(0))
  base = {
    'move': jnp.zeros(2, jnp.int32),
    'keys': jnp.zeros((2, 2), jnp.int32),
  }
  near = lambda x: distributions.log_prob(
    logits, {**base, 'look': jnp.full((2, 2), x)}, ACTIONS
  )
  for value, center in ((-7.0, -1.0), (-0.1, -1.0), (0.1, 1.0), (9.0, 3.0)):
    assert np.array_equal(near(value), near(center))


@functools.cache
def tempered():
  """Draws 4,000 actions of one distribution at a temperature."""
  logits = as_jax({k: v[0] for k, v in draw_logits(5).items()})

  @jax.jit
  def draw(temperature):
    keys = jax.random.split(jax.random.key(2), 4_000)
    one = lambda key: distributions.sample(key, logits, ACTIONS, temperature)
    return jax.vmap(one)(keys)

  return jax.device_get(logits), lambda t: jax.device_get(draw(jnp.float32(t)))


def test_at_temperature_0_each_component_has_its_mode():
  logits, draw = tempered()
  actions = draw(0)
  assert (actions['move'] == logits['move'].argmax()).all()
  assert (actions['keys'] == (logits['keys'] > 0)).all()
  modes = np.array(CENTERS)[logits['look'].argmax(-1)]
  assert (actions['look'] == modes).all()


def test_at_temperature_1_actions_are_those_without_one():
  logits, draw = tempered()
  keys = jax.random.split(jax.random.key(2), 4_000)
  x = as_jax(logits)
  bits = [jax.nn.log_sigmoid(-x['keys']), jax.nn.log_sigmoid(x['keys'])]

  def plain(key):
    move, press, look = jax.random.split(key, 3)
    bins = jax.random.categorical(look, jax.nn.log_softmax(x['look']))
    return {
      'move': jax.random.categorical(move, jax.nn.log_softmax(x['move'])),
      'keys': jax.random.categorical(press, jnp.stack(bits, axis=-1)),
      'look': jnp.array(CENTERS)[bins],
    }

  default = lambda key: distributions.sample(key, x, ACTIONS)
  for function in (plain, default):
    expected = jax.jit(jax.vmap(function))(keys)
    jax.tree.map(np.testing.assert_array_equal, draw(1), expected)


@pytest.mark.parametrize('temperature', [0.25, 2.0])
def test_a_temperature_divides_the_logits(temperature):
  logits, draw = tempered()
  actions = draw(temperature)
  softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)
  p = softmax(logits['move'].astype(float) / temperature)
  share = np.bincount(actions['move'], minlength=3) / 4_000
  # The standard error of a share is 0.008 at most.
  np.testing.assert_allclose(share, p, atol=0.04)
  p = 1 / (1 + np.exp(-logits['keys'].astype(float) / temperature))
  np.testing.assert_allclose(actions['keys'].mean(0), p, atol=0.04)
  p = softmax(logits['look'].astype(float) / temperature)
  for i, center in enumerate(CENTERS):
    share = (actions['look'] == np.float32(center)).mean(0)
    np.testing.assert_allclose(share, p[:, i], atol=0.04)
