"""Learning curves in the real environment."""

import types

import jax
import pytest

from dreamer4_jax.evals import play_along
from dreamer4_jax.evals.closed_loop import run_episodes, streaming_agent
from dreamer4_jax.evals.curves import SEEDS
from tests.evals.test_closed_loop import Line
from tests.models.tiny_world import CONFIG, world_and_params


@pytest.fixture(scope='module')
def state():
  """What an agent phase trains, and what it does not."""
  params = dict(world_and_params()[1])
  # Of the trained ones the average counts, as when a run is evaluated.
  wrong = {'policy': jax.tree.map(lambda x: 0 * x, params['policy'])}
  ema = {'policy': params.pop('policy')}
  return types.SimpleNamespace(params=wrong, ema=ema, frozen=params)


def test_a_curve_is_what_evaluation_would_find(state):
  world, params = world_and_params()
  look = play_along(CONFIG, episodes=6, env=Line())
  found = look('imagination', 40, state)
  agent, memory = streaming_agent(world, 6)
  episodes = run_episodes(
    Line(),
    agent,
    params,
    memory,
    seeds=range(SEEDS, SEEDS + 6),
    key=jax.random.key(CONFIG.eval.seed),
  )
  assert found['real/return'] == episodes.returns.mean() > 0
  assert found['real/success'] == episodes.success.mean()
  achieved = episodes.achieved.sum(axis=1).mean()
  assert found['real/achievements'] == found['real/milestones'] == achieved > 0
  assert look('imagination', 80, state) == found


@pytest.mark.parametrize('phase', ['tokenizer', 'dynamics'])
def test_phases_without_a_policy_do_not_play(state, phase):
  assert play_along(CONFIG, 2, Line())(phase, 40, state) == {}


def test_no_episodes_are_a_mistake():
  with pytest.raises(ValueError, match='episodes = 0: must be at least 1'):
    play_along(CONFIG, 0, Line())
