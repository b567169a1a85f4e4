"""Dreams and agents of run directories."""

import jax
import numpy as np
import pytest

from dreamer4_jax.play import Agent, Starts, load_dream
from tests.models.tiny_world import CONFIG, world_and_params
from tests.play.runs import write_run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('whole'))


@pytest.fixture(scope='module')
def young(tmp_path_factory):
  """A run whose agent is not trained."""
  return write_run(tmp_path_factory.mktemp('young'), ['dynamics'])


def test_a_run_is_dreamed_as_it_was_trained(run):
  dream, params, contexts = load_dream(run, starts=Starts(count=20))
  assert (dream.horizon, dream.sampling_steps) == (4, 2)
  assert dream.heads and dream.prompt is None
  _, expected = world_and_params()
  assert set(params) == {
    'tokenizer', 'latents', 'dynamics', 'task', 'reward', 'continuation',
    'policy', 'value',
  }  # fmt: skip
  for name in params:
    jax.tree.map(np.testing.assert_array_equal, params[name], expected[name])
  # Latents, so that many fit.
  assert contexts.frames.shape == (20, 3, 4, 4)
  assert np.abs(contexts.frames).max() <= 1
  assert (contexts.cont[:, -1] == 1).all()
  assert set(np.unique(contexts.task).tolist()) == {0, 1}
  again = load_dream(run, starts=Starts(count=20)).contexts
  jax.tree.map(np.testing.assert_array_equal, contexts, again)


def test_what_is_asked_of_it_changes_the_dream(run):
  held = load_dream(
    run, phase='finetune', starts=Starts(count=3, frames=2), task='door',
    context_signal=0.5, horizon=9, termination=0.25,
  )  # fmt: skip
  assert held.contexts.task.tolist() == [[1, 1]] * 3
  assert held.dream.world.config.dynamics.context_signal == 0.5
  assert (held.dream.horizon, held.dream.termination) == (9, 0.25)
  asked = load_dream(run, starts=Starts(count=1), prompt=['door', 'key:2'])
  assert asked.dream.prompt == ((1, 1), (0, 2))
  for settings, message in (
    ({'task': 'roof'}, "task = 'roof': must be one of key, door, or an id bel"),
    ({'task': 2}, 'task = 2: must be'),
    ({'prompt': ['roof']}, "prompt = 'roof': must begin with one of"),
    ({'prompt': ['key'], 'task': 'key'}, "and task = 'key' is held; give one"),
    ({'phase': 'tokenizer'}, "phase = 'tokenizer': heads of reward and cont"),
  ):
    with pytest.raises(ValueError, match=message):
      load_dream(run, **settings)
  with pytest.raises(TypeError, match='hight'):
    load_dream(run, hight=3)


def test_without_heads_the_dynamics_is_enough(young):
  with pytest.raises(FileNotFoundError, match='by heads=False'):
    load_dream(young)
  with pytest.raises(ValueError, match=r'by heads=False; must be finetune or'):
    load_dream(young, phase='dynamics')
  dream, params, contexts = load_dream(
    young, heads=False, starts=Starts(count=2)
  )
  assert not dream.heads and 'policy' not in params
  assert len(contexts.cont) == 2


def test_an_agent_is_loaded(run, young):
  agent = Agent(run, phase='finetune', temperature=0.0)
  assert agent.world.config.tasks == CONFIG.tasks
  with pytest.raises(ValueError, match="phase = 'dynamics': has no policy"):
    Agent(run, phase='dynamics')
  with pytest.raises(FileNotFoundError, match=r'train .*imagination first'):
    Agent(young)
  with pytest.raises(ValueError, match='temperature = -1'):
    Agent(run, temperature=-1)
