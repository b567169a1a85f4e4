import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.models import ActionEmbedding, check_actions, no_action
from tests.models.tiny_world import ACTIONS, random_actions, world_and_params

LEAD = (2, 3)


def actions(seed=0):
  return random_actions(np.random.default_rng(seed), LEAD)


def embed(values, known):
  _, params = world_and_params()
  module = ActionEmbedding(ACTIONS, width=16)
  values = {k: jnp.asarray(v) for k, v in values.items()}
  own = {'params': params['dynamics']['action']}
  return np.asarray(module.apply(own, values, jnp.asarray(known)))


def test_known_actions_are_summed_component_by_component():
  p = world_and_params()[1]['dynamics']['action']
  a, got = actions(), embed(actions(), np.ones(LEAD, bool))
  assert got.shape == (2, 3, 16)
  for b in range(2):
    for t in range(3):
      expected = np.array(p['always']['table'][0], np.float64)
      expected += p['move']['table'][a['move'][b, t]]
      for i in range(2):
        bit = a['keys'][b, t, i]
        expected += p['keys']['table'][2 * i + bit]
        # low -1, high 3: brought to [-1, 1].
        share = (a['look'][b, t, i] - 1) / 2
        expected += share * np.asarray(p['look']['kernel'][i])
      np.testing.assert_allclose(got[b, t], expected, atol=1e-5)


def test_an_unknown_action_is_the_learned_embedding_alone():
  known = np.array([[True, False, False], [False, True, False]])
  (always,) = world_and_params()[1]['dynamics']['action']['always']['table']
  a, b = embed(actions(0), known), embed(actions(1), known)
  assert np.array_equal(a[~known], b[~known])
  for token in a[~known]:
    assert np.array_equal(token, always)
  whole = embed(actions(0), np.ones(LEAD, bool))
  assert np.array_equal(a[known], whole[known])
  assert np.all(np.abs(a - b)[known].max(1) > 0.1)


def test_no_action_is_a_valid_action():
  check_actions(no_action(ACTIONS, LEAD), ACTIONS, LEAD, 'action')
  check_actions(actions(), ACTIONS, LEAD, 'action')


@pytest.mark.parametrize(
  'change, message',
  [
    ({'jump': np.zeros(LEAD)}, r"components \['jump', .* expected \['keys'"),
    ({'keys': np.zeros(LEAD, int)}, r"'keys'\] .*\(2, 3\), expected \(2, 3, 2"),
    ({'move': np.zeros((3, 2), int)}, r"'move'\] has shape \(3, 2\)"),
    ({'move': np.zeros(LEAD, 'f4')}, r"'move'\] has dtype float32, expected i"),
    ({'look': np.zeros((2, 3, 2), int)}, r"'look'\] has dtype int64"),
    ({'move': np.full(LEAD, 3)}, r"'move'\] has values in 3..3, expected 0..2"),
    ({'keys': np.full((2, 3, 2), -1)}, r"'keys'\] .*-1..-1, expected 0..1"),
    ({'look': np.full((2, 3, 2), np.nan)}, r"'look'\] .* not finite"),
  ],
)
def test_errors_name_component_finding_and_expectation(change, message):
  with pytest.raises(ValueError, match=message) as error:
    check_actions(actions() | change, ACTIONS, LEAD, 'prev_action')
  assert str(error.value).startswith('prev_action')


def test_a_missing_component_is_named():
  values = actions()
  del values['look']
  with pytest.raises(ValueError, match=r"expected \['keys', 'look', 'move'\]"):
    check_actions(values, ACTIONS, LEAD, 'action')
