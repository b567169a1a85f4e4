"""Dreams to act in, as pure functions: an action in, a frame out.

The world model in the place of an environment. A batch of dreams is one
program, and its state is a pytree that the caller holds: it may be scanned,
kept to return to, and played by a person, a policy or a game's server. Frames
are made by the functions that imagination and interactive play are made of,
with the same keys: what is dreamed here step by step is what `rollout.imagine`
dreams in one go.

Time is that of `types`: reward, continuation and task are those of the frame
that a step arrives at.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.config import Stages, require
from dreamer4_jax.models import Params, World
from dreamer4_jax.nn import TimeCache, splice
from dreamer4_jax.rollout import (
  FrameInput,
  Pending,
  Prompt,
  advance,
  append_and_denoise,
  append_frame,
  arrival,
  context_noise,
  denoise_frame,
  draw_context,
  draw_next,
  draw_noise,
  init_prompt,
  prepare_context,
  restart,
  take_back_last,
)
from dreamer4_jax.types import Actions, Array, Batch, PyTree

Termination = float | Literal['sample', 'never']


@struct.dataclass
class DreamState:
  """The past of B dreams; what is not needed is None.

  Attributes:
    dynamics: cache of the dynamics; without heads it lacks the last frame.
    pending: the last frame, which the next step appends; without heads.
    decoder: cache of the tokenizer's decoder; with frames.
    agent: `[B, D]` agent states, which the run's policy reads; with heads.
    task: `[B]` int32 task held, or vectors `[B, E]`; with heads.
    prompt: how far each dream has come, if there is a prompt.
    count: `[B]` int32 frames dreamed so far.
    terminal: `[B]` bool, the episode ended for good.
    timeout: `[B]` bool, the dream has reached its horizon.
    context_index: `[B]` int32, how clear frames to come will be to the model
      once they are past, in 0..max_steps - 1; None, as after `reset`, is
      `dynamics.context_index`.
  """

  dynamics: TimeCache
  pending: Pending | None
  decoder: TimeCache | None
  agent: Array | None
  task: Array | None
  prompt: Prompt | None
  count: Array
  terminal: Array
  timeout: Array
  context_index: Array | None = None

  @property
  def over(self) -> Array:
    """`[B]` bool, the dream has ended: reset it, further steps earn 0."""
    return self.terminal | self.timeout


@struct.dataclass
class DreamStep:
  """What B dreams show after `reset` or `step`.

  Attributes:
    frame: `[B, H, W, C]` uint8, decoded; None for a `Dream` without frames.
    latents: `[B, N_z, C]` float32 standardised tokens of the same frame.
    reward: `[B]` float32, expected reward of the task held on arriving here; 0
      after `reset`, after the end, and without heads.
    cont: `[B]` float32, predicted probability that the episode goes on, with
      `stop_at_event` also that no event ends it; 1 after `reset` and without
      heads.
    terminal: `[B]` bool, the episode ended for good.
    timeout: `[B]` bool, the dream was cut at its horizon.
  """

  frame: Array | None
  latents: Array
  reward: Array
  cont: Array
  terminal: Array
  timeout: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dream:
  """How to dream; hashable, so its methods can be jitted as they are.

  Parameters are handed to the methods, best from `World.for_inference`: entries
  `tokenizer` and `latents`, `dynamics`, and with heads `task`, `reward` and
  `continuation`. Keys are of `jax.random.key`: one for all dreams or, so that
  no dream depends on its neighbours, `[B]`, one for each.
  """

  world: World
  """Modules; `dynamics.context_signal` of its config says how clear past frames
  are to the model."""
  horizon: int
  """Time limit, in frames after the context."""
  sampling_steps: int
  """Denoising steps K of a frame, a power of two."""
  heads: bool = True
  """Whether reward and continuation are read. Without them the dynamics is
  enough, a frame costs K passes instead of K + 1, rewards are 0, and only the
  horizon ends a dream."""
  frames: bool = True
  """Whether frames are decoded."""
  termination: Termination = 'sample'
  """When an episode ends for good: `sample` draws it with the predicted
  probability, a number in 0..1 ends it where the probability that it goes on is
  below, and `never` leaves it to the horizon."""
  stop_at_event: bool = False
  """An event of the task ends the episode too, with the probability that the
  reward says: for tasks whose reward is an event, as in imagination."""
  prompt: Stages | None = None
  """Pairs of task id and count that are pursued one after another. None holds
  the task of the context's last frame, as imagination does."""
  event_above: float = 0.5
  """With a prompt: predicted reward above which the task's event has happened.
  The next task is then held from the next frame on."""

  def __post_init__(self):
    require(self.horizon >= 1, 'horizon', self.horizon, 'must be at least 1')
    most = self.world.config.dynamics.max_steps
    steps = self.sampling_steps
    require(
      1 <= steps <= most and steps & (steps - 1) == 0,
      'sampling_steps',
      steps,
      f'must be a power of two up to dynamics.max_steps = {most}',
    )
    end = self.termination
    require(
      end in ('sample', 'never')
      or (not isinstance(end, str) and 0 <= end <= 1),
      'termination',
      end,
      "must be 'sample', 'never', or a probability in 0..1",
    )
    require(
      self.prompt is None or self.heads,
      'prompt',
      self.prompt,
      'moves on by the reward head; leave it out where heads = False',
    )
    require(
      not (self.prompt and self.stop_at_event),
      'stop_at_event',
      True,
      'an event moves the prompt on; give one of the two',
    )

  def reset(
    self, params: Params, contexts: Batch, key: Array
  ) -> tuple[DreamState, DreamStep]:
    """Begins dreams where real clips end.

    Args:
      params: see the class.
      contexts: `[B, T, ...]`, frames or latents. The task of the last frame is
        held; `contexts.replace(task=...)` has another one held, vectors
        `[B, T, E]` included.
      key: draws the context noise.

    Returns:
      The state; and the last frame of the contexts, as the model sees it.
    """
    world, rows = self.world, contexts.segment_ids.shape[0]
    prompt = None
    if self.prompt is not None:
      prompt = init_prompt(self.prompt, rows)
      first = jnp.broadcast_to(prompt.task()[:, None], contexts.cont.shape)
      contexts = contexts.replace(task=first)
    context = prepare_context(
      world, params, contexts, key, with_agent=self.heads
    )
    cache, pending = context.cache, None
    if not self.heads:
      cache, pending = take_back_last(context, contexts)
    frame = decoder = None
    if self.frames:
      frame, decoder = draw_context(
        world, params, context.z, contexts.segment_ids
      )
    no = jnp.zeros(rows, bool)
    state = DreamState(
      dynamics=cache,
      pending=pending,
      decoder=decoder,
      agent=context.agent[:, -1] if self.heads else None,
      task=jnp.asarray(contexts.task)[:, -1] if self.heads else None,
      prompt=prompt,
      count=jnp.zeros(rows, jnp.int32),
      terminal=no,
      timeout=no,
    )
    return state, DreamStep(
      frame=frame,
      latents=context.z[:, -1],
      reward=jnp.zeros(rows),
      cont=jnp.ones(rows),
      terminal=no,
      timeout=no,
    )

  def step(
    self, params: Params, state: DreamState, action: Actions, key: Array
  ) -> tuple[DreamState, DreamStep]:
    """Dreams the frames that actions lead to.

    Args:
      params: see the class.
      state: of B dreams; one that is over goes on without reward.
      action: components `[B, ...]`, all of them known.
      key: all randomness. The three keys that it is split into are those of a
        frame of `rollout.imagine`; the first, an action's there, draws the end.

    Returns:
      The state with these frames, and what they show.
    """
    world = self.world
    end_key, start_key, noise_key = _split(key, 3)
    z, state = self._dream(params, state, action, start_key, noise_key)
    frame, decoder = None, state.decoder
    if self.frames:
      frame, decoder = draw_next(world, params, z, decoder)
    rows = state.count.shape[0]
    reward, cont = jnp.zeros(rows), jnp.ones(rows)
    if self.heads:
      reward, cont = arrival(world, params, state.agent)
    if self.stop_at_event and self.heads:
      cont = cont * (1 - jnp.clip(reward, 0, 1))
    reward = jnp.where(state.over, 0, reward)
    count = state.count + 1
    ended = ~state.over & self._ends(cont, end_key)
    terminal = state.terminal | ended
    timeout = state.timeout | ((count >= self.horizon) & ~terminal)
    task, prompt = self._pursue(state, reward)
    new = state.replace(
      decoder=decoder,
      task=task,
      prompt=prompt,
      count=count,
      terminal=terminal,
      timeout=timeout,
    )
    return new, DreamStep(
      frame=frame,
      latents=z[:, 0],
      reward=reward,
      cont=cont,
      terminal=terminal,
      timeout=timeout,
    )

  def restart(
    self,
    params: Params,
    now: tuple[DreamState, DreamStep],
    which: Array,
    contexts: Batch,
    key: Array,
  ) -> tuple[DreamState, DreamStep]:
    """Begins some dreams anew, while the others stay where they are.

    Args:
      params: see the class.
      now: what `reset` or `step` returned.
      which: `[B]` bool, the dreams that begin anew.
      contexts: `[B, T, ...]`, used where `which` is true.
      key: as of `reset`.

    Returns:
      State and step, new where `which` is true.
    """
    (old, shown), (new, first) = now, self.reset(params, contexts, key)
    if old.context_index is not None:
      new = self.at_level(new, old.context_index)
    config = self.world.config

    def ring(a: TimeCache | None, b: TimeCache | None, base: float):
      return a and splice(a, b, which, rope_base=base)

    def pick(new: PyTree, old: PyTree) -> PyTree:
      shape = lambda x: which.reshape(-1, *(1,) * (x.ndim - 1))
      return jax.tree.map(lambda a, b: jnp.where(shape(a), a, b), new, old)

    own = lambda state: state.replace(dynamics=None, decoder=None, prompt=None)
    state = pick(own(new), own(old)).replace(
      dynamics=ring(old.dynamics, new.dynamics, config.dynamics.rope_base),
      decoder=ring(old.decoder, new.decoder, config.tokenizer.rope_base),
      prompt=old.prompt and restart(old.prompt, which),
    )
    return state, pick(first, shown)

  def at_level(self, state: DreamState, index: Array) -> DreamState:
    """Says how clear frames to come will be to the model once they are past.

    Args:
      state: of B dreams.
      index: `[B]` int32 in 0..max_steps - 1, `dynamics.context_signal` on the
        grid of levels.
    """
    pending, c = state.pending, self.world.config.dynamics
    if pending is not None and pending.index is None:
      own = jnp.full(index.shape, c.context_index, jnp.int32)
      pending = pending.replace(index=own)
    return state.replace(context_index=index, pending=pending)

  def _dream(
    self,
    params: Params,
    state: DreamState,
    action: Actions,
    start_key: Array,
    noise_key: Array,
  ) -> tuple[Array, DreamState]:
    """Tokens `[B, 1, N_z, C]` of the next frame, and the state with it."""
    world, config = self.world, self.world.config.dynamics
    rows = state.count.shape[0]
    shape = (rows, 1, config.num_spatial_tokens, world.channels)
    start, noise = draw_noise(start_key, shape), draw_noise(noise_key, shape)
    token = None
    if self.heads:
      token = world.agent_token(params, state.task[:, None])
    inputs = FrameInput(
      prev_action=jax.tree.map(lambda a: jnp.asarray(a)[:, None], action),
      prev_action_mask=jnp.ones((rows, 1), bool),
      agent=token,
    )
    steps, cache = self.sampling_steps, state.dynamics
    if self.heads:
      z = denoise_frame(world, params, cache, inputs, start, steps=steps)
      h, cache = append_frame(
        world, params, cache, inputs, z, noise, state.context_index
      )
      return z, state.replace(dynamics=cache, agent=h)
    z, cache = append_and_denoise(
      world, params, cache, state.pending, inputs, start, steps=steps
    )
    index = state.context_index
    pending = Pending(
      noisy=context_noise(world, z, noise, index),
      inputs=inputs,
      segment=cache.segment,
      index=index,
    )
    return z, state.replace(dynamics=cache, pending=pending)

  def _ends(self, cont: Array, key: Array) -> Array:
    """`[B]` bool, whether frames with these continuations are the last."""
    if self.termination == 'never' or not self.heads:
      return jnp.zeros(cont.shape, bool)
    if self.termination == 'sample':
      return draw_noise(key, cont.shape, jax.random.uniform) >= cont
    return cont < self.termination

  def _pursue(
    self, state: DreamState, reward: Array
  ) -> tuple[Array | None, Prompt | None]:
    """The task held from the next frame on, and the prompt."""
    if state.prompt is None:
      return state.task, None
    events = jax.nn.one_hot(state.task, self.world.config.num_tasks)
    happened = (reward > self.event_above)[:, None]
    prompt = advance(state.prompt, events * happened)
    return prompt.task(), prompt


def _split(key: Array, count: int) -> list[Array]:
  """Splits one key, or each of `[B]` keys."""
  if key.ndim and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    keys = jax.vmap(lambda own: jax.random.split(own, count))(key)
    return [keys[:, i] for i in range(count)]
  return [*jax.random.split(key, count)]
