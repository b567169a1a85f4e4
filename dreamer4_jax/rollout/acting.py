"""Streaming acting: real frames in, actions out, one frame at a time.

The same modules, caches and levels as in imagination: the frame is encoded,
noised to the context level, appended by one dynamics pass with the previous
action, and the policy reads the agent state of that pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import Stages, is_once
from dreamer4_jax.models import (
  Params,
  World,
  distributions,
  dynamics_cache,
  no_action,
  tokenizer_caches,
)
from dreamer4_jax.nn import TimeCache, append, start_segment
from dreamer4_jax.rollout.denoise import FrameInput, append_frame
from dreamer4_jax.types import Actions, Array, Observation


@struct.dataclass
class ActorState:
  """Memory of B streams.

  Attributes:
    encoder: cache of the tokenizer's encoder.
    dynamics: cache of the dynamics.
    prev_action: action executed last, components `[B, ...]`.
  """

  encoder: TimeCache
  dynamics: TimeCache
  prev_action: Actions


def init_actor(world: World, batch: int) -> ActorState:
  """Returns the memory of `batch` streams that have seen nothing."""
  encoder, _ = tokenizer_caches(world.tokenizer, batch)
  return ActorState(
    encoder=encoder,
    dynamics=dynamics_cache(world.dynamics, batch, agent=True),
    prev_action=no_action(world.space, (batch,)),
  )


def act(
  world: World,
  params: Params,
  state: ActorState,
  seen: Observation,
  task: Array,
  key: Array,
  temperature: Array | float = 1.0,
) -> tuple[Actions, Array, ActorState]:
  """Sees one frame and samples the action to execute on it.

  Args:
    world: modules.
    params: parameters, entries `tokenizer`, `latents`, `dynamics`, `task`,
      `policy`.
    state: memory.
    seen: the next frame.
    task: `[B]` int32; or vectors `[B, E]`, see `World.agent_token`.
    key: all randomness.
    temperature: `[]`, of the policy, as in `distributions.sample`; 0 is greedy.

  Returns:
    Actions (components `[B, ...]`), agent states `[B, D]`, new memory.
  """
  noise_key, action_key = jax.random.split(key)
  encoder = start_segment(state.encoder, seen.is_first)
  cache = start_segment(state.dynamics, seen.is_first)
  z, new = world.encode(
    params,
    seen.frame[:, None],
    vectors={k: v[:, None] for k, v in seen.vectors.items()},
    cache=encoder,
  )
  inputs = FrameInput(
    prev_action=jax.tree.map(lambda a: a[:, None], state.prev_action),
    prev_action_mask=~seen.is_first[:, None],
    agent=world.agent_token(params, task[:, None]),
  )
  noise = jax.random.normal(noise_key, z.shape)
  h, cache = append_frame(world, params, cache, inputs, z, noise)
  logits = world.head(params, 'policy', h)
  logits = jax.tree.map(lambda x: x[:, 0], logits)
  action = distributions.sample(action_key, logits, world.space, temperature)
  return (
    action,
    h,
    ActorState(
      encoder=append(encoder, new), dynamics=cache, prev_action=action
    ),
  )


Pursuit: TypeAlias = 'tuple[ActorState, Prompt, Array]'
"""What an agent in pursuit of a prompt remembers: the streams, how far it has
come, and its temperature `[]`."""


@struct.dataclass
class Prompt:
  """Progress of B agents through one list of (task, count).

  Attributes:
    tasks: `[S]` int32 task of each stage.
    counts: `[S]` int32 events needed; the last stage lasts to the end.
    milestones: `[]` bool, each task is asked for once, for one event.
    stage: `[B]` int32.
    done: `[B]` int32 events so far in this stage.
    past: `[B, S]` bool, the event of each stage's task has been seen.
  """

  tasks: Array
  counts: Array
  milestones: Array
  stage: Array
  done: Array
  past: Array

  def task(self) -> Array:
    """Task of every agent, `[B]` int32."""
    return self.tasks[self.stage]


def init_prompt(stages: Stages, batch: int) -> Prompt:
  """Starts `batch` agents at the first of `stages`, pairs (task, count)."""
  tasks, counts = zip(*stages, strict=True)
  return Prompt(
    tasks=jnp.asarray(tasks, jnp.int32),
    counts=jnp.asarray(counts, jnp.int32),
    milestones=jnp.asarray(is_once(stages)),
    stage=jnp.zeros((batch,), jnp.int32),
    done=jnp.zeros((batch,), jnp.int32),
    past=jnp.zeros((batch, len(tasks)), bool),
  )


def restart(prompt: Prompt, which: Array) -> Prompt:
  """Returns to the first stage where `which [B]` is true, at first frames."""
  return prompt.replace(
    stage=jnp.where(which, 0, prompt.stage),
    done=jnp.where(which, 0, prompt.done),
    past=prompt.past & ~which[:, None],
  )


def own_events(world: World, events: Array, tasks: Sequence[str]) -> Array:
  """Picks the events that a run has tasks for.

  Args:
    world: modules.
    events: `[..., n]` of an environment.
    tasks: its n tasks, among them those of the run.

  Returns:
    `[..., num_tasks]`, in the order of the run's tasks.
  """
  if tuple(tasks) == world.config.tasks:
    return events
  index = [tuple(tasks).index(name) for name in world.config.tasks]
  return events[..., np.array(index)]


def pursue(
  world: World,
  params: Params,
  memory: Pursuit,
  seen: Observation,
  events: Array,
  key: Array,
  task: Array | None = None,
) -> tuple[Actions, Array, Pursuit]:
  """Acts on one frame, in pursuit of the prompt.

  The prompt begins anew where an episode does, and moves on to the next task on
  the very frame on which an event is seen.

  Args:
    world: modules.
    params: as of `act`.
    memory: before the frame.
    seen: the frame.
    events: `[B, num_tasks]` that led to it.
    key: all randomness.
    task: held on this frame in the place of the prompt's, as in `act`.

  Returns:
    Actions, agent states `[B, D]`, and the memory after.
  """
  actor, prompt, temperature = memory
  prompt = advance(restart(prompt, seen.is_first), events)
  task = prompt.task() if task is None else task
  actions, h, actor = act(world, params, actor, seen, task, key, temperature)
  return actions, h, (actor, prompt, temperature)


def advance(prompt: Prompt, events: Array) -> Prompt:
  """Counts `events [B, num_tasks]`, moving on where a stage is complete.

  An event counts for the stage in force when it happened, and several events
  of one step never skip a stage; but where each task is asked for once, what
  was achieved ahead of its stage is not asked for again. A stage whose id is
  not a task, such as the prompt of a baseline, has no events and lasts.
  """
  stages = jnp.broadcast_to(prompt.tasks[None], prompt.past.shape)
  seen = jnp.take_along_axis(events, stages, axis=1, mode='fill', fill_value=0)
  own = jnp.take_along_axis(seen, prompt.stage[:, None], axis=1)
  done = prompt.done + own[:, 0].astype(jnp.int32)
  last = prompt.tasks.shape[0] - 1
  forward = (done >= prompt.counts[prompt.stage]) & (prompt.stage < last)
  past = prompt.past | (seen > 0)
  left = jnp.where(past.all(axis=1), last, jnp.argmin(past, axis=1))
  stage = prompt.stage + forward.astype(jnp.int32)
  return prompt.replace(
    stage=jnp.where(prompt.milestones, left, stage).astype(jnp.int32),
    done=jnp.where(forward, 0, done),
    past=past,
  )
