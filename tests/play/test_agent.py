"""The agent as an object, against the functions it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.evals import streaming_agent
from dreamer4_jax.play import Agent
from dreamer4_jax.rollout import act, init_actor
from dreamer4_jax.types import EnvStep, Observation
from tests.models import vector_world
from tests.models.tiny_world import make_batch, random_actions, world_and_params

WORLD, PARAMS = world_and_params()
FRAMES = make_batch(2, 6).frames
FIRST = np.zeros((2, 6), bool)
FIRST[:, 0] = FIRST[1, 3] = True
EVENTS = np.zeros((6, 2, 2), np.float32)
EVENTS[1, 0, 0] = EVENTS[2, 1, 0] = EVENTS[4, 1, 0] = 1


def same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])
    assert a[name].dtype == b[name].dtype


def test_it_acts_as_in_evaluation():
  agent = Agent.of(WORLD, PARAMS, seed=4)
  evaluated, memory = streaming_agent(WORLD, 2)
  decide = jax.jit(lambda *given: evaluated(PARAMS, *given))
  assert agent.tasks is None
  nothing = jnp.zeros(2)
  for t in range(6):
    actions = agent.step(FRAMES[:, t], is_first=FIRST[:, t], events=EVENTS[t])
    step = EnvStep(
      jnp.asarray(FRAMES[:, t]), nothing, jnp.asarray(EVENTS[t]),
      nothing > 0, nothing > 0,
    )  # fmt: skip
    expected, memory = decide(
      memory, step, jnp.asarray(FIRST[:, t]),
      jax.random.fold_in(jax.random.key(4), t),
    )  # fmt: skip
    same(actions, jax.device_get(expected))
    tasks = [WORLD.config.tasks[i] for i in memory[1].task()]
    assert agent.tasks == tasks
  assert tasks == ['door', 'door']


def test_one_stream_leads_with_no_batch_and_a_person_may_take_over():
  agent = Agent.of(WORLD, PARAMS, temperature=0.0)
  told = Agent.of(WORLD, PARAMS, temperature=0.0)
  state, other = init_actor(WORLD, 1), random_actions(
    np.random.default_rng(3), ()
  )  # fmt: skip
  step = jax.jit(
    lambda state, frame, first, task, t: act(
      WORLD, PARAMS, state, Observation(frame, first), task,
      jax.random.fold_in(jax.random.key(0), t), 0.0,
    )[::2]
  )  # fmt: skip
  for t in range(3):
    first = jnp.full(1, t == 0)
    if t == 2:
      given = jax.tree.map(lambda x: jnp.asarray(x)[None], other)
      state = state.replace(prev_action=given)
    expected, state = step(
      state, jnp.asarray(FRAMES[:1, t]), first, jnp.array([1]), t
    )
    actions = agent.step(
      FRAMES[0, t], prev_action=other if t == 2 else None, task='door'
    )
    own = told.step(FRAMES[0, t], task=1)
    if t < 2:
      same(actions, own)
    same(actions, {k: np.asarray(v[0]) for k, v in expected.items()})
  assert actions['move'].shape == () and actions['look'].shape == (2,)
  caches = (agent._memory[0].dynamics, told._memory[0].dynamics)
  keys = [np.asarray(c.entries.keys) for c in caches]
  assert np.abs(keys[0] - keys[1]).max() > 1e-3
  agent.reset()
  assert agent.tasks is None


def test_where_nobody_says_what_happened_the_reward_head_does(monkeypatch):
  # A reward of the first task, always.
  monkeypatch.setattr(
    'dreamer4_jax.play.agent.arrival',
    lambda world, params, h: (jnp.ones(len(h)), None),
  )
  agent, seen = Agent.of(WORLD, PARAMS), []
  for t in range(3):
    agent.step(FRAMES[0, t])
    seen.append(agent.tasks)
  # Read on the first frame, it moves the prompt on with the next.
  assert seen == ['key', 'door', 'door']
  agent.step(FRAMES[0, 3], is_first=True)
  assert agent.tasks == 'key'
  agent.step(FRAMES[0, 4], events=[])
  assert agent.tasks == 'key'
  agent.step(FRAMES[0, 5], events=['key'])
  assert agent.tasks == 'door'


def test_vectors_are_seen_beside_the_frame():
  world, params = world_and_params(vector_world.CONFIG)
  clip = vector_world.make_batch(1, 2)
  agent = Agent.of(world, params)
  with pytest.raises(ValueError, match=r"expected \['arm', 'grip'\]"):
    agent.step(clip.frames[0, 0])
  seen = {name: x[0, 0] for name, x in clip.vectors.items()}
  action = agent.step(clip.frames[0, 0], vectors=seen)
  assert action.keys() == {part.name for part in world.space}


def test_what_does_not_fit_is_refused():
  agent = Agent.of(WORLD, PARAMS)
  agent.step(FRAMES[0, 0])
  for given, message in (
    ((FRAMES[:, 0],), 'the memory is of one; call reset'),
    ((FRAMES[0, 0] / 255,), r'frame = .*must be uint8 \(20, 12, 3\)'),
    ((FRAMES[0, 0], {'move': 1}), 'prev_action has components'),
    ((FRAMES[0, 0], None, 'roof'), "task = 'roof': must be one of key, door"),
    ((FRAMES[0, 0], None, np.zeros(3)), 'need agent.task_vector_size above 0'),
    ((FRAMES[0, 0], None, [0, 1]), 'needs one for each of 1'),
  ):
    with pytest.raises(ValueError, match=message):
      agent.step(*given)
  with pytest.raises(ValueError, match='must be names, or numbers of the 2'):
    agent.step(FRAMES[0, 1], events=np.zeros(3))
