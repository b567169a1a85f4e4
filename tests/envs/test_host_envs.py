"""Gymnasium and dm_control behind the protocol."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.config import ActionComponent, EnvConfig, VectorComponent
from dreamer4_jax.envs import host, make_env
from dreamer4_jax.evals import run_episodes

KEYS = jax.random.split(jax.random.key(0), 3)


class Counter:
  """Shows its seed and its step; ends at step `seed % 4 + 2`."""

  actions = (ActionComponent(name='action', kind='categorical', size=3),)
  labels = types.MappingProxyType({'action': ('a', 'b', 'c')})

  def reset(self, seed):
    self.seed, self.t = seed % 4, 0
    return self._frame()

  def step(self, action):
    self.t += 1
    ends = self.t >= self.seed + 2
    return host.Outcome(
      self._frame(), float(action['action']), ends, timeout=False
    )

  def close(self):
    pass

  def _frame(self):
    return np.full((4, 6, 3), 10 * self.seed + self.t, np.uint8)


def test_a_batch_of_simulators_runs_in_step():
  env = host.HostEnv(Counter, EnvConfig(max_steps=4))
  assert env.spec.on_host and env.spec.frame_shape == (4, 6, 3)
  state, first = env.reset(KEYS)
  seeds = (first.frame[:, 0, 0, 0] // 10).tolist()
  assert len(set(seeds)) > 1
  for t in range(1, 6):
    state, shown = env.step(state, {'action': jnp.array([1, 2, 0])})
    for i, seed in enumerate(seeds):
      ends = seed + 2
      over = min(ends, 4)
      assert shown.frame[i, 0, 0, 0] == 10 * seed + min(t, over)
      assert shown.terminal[i] == (t >= ends and ends <= 4)
      assert shown.timeout[i] == (t >= 4 and ends > 4)
      assert shown.reward[i] == ((1, 2, 0)[i] if t <= over else 0)


class Feeling(Counter):
  """Also feels its seed and its step."""

  vectors = (VectorComponent(name='touch', size=2),)

  def sense(self):
    return {'touch': np.array([self.seed, self.t])}


def test_vectors_are_those_of_the_frames():
  env = host.HostEnv(Feeling, EnvConfig(max_steps=4))
  assert env.spec.vectors == Feeling.vectors
  state, shown = env.reset(KEYS)
  for _ in range(6):
    touch = shown.vectors['touch']
    assert touch.shape == (3, 2) and touch.dtype == np.float32
    number = shown.frame[:, 0, 0, 0]
    np.testing.assert_array_equal(10 * touch[:, 0] + touch[:, 1], number)
    # What was shown before stays as it was.
    before = shown
    state, shown = env.step(state, {'action': jnp.array([1, 2, 0])})
    np.testing.assert_array_equal(before.vectors['touch'], touch)
  plain = host.HostEnv(Counter, EnvConfig(max_steps=4))
  assert plain.spec.vectors == () and plain.reset(KEYS)[1].vectors == {}


def test_arrays_beside_frames_get_names_that_parameters_may_have():
  shapes = {'arm': (2, 3), 'agent.pos': (), '3d': (4,)}
  found = host.components(shapes)
  assert [(v.name, v.size) for v in found.values()] == [
    ('arm', 6), ('agent_pos', 1), ('_3d', 4),
  ]  # fmt: skip
  assert list(found) == list(shapes)


def test_frames_are_averaged_to_size():
  class Wide(Counter):
    def _frame(self):
      return np.tile(np.uint8([[0], [100]]), (2, 6))[..., None].repeat(3, -1)

  env = host.HostEnv(Wide, EnvConfig(image_size=(2, 3)))
  _, first = env.reset(KEYS)
  assert first.frame.shape == (3, 2, 3, 3) and (first.frame == 50).all()


def test_policies_are_evaluated_on_the_host():
  env = host.HostEnv(Counter, EnvConfig(max_steps=4))

  def agent(params, memory, step, is_first, key):
    return {'action': jnp.full(is_first.shape, 2)}, memory + is_first

  episodes = run_episodes(
    env, agent, {}, jnp.zeros(5), seeds=range(5), key=jax.random.key(0)
  )
  assert (episodes.returns == 2 * episodes.length).all()
  assert set(episodes.length.tolist()) <= {2, 3, 4}


def test_bounds_are_stretched():
  low, high = np.array([-2.0, 0.0]), np.array([2.0, 10.0])
  for value, expected in [(-1, [-2, 0]), (0, [0, 5]), (3, [2, 10])]:
    found = host.to_bounds(np.full(2, value), low, high)
    np.testing.assert_allclose(found, expected)


def roll(name, steps, **kwargs):
  env = make_env(EnvConfig(name=name, **kwargs))
  state, step = env.reset(KEYS[:2])
  history = [step]
  rng = np.random.default_rng(0)
  for _ in range(steps):
    actions = {}
    for part in env.spec.actions:
      if part.kind == 'categorical':
        actions[part.name] = rng.integers(0, part.size, 2)
      elif part.kind == 'binary':
        actions[part.name] = rng.integers(0, 2, (2, part.size))
      else:
        actions[part.name] = rng.uniform(-1, 1, (2, part.size))
    state, step = env.step(state, actions)
    history.append(step)
  return env, history


def test_atari():
  pytest.importorskip('ale_py')
  env, history = roll('gymnasium:ALE/Pong-v5', 5, image_size=(84, 84))
  assert env.spec.frame_shape == (84, 84, 3)
  assert env.spec.labels['action'][:2] == ['noop', 'fire']
  assert env.spec.actions[0].size == 6
  assert (history[-1].frame != history[0].frame).any()


def test_classic_control_is_rendered():
  pytest.importorskip('pygame')
  env, history = roll('gymnasium:CartPole-v1', 60, max_steps=40)
  assert env.spec.channels == 3
  assert [(v.name, v.size) for v in env.spec.vectors] == [('state', 4)]
  states = np.stack([step.vectors['state'] for step in history[:5]])
  assert states.shape == (5, 2, 4)
  # Positions move by the previous velocities, by the game's own rule.
  moved = states[0, :, 0] + 0.02 * states[0, :, 1]
  np.testing.assert_allclose(states[1, :, 0], moved, rtol=1e-5)
  assert (history[-1].terminal | history[-1].timeout).all()


def test_dictionaries_of_observations_are_drawn_and_have_vectors(monkeypatch):
  gymnasium = pytest.importorskip('gymnasium')
  from dreamer4_jax.envs import gymnasium_env as lib

  spaces = gymnasium.spaces
  image = spaces.Box(0, 255, (4, 6, 3), np.uint8)

  class Robot(gymnasium.Env):
    action_space = spaces.Discrete(2)
    observation_space = spaces.Dict(
      {
        'codes': image,
        'agent.pos': spaces.Box(-1.0, 1.0, (2,), np.float64),
        'time': spaces.Box(0.0, np.inf, (), np.float32),
        'mode': spaces.Discrete(3),
        'map': spaces.Box(0.0, 1.0, (2, 2), np.float32),
      }
    )

    def __init__(self):
      self.t = 0

    def _see(self):
      return {
        'codes': self.render() + 100,
        'agent.pos': np.array([0.25, self.t]),
        'time': np.float32(self.t),
        'mode': 1,
        'map': np.zeros((2, 2), np.float32),
      }

    def reset(self, *, seed=None, options=None):
      self.t = 0
      return self._see(), {}

    def step(self, action):
      self.t += 1
      return self._see(), 0.0, False, False, {}

    def render(self):
      return np.full((4, 6, 3), self.t, np.uint8)

  monkeypatch.setattr(lib.gymnasium, 'make', lambda *args, **kwargs: Robot())
  env = lib.make('Robot-v0', EnvConfig(max_steps=3))
  found = {v.name: v.size for v in env.spec.vectors}
  assert found == {'agent_pos': 2, 'time': 1}
  state, step = env.reset(KEYS)
  for t in range(3):
    # What the environment draws: a small image may be codes of tiles.
    assert (step.frame == t).all()
    assert (step.vectors['agent_pos'] == [0.25, t]).all()
    assert (step.vectors['time'] == t).all()
    state, step = env.step(state, {'action': np.zeros(3, int)})


def test_names_of_vectors_are_distinct_identifiers():
  shapes = {'a.b': (2,), 'a_b': (), '1st': (2, 3), 'none': (0,), 'a b': (4,)}
  found = {k: (v.name, v.size) for k, v in host.components(shapes).items()}
  assert found == {
    'a.b': ('a_b', 2),
    'a_b': ('a_b_2', 1),
    '1st': ('_1st', 6),
    'a b': ('a_b_3', 4),
  }


@pytest.mark.parametrize(
  ('space', 'kinds'),
  [
    (lambda s: s.Discrete(4, start=2), [('categorical', 4)]),
    (lambda s: s.MultiDiscrete([2, 5]), [('categorical', 2)] * 1
     + [('categorical', 5)]),
    (lambda s: s.MultiBinary(3), [('binary', 3)]),
    (lambda s: s.Box(-2.0, 6.0, (2,), np.float32), [('continuous', 2)]),
  ],
)  # fmt: skip
def test_action_spaces_are_translated(space, kinds):
  gymnasium = pytest.importorskip('gymnasium')
  from dreamer4_jax.envs import gymnasium_env as lib

  space = space(gymnasium.spaces)
  parts = lib.action_components(space, 'x')
  assert [(p.kind, p.size) for p in parts] == kinds
  value = {
    p.name: np.ones(() if p.kind == 'categorical' else (p.size,)) for p in parts
  }
  assert space.contains(lib.to_gymnasium(space, value))


def test_an_action_space_without_bounds_is_refused():
  gymnasium = pytest.importorskip('gymnasium')
  from dreamer4_jax.envs import gymnasium_env as lib

  box = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
  with pytest.raises(ValueError, match='its actions are Box'):
    lib.action_components(box, 'x')


def test_an_unknown_level_is_named():
  pytest.importorskip('gymnasium')
  with pytest.raises(ValueError, match="'gymnasium:Nothing-v0'"):
    make_env(EnvConfig(name='gymnasium:Nothing-v0'))


def test_the_control_suite_tells_time_outs_from_ends(monkeypatch):
  pytest.importorskip('dm_control')
  from dreamer4_jax.envs import dm_control_env as lib

  class Env:
    """A task of two steps with a discount that the test sets."""

    discount = 1.0

    def __init__(self):
      self.t = 0
      self.physics = types.SimpleNamespace(
        render=lambda h, w, camera_id: np.zeros((h, w, 3), np.uint8)
      )

    def action_spec(self):
      return types.SimpleNamespace(
        minimum=-np.ones(2), maximum=np.ones(2), shape=(2,)
      )

    def observation_spec(self):
      spec = lambda *shape: types.SimpleNamespace(shape=shape)
      return {'position': spec(2), 'upright': spec()}

    def _see(self):
      return {'position': np.array([self.t, -self.t]), 'upright': np.array(0.5)}

    def reset(self):
      self.t = 0
      return types.SimpleNamespace(observation=self._see())

    def close(self):
      pass

    def step(self, action):
      self.t += 1
      return types.SimpleNamespace(
        last=lambda: self.t >= 2,
        discount=self.discount,
        reward=0.5,
        observation=self._see(),
      )

  monkeypatch.setattr(lib.suite, 'load', lambda *a, **k: Env())
  for discount, terminal in ((1.0, False), (0.0, True)):
    Env.discount = discount
    env, history = roll('dm_control:cartpole-swingup', 2)
    assert env.spec.frame_shape == (64, 64, 3)
    assert history[1].terminal.sum() == history[1].timeout.sum() == 0
    assert (history[2].terminal == terminal).all()
    assert (history[2].timeout != terminal).all()
    assert history[1].reward.tolist() == [0.5, 0.5]
    for t, step in enumerate(history):
      assert (step.vectors['position'] == [t, -t]).all()
      assert step.vectors['upright'].tolist() == [[0.5], [0.5]]


def test_an_unknown_task_of_the_suite_is_named():
  pytest.importorskip('dm_control')
  with pytest.raises(ValueError, match='must be domain-task among'):
    make_env(EnvConfig(name='dm_control:cartpole-fly'))
