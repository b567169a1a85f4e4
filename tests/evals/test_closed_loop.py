from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.envs import EnvSpec
from dreamer4_jax.evals import closed_loop
from dreamer4_jax.evals.closed_loop import (
  Episodes,
  Evaluator,
  best_policy,
  random_agent,
  run_episodes,
  streaming_agent,
  streaming_memory,
)
from dreamer4_jax.types import EnvStep
from tests.models.tiny_world import ACTIONS, CONFIG, world_and_params

LIMIT = 6
GOALS = np.array([2, 3, 6, 9], np.int32)  # the seed is the goal


@struct.dataclass
class Count:
  """How far each episode has come."""

  goal: jax.Array
  position: jax.Array
  steps: jax.Array
  over: jax.Array


class Line:
  """`move` = 2 goes one step; a goal of 3 or less has an end."""

  spec = EnvSpec(
    height=20,
    width=12,
    channels=3,
    actions=ACTIONS,
    tasks=('key', 'door'),
    max_steps=LIMIT,
  )

  def reset(self, keys):
    # A key made of a seed holds it: the level is the seed.
    goal = jax.random.key_data(keys)[:, 1].astype(jnp.int32)
    zero = jnp.zeros_like(goal)
    state = Count(goal, zero, zero, zero > 0)
    return state, self._show(state, zero > 0, zero > 0, zero > 0)

  def step(self, state, actions):
    going = ~state.over
    move = (actions['move'] == 2) & going
    position = state.position + move
    steps = state.steps + going
    won = position >= state.goal
    over = won | (steps >= LIMIT)
    new = Count(state.goal, position, steps, over)
    return new, self._show(new, move, move & (position == 1), going & won)

  def _show(self, state, moved, key, door):
    won = state.position >= state.goal
    frame = jnp.broadcast_to(
      state.position.astype(jnp.uint8)[:, None, None, None],
      (*state.goal.shape, 20, 12, 3),
    )
    return EnvStep(
      frame=frame,
      reward=moved * 0.5,
      events=jnp.stack([key, door], axis=-1).astype(jnp.float32),
      terminal=won,
      timeout=state.over & ~won,
    )


def walker(params, memory, step, is_first, key):
  """Walks at every turn but its first; notes what it is shown."""
  memory = {
    'turns': memory['turns'] + 1,
    'firsts': memory['firsts'] + is_first,
    'position': step.frame[:, 0, 0, 0],
  }
  go = jnp.where(is_first, 0, params)
  nothing = jnp.zeros((len(is_first), 2))
  return {
    'move': go,
    'keys': nothing.astype(jnp.int32),
    'look': nothing,
  }, memory


def play(speed=2, **kwargs):
  memory = {
    'turns': jnp.int32(0),
    'firsts': jnp.zeros(4, jnp.int32),
    'position': jnp.zeros(4, jnp.uint8),
  }
  return run_episodes(
    Line(),
    walker,
    jnp.int32(speed),
    memory,
    seeds=GOALS.tolist(),
    key=jax.random.key(0),
    **kwargs,
  )


def test_outcomes_by_hand():
  # One turn is lost, so goals 2 and 3 are reached at steps 3 and 4; a walk of
  # 5 steps ends short of 6 and 9, by the time limit.
  got = play(keep_frames=2)
  assert got.success.tolist() == [True, True, False, False]
  assert got.length.tolist() == [3, 4, 6, 6]
  assert got.returns.tolist() == [1, 1.5, 2.5, 2.5]
  assert got.achieved.tolist() == [
    [True, True], [True, True], [True, False], [True, False]
  ]  # fmt: skip
  assert got.frames.shape == (2, 4 + 1, 20, 12, 3)
  assert got.frames[:, :, 0, 0, 0].tolist() == [
    [0, 0, 1, 2, 2], [0, 0, 1, 2, 3]
  ]  # fmt: skip
  assert got.summary() == {
    'success': 0.5,
    'episodes': 4,
    'mean_return': 1.875,
    # Squares of the distances from the mean: 49, 9, 25, 25 in 64ths.
    'std_return': pytest.approx(np.sqrt(108 / 64 / 4)),
    'achievements': 1.5,
    'mean_length': 4.75,
  }


@pytest.mark.parametrize('count', [3, 4, 11])
def test_a_place_that_is_free_is_filled(monkeypatch, count):
  seeds = [2, 9, 3, 6, 9, 2, 1, 6, 2, 3, 5][:count]

  def play(agent, memory_of):
    return Evaluator(Line(), agent).play(
      jnp.int32(2),
      memory_of(closed_loop.places(Line(), count)),
      seeds=seeds,
      key=jax.random.key(0),
      keep_frames=5,
    )

  memory = lambda n: {
    'turns': jnp.int32(0),
    'firsts': jnp.zeros(n, jnp.int32),
    'position': jnp.zeros(n, jnp.uint8),
  }
  expected = play(walker, memory)
  monkeypatch.setattr(closed_loop, 'PLACES', 3)
  monkeypatch.setattr(closed_loop, '_REFILL', 2)
  assert closed_loop.places(Line(), count) == 3
  found = play(walker, memory)
  for name in ('success', 'returns', 'length', 'achieved', 'first', 'frames'):
    np.testing.assert_array_equal(
      getattr(found, name), getattr(expected, name), err_msg=name
    )


def test_a_prompt_begins_afresh_with_every_episode(monkeypatch):
  monkeypatch.setattr(closed_loop, 'PLACES', 2)
  monkeypatch.setattr(closed_loop, '_REFILL', 2)
  world, params = world_and_params()
  agent, memory = streaming_agent(world, 2)
  stages = []

  def watched(params, memory, step, is_first, key):
    actions, memory = agent(params, memory, step, is_first, key)
    actions['move'] = jnp.full(2, 2)
    jax.debug.callback(
      lambda *x: stages.append([y.tolist() for y in x]), is_first,
      memory[1].stage,
    )  # fmt: skip
    return actions, memory

  Evaluator(Line(), watched).play(
    params, memory, seeds=[2, 3, 2, 3], key=jax.random.key(0)
  )
  jax.effects_barrier()
  begun = [
    stage
    for firsts, held in stages
    for first, stage in zip(firsts, held, strict=True)
    if first
  ]
  assert begun == [0] * 4
  assert max(stage for _, held in stages for stage in held) == 1


def test_an_agent_that_stands_still_achieves_nothing():
  got = play(speed=1)
  assert not got.success.any() and not got.achieved.any()
  assert got.length.tolist() == [LIMIT] * 4
  assert got.returns.tolist() == [0] * 4


def test_play_stops_when_every_episode_has_ended():
  calls = []

  def counted(params, memory, step, is_first, key):
    jax.debug.callback(lambda x: calls.append(x.tolist()), is_first)
    return walker(params, memory, step, is_first, key)

  run_episodes(
    Line(),
    counted,
    jnp.int32(2),
    {
      'turns': jnp.int32(0),
      'firsts': jnp.zeros(2, jnp.int32),
      'position': jnp.zeros(2, jnp.uint8),
    },
    seeds=[2, 3],
    key=jax.random.key(0),
  )
  jax.effects_barrier()
  assert calls == [[True, True]] + [[False, False]] * 3


def test_the_random_agent_draws_every_action():
  world, _ = world_and_params()
  agent = random_agent(world)
  actions, memory = agent(
    None, 'kept', None, jnp.zeros(3000, bool), jax.random.key(0)
  )
  assert memory == 'kept'
  # 3,000 draws: a third has a standard error of 0.009.
  share = np.bincount(actions['move'], minlength=3) / 3000
  np.testing.assert_allclose(share, 1 / 3, atol=0.035)
  np.testing.assert_allclose(np.mean(actions['keys'], 0), 0.5, atol=0.035)
  for value in (-1, 1, 3):
    share = (np.asarray(actions['look']) == value).mean(0)
    np.testing.assert_allclose(share, 1 / 3, atol=0.035)


def test_the_trained_agent_plays_and_follows_its_prompt():
  world, params = world_and_params()
  agent, memory = streaming_agent(world, 4)
  _, prompt, temperature = memory
  assert temperature == 1
  assert prompt.tasks.tolist() == [0, 1] and prompt.counts.tolist() == [1, 1]
  stages = []

  def watched(params, memory, step, is_first, key):
    actions, memory = agent(params, memory, step, is_first, key)
    jax.debug.callback(
      lambda e, s: stages.append((e, s)), step.events[:, 0], memory[1].stage
    )
    actions['move'] = jnp.full(4, 2)
    return actions, memory

  got = run_episodes(
    Line(),
    watched,
    params,
    memory,
    seeds=GOALS.tolist(),
    key=jax.random.key(0),
  )
  jax.effects_barrier()
  assert got.success.tolist() == [True, True, True, False]
  # The first task's event is seen on frame 1, and the task changes there.
  assert [s.tolist() for _, s in stages] == [[0] * 4] + [[1] * 4] * 5
  assert [e.tolist() for e, _ in stages][1] == [1] * 4


def test_an_environment_may_have_more_tasks_than_the_run():
  config = CONFIG.edit({'tasks': ('door',), 'prompt': ('door:2',)})
  world, params = world_and_params(config)
  agent, memory = streaming_agent(world, 4, tasks=Line.spec.tasks)
  counts = []

  def watched(params, memory, step, is_first, key):
    actions, memory = agent(params, memory, step, is_first, key)
    jax.debug.callback(lambda n: counts.append(n.tolist()), memory[1].done)
    actions['move'] = jnp.full(4, 2)
    return actions, memory

  settings = {'seeds': GOALS.tolist(), 'key': jax.random.key(0)}
  doors = Evaluator(Line(), watched).play(params, memory, **settings)
  jax.effects_barrier()
  # The key, seen on frame 1, is no task of the run; some doors are seen later.
  assert counts[1] == [0, 0, 0, 0] and max(counts[-1]) == 1
  assert doors.achieved.shape == (4, 2)
  keys = Evaluator(Line(), watched, 'key').play(params, memory, **settings)
  assert keys.success.tolist() == keys.achieved[:, 0].tolist()
  assert doors.success.tolist() == doors.achieved[:, 1].tolist()
  assert keys.success.sum() > doors.success.sum()
  for e in (keys, doors):
    assert (e.first[:, 0] == 1).all()
    assert e.first[:, 1].tolist() == [2, 3, 6, -1]


def test_one_program_serves_all_policies():
  # Two tasks and two baselines: prompts 2 and 3 are no tasks.
  config = CONFIG.edit({'phases.finetune.baseline_share': 0.1})
  world, params = world_and_params(config)
  agent, _ = streaming_agent(world, 4)
  traces, tasks = [], []

  def watched(params, memory, step, is_first, key):
    traces.append(1)  # When it is traced, not when it runs.
    actions, memory = agent(params, memory, step, is_first, key)
    jax.debug.callback(lambda x: tasks.append(x.tolist()), memory[1].task())
    return actions, memory

  evaluator, found = Evaluator(Line(), watched), {}
  other = {**params, 'policy': jax.tree.map(lambda x: -x, params['policy'])}
  for name, own, prompt, temperature in (
    ('bc', params, None, 1.0),
    ('bc_greedy', params, None, 0.0),
    ('bc_all', params, 2, 1.0),
    ('bc_best', params, 3, 0.5),
    ('rl', other, None, 1.0),
  ):
    memory = streaming_memory(world, 4, prompt, temperature)
    tasks.clear()
    found[name] = evaluator.play(
      own, memory, seeds=GOALS.tolist(), key=jax.random.key(0)
    )
    jax.effects_barrier()
    if prompt is not None:
      assert tasks == [[prompt] * 4] * len(tasks)
  assert len(traces) == 1
  # The same policy again, from a program of its own.
  _, memory = streaming_agent(world, 4, 3, 0.5)
  again = run_episodes(
    Line(), agent, params, memory, seeds=GOALS.tolist(), key=jax.random.key(0)
  )
  assert np.array_equal(again.returns, found['bc_best'].returns)
  assert len({e.returns.tobytes() for e in found.values()}) > 2


def test_a_prompt_that_the_world_does_not_know_is_refused():
  world, _ = world_and_params()
  for prompt in (-1, 2):
    with pytest.raises(
      ValueError, match=f'prompt = {prompt}: must lie in .0, 2'
    ):
      streaming_memory(world, 4, prompt)


def outcomes(success, returns):
  n = len(returns)
  return Episodes(
    success=None if success is None else np.array(success, bool),
    returns=np.array(returns, np.float32),
    length=np.ones(n, int),
    achieved=np.zeros((n, 1), bool),
    first=np.full((n, 1), -1, np.int32),
    frames=np.zeros((0, 1, 1, 1, 1), np.uint8),
  )


def test_the_best_policy_succeeds_most_then_earns_most_then_ends_first():
  found = {
    'a': outcomes([1, 0], [9, 9]),
    'b': outcomes([1, 1], [1, 2]),
    'c': outcomes([1, 1], [2, 2]),
    'd': outcomes([1, 1], [2, 2]),
  }
  assert best_policy(found) == 'c'
  slow, fast = np.array([9, 9]), np.array([9, 8])
  found['c'] = found['c'].replace(length=slow)
  found['d'] = found['d'].replace(length=fast)
  assert best_policy(found) == 'd'
  assert best_policy({k: found[k] for k in 'ab'}) == 'b'
  found = {k: e.replace(success=None) for k, e in found.items()}
  assert best_policy(found) == 'a'
