import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.models import distributions
from dreamer4_jax.rollout import (
  act,
  advance,
  context,
  denoise,
  init_actor,
  init_prompt,
  prepare_context,
)
from dreamer4_jax.types import Observation
from tests.models import vector_world
from tests.models.tiny_world import ACTIONS, make_batch, world_and_params

FRAMES = 9
WORLD, PARAMS = world_and_params()
BATCH = make_batch(2, FRAMES, starts=[(1, 5)])
FIRST = Observation(jnp.asarray(BATCH.frames[:, 0]), jnp.ones(2, bool))


@pytest.fixture(scope='module')
def one():
  """Returns `act` without context noise, compiled."""
  with pytest.MonkeyPatch.context() as patch:
    for module in (denoise, context):
      patch.setattr(module, 'context_noise', lambda world, z, *noise: z)
    yield jax.jit(lambda *args: act(WORLD, PARAMS, *args))


def stream(step, world, clip):
  """Acts frame by frame; returns agent states, and the clip as it was acted."""
  rows, frames = clip.frames.shape[:2]
  first = ~np.asarray(clip.prev_action_mask)
  state, states, actions = init_actor(world, rows), [], []
  for t in range(frames):
    action, h, state = step(
      state,
      Observation(
        jnp.asarray(clip.frames[:, t]),
        jnp.asarray(first[:, t]),
        {k: jnp.asarray(v[:, t]) for k, v in clip.vectors.items()},
      ),
      jnp.asarray(clip.task[:, t]),
      jax.random.key(t),
    )
    states.append(h)
    actions.append(action)
  shifted = jax.tree.map(
    lambda *x: jnp.stack([x[0], *x[:-1]], axis=1), *actions
  )
  return np.stack(states, axis=1), clip.replace(prev_action=shifted)


def in_one_pass(world, params):
  """Returns a function of a clip to its agent states."""
  key = jax.random.key(0)
  prepare = lambda clip: prepare_context(
    world, params, clip, key, with_agent=True
  )
  return jax.jit(lambda clip: prepare(clip).agent)


def test_acting_sees_what_a_whole_clip_shows(one):
  # Encoder, dynamics and rings of the stream against one pass over the clip,
  # with the actions that the stream itself chose.
  states, clip = stream(one, WORLD, BATCH)
  whole = in_one_pass(WORLD, PARAMS)(clip)
  np.testing.assert_allclose(states, whole, atol=5e-5)


def test_an_action_is_sampled_from_the_policy_at_its_own_state(one):
  key = jax.random.key(3)
  args = (
    init_actor(WORLD, 2),
    FIRST,
    jnp.array([0, 1]),
  )
  action, h, state = one(*args, key)
  logits = WORLD.head(PARAMS, 'policy', h)
  logits = {k: v[:, 0] for k, v in logits.items()}
  expected = distributions.sample(jax.random.split(key)[1], logits, ACTIONS)
  for name in action:
    assert np.array_equal(action[name], expected[name])
    assert np.array_equal(state.prev_action[name], action[name])
  assert state.encoder.frame == state.dynamics.frame == 1


def test_the_temperature_is_that_of_the_actions(one):
  args = (
    init_actor(WORLD, 2),
    FIRST,
    jnp.array([0, 1]),
    jax.random.key(3),
  )
  plain, h, _ = one(*args)
  for temperature, equal in ((1.0, True), (0.0, False)):
    action, state, actor = one(*args, jnp.float32(temperature))
    assert np.array_equal(state, h)
    same = [np.array_equal(plain[k], action[k]) for k in plain]
    assert all(same) == equal
    assert np.array_equal(actor.prev_action['move'], action['move'])
  logits = WORLD.head(PARAMS, 'policy', h)
  mode = jnp.argmax(logits['move'][:, 0], axis=-1)
  assert np.array_equal(action['move'], mode)


def test_a_prompt_that_is_no_task_never_moves_on():
  prompt = init_prompt([(2, 1), (2, 1)], 3)
  for _ in range(3):
    prompt = advance(prompt, jnp.ones((3, 2)))
  assert prompt.stage.tolist() == prompt.done.tolist() == [0] * 3
  assert prompt.task().tolist() == [2] * 3


def test_what_was_achieved_ahead_of_its_turn_is_not_asked_for():
  prompt = init_prompt([(2, 1), (0, 1), (1, 1)], 2)
  steps = (
    ([[1, 0, 0], [0, 0, 0]], [2, 2]),
    ([[0, 0, 1], [0, 1, 0]], [1, 2]),
    ([[0, 0, 0], [1, 0, 1]], [1, 1]),  # All done: it stays with the last.
    ([[0, 1, 0], [1, 1, 1]], [1, 1]),
  )
  for events, tasks in steps:
    prompt = advance(prompt, jnp.asarray(events, jnp.float32))
    assert prompt.task().tolist() == tasks
  # A prompt with counts takes its stages one by one.
  prompt = init_prompt([(2, 1), (0, 1), (2, 1)], 1)
  for events, task in (([1, 0, 0], 2), ([0, 0, 1], 0), ([0, 0, 1], 0)):
    prompt = advance(prompt, jnp.asarray([events], jnp.float32))
    assert prompt.task().tolist() == [task]


def test_a_prompt_moves_on_when_its_event_has_happened_often_enough():
  # Task 1 twice, then task 0 once, then task 1 to the end.
  prompt = init_prompt([(1, 2), (0, 1), (1, 1)], 2)
  # Events of tasks (0, 1) for two agents, and the task in force afterwards.
  script = [
    ([[0, 0], [0, 1]], [1, 1]),
    ([[1, 0], [0, 1]], [1, 0]),  # agent 0: the event of a later stage
    ([[1, 1], [0, 1]], [1, 0]),
    ([[0, 0], [1, 0]], [1, 1]),
    ([[1, 1], [0, 1]], [0, 1]),  # both events: one stage only
    ([[1, 0], [0, 1]], [1, 1]),
    ([[0, 1], [0, 1]], [1, 1]),  # the last stage lasts
  ]
  assert prompt.task().tolist() == [1, 1]
  for events, tasks in script:
    prompt = advance(prompt, jnp.asarray(events, jnp.float32))
    assert prompt.task().tolist() == tasks
  assert prompt.stage.tolist() == [2, 2]


def test_acting_sees_vectors_as_a_whole_clip_shows_them(one):
  # The fixture `one` keeps the context noise off.
  del one
  world, params = world_and_params(vector_world.CONFIG)
  clip = vector_world.make_batch(2, 5, starts=[(1, 3)])
  step = jax.jit(lambda *args: act(world, params, *args))
  states, clip = stream(step, world, clip)
  whole = in_one_pass(world, params)
  np.testing.assert_allclose(states, whole(clip), atol=5e-5)
  blind = clip.replace(vectors=jax.tree.map(np.zeros_like, clip.vectors))
  assert np.abs(whole(blind) - whole(clip)).max() > 1e-3


def test_an_agent_that_is_shown_no_vector_says_which_it_needs():
  world, params = world_and_params(vector_world.CONFIG)
  with pytest.raises(ValueError, match=r"\[\], expected \['arm', 'grip'\]"):
    act(
      world,
      params,
      init_actor(world, 2),
      FIRST,
      jnp.array([0, 1]),
      jax.random.key(0),
    )
