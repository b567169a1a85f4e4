"""States of an agent's own episodes, with their past, to continue from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.envs import Environment
from dreamer4_jax.models import Params, World, no_action
from dreamer4_jax.rollout import (
  act,
  advance,
  init_actor,
  init_prompt,
  own_events,
)
from dreamer4_jax.types import (
  Actions,
  Array,
  Batch,
  EnvStep,
  Observation,
  PyTree,
)


@dataclasses.dataclass(frozen=True)
class Moment:
  """B episodes at one frame, and their past.

  Attributes:
    start: number t of the frame.
    env_state: the environment's state there.
    live: `[B]` bool, the episode still goes on.
    frames: `[B, t + 1, H, W, C]` uint8.
    tasks: `[B, t + 1]` int32 task held at each frame.
    prev_actions: components `[B, t + 1, ...]`, the action that led to each
      frame; zeros at the first.
    vectors: what is observed along with them, components `[B, t + 1, n]`.
  """

  start: int
  env_state: PyTree
  live: np.ndarray
  frames: np.ndarray
  tasks: np.ndarray
  prev_actions: dict[str, np.ndarray]
  vectors: dict[str, np.ndarray]

  def context(self, world: World, length: int) -> Batch:
    """Returns the last `length` frames, as imagination is given them.

    If the episode has fewer, they are preceded by frames of a separate segment,
    which the others do not see.
    """
    number = np.arange(self.start + 1 - length, self.start + 1)
    own, rows = np.maximum(number, 0), len(self.frames)
    spread = lambda x: np.broadcast_to(x, (rows, length))
    zero = np.zeros((rows, length), np.float32)
    led = jax.tree.map(lambda x: x[:, own], self.prev_actions)
    return Batch(
      frames=self.frames[:, own],
      # A dream does not use what the agent did at these frames.
      action=jax.tree.map(np.zeros_like, led),
      action_mask=zero > 0,
      prev_action=led,
      prev_action_mask=spread(number > 0),
      cloned=zero > 0,
      reward=np.zeros((*zero.shape, world.config.num_tasks), np.float32),
      cont=zero + 1,
      task=self.tasks[:, own],
      segment_ids=spread((number >= 0).astype(np.int32)),
      relevant=np.zeros(rows, bool),
      vectors={
        part.name: self.vectors[part.name][:, own]
        for part in world.config.vectors
      },
    )


def play_on(env: Environment, state: PyTree, actions: Actions) -> EnvStep:
  """Continues from a state that was kept.

  Args:
    env: functional environment.
    state: of B episodes.
    actions: components `[B, H, ...]`.

  Returns:
    What is shown after each action, `[B, H, ...]`.
  """
  swap = lambda tree: jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)
  _, steps = jax.lax.scan(env.step, state, swap(actions))
  return swap(steps)


def moments(
  world: World, env: Environment
) -> Callable[[Params, Array, Sequence[int], Sequence[int]], Iterator[Moment]]:
  """Returns `play(params, key, seeds, starts)`, which yields moments."""
  stages = world.config.stages()

  @jax.jit
  def turn(params, env_state, step, actor, prompt, key, t):
    events = own_events(world, step.events, env.spec.tasks)
    prompt = advance(prompt, events)
    action, _, actor = act(
      world,
      params,
      actor,
      Observation(
        step.frame, jnp.full(step.terminal.shape, t == 0), step.vectors
      ),
      prompt.task(),
      jax.random.fold_in(key, t),
    )
    new = env.step(env_state, action)
    return *new, actor, prompt, action

  reset = jax.jit(env.reset)

  def play(params, key, seeds, starts):
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    env_state, step = reset(keys)
    actor = init_actor(world, len(seeds))
    prompt = init_prompt(stages, len(seeds))
    shown, led = [], [jax.device_get(no_action(world.space, (len(seeds),)))]
    for t in range(max(starts) + 1):
      before, now = env_state, step
      env_state, step, actor, prompt, action = turn(
        params, before, now, actor, prompt, key, np.uint32(t)
      )
      shown.append(jax.device_get((now.frame, prompt.task(), now.vectors)))
      if t in starts:
        frames, tasks, vectors = _stack(shown)
        yield Moment(
          start=t,
          env_state=before,
          live=~np.asarray(now.terminal | now.timeout),
          frames=frames,
          tasks=tasks,
          prev_actions=_stack(led),
          vectors=vectors,
        )
      led.append(jax.device_get(action))

  return play


def _stack(frames: list[PyTree]) -> PyTree:
  return jax.tree.map(lambda *x: np.stack(x, axis=1), *frames)
