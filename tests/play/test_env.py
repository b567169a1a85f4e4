"""Dreams as Gymnasium environments."""

import importlib
import sys
import warnings

import numpy as np
import pytest

from dreamer4_jax import play
from tests.play.runs import loaded

gymnasium = pytest.importorskip('gymnasium')
env_checker = pytest.importorskip('gymnasium.utils.env_checker')

HORIZON = 3
SHAPE = (20, 12, 3)
# Programs are compiled for a dream once.
DREAM = loaded(horizon=HORIZON)
NEVER = loaded(horizon=HORIZON, termination='never')


@pytest.mark.parametrize('observation', ['frames', 'latents'])
def test_gymnasium_finds_no_fault(observation):
  env = play.DreamEnv(DREAM, observation=observation, render_mode='rgb_array')
  with warnings.catch_warnings():
    # It would like a spec, bounds of latents and one of the action's; these are
    # warnings of Gymnasium's logger. Those of NumPy and JAX are faults.
    warnings.simplefilter('error')
    warnings.filterwarnings('ignore', category=UserWarning)
    env_checker.check_env(env)
  assert env.render().shape == SHAPE and env.render().dtype == np.uint8
  space = env.action_space
  assert space['move'] == gymnasium.spaces.Discrete(3)
  assert space['keys'] == gymnasium.spaces.MultiBinary(2)
  assert space['look'] == gymnasium.spaces.Box(-1, 3, (2,), np.float32)


def play_on(env, actions, seed):
  """Plays; returns everything it shows."""
  seen, info = env.reset(seed=seed)
  shown = [(seen, info)]
  shown += [env.step(action) for action in actions]
  return shown


def test_a_seed_is_an_episode_and_the_horizon_ends_it():
  env = play.DreamEnv(NEVER)
  env.action_space.seed(0)
  actions = [env.action_space.sample() for _ in range(HORIZON)]
  first, again, other = (play_on(env, actions, seed) for seed in (1, 1, 2))
  for a, b in zip(first, again, strict=True):
    np.testing.assert_array_equal(a[0], b[0])
    assert a[1:] == b[1:]
  assert any(np.any(a[0] != b[0]) for a, b in zip(first, other, strict=True))
  assert [x[3] for x in first[1:]] == [False, False, True]
  assert not any(x[2] for x in first[1:])
  assert set(first[1][4]) == {'cont', 'task'}
  assert first[1][1] != 0 and 0 < first[1][4]['cont'] < 1
  # Without a seed, another episode follows.
  follow = env.reset()[0]
  assert np.any(follow != first[0][0])


def test_many_are_as_many_single_ones():
  rows, seed = 3, 5
  many = play.DreamVectorEnv(DREAM, rows)
  each = gymnasium.vector.SyncVectorEnv([lambda: play.DreamEnv(DREAM)] * rows)
  assert many.metadata['autoreset_mode'] == each.metadata['autoreset_mode']
  assert many.observation_space == each.observation_space
  assert many.action_space == each.action_space
  many.action_space.seed(0)
  a, b = many.reset(seed=seed), each.reset(seed=seed)
  ends = 0
  for _ in range(7):
    assert np.abs(a[0].astype(int) - b[0].astype(int)).max() <= 1
    assert a[-1].keys() == b[-1].keys()
    for name, x in a[-1].items():
      assert x.dtype == b[-1][name].dtype
      np.testing.assert_allclose(x, b[-1][name], atol=1e-4)
    if len(a) > 2:
      for x, y in zip(a[1:4], b[1:4], strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, atol=1e-3)
      ends += int((a[2] | a[3]).sum())
    action = many.action_space.sample()
    a, b = many.step(action), each.step(action)
  assert 3 <= ends < 18


def test_what_is_not_an_action_is_refused():
  env = play.DreamEnv(NEVER)
  with pytest.raises(gymnasium.error.ResetNeeded, match='call reset'):
    env.step(env.action_space.sample())
  env.reset(seed=0)
  good = env.action_space.sample()
  for change, message in (
    ({'move': 3}, r"action\['move'\] has values in 3..3, expected 0..2"),
    ({'keys': [1]}, r"action\['keys'\] has shape"),
    ({'jump': 1}, 'has components'),
  ):
    with pytest.raises(ValueError, match=message):
      env.step({**good, **change})


def test_settings_are_those_of_the_dream():
  for settings, message in (
    ({'horizon': 3}, r"settings = \['horizon'\]: are those of the dream"),
    ({'observation': 'sound'}, "observation = 'sound': must be 'frames' or"),
    ({'render_mode': 'human'}, "render_mode = 'human': must be None or"),
  ):
    with pytest.raises(ValueError, match=message):
      play.DreamEnv(DREAM, **settings)
  blind = loaded(frames=False)
  env = play.DreamEnv(blind, observation='latents')
  assert env.observation_space.shape == (2, 8)
  with pytest.raises(ValueError, match=r'Dream.frames = False'):
    play.DreamEnv(blind)
  with pytest.raises(ValueError, match='num_envs = 0'):
    play.DreamVectorEnv(DREAM, 0)


def test_without_gymnasium_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'gymnasium', None)
  monkeypatch.delitem(sys.modules, 'dreamer4_jax.play.env')
  with pytest.raises(ImportError, match=r"pip install 'dreamer4_jax\[gymnas"):
    importlib.import_module('dreamer4_jax.play.env')
  assert play.Dream is not None
