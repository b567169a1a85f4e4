"""Compiled frames of a world, for several players at once.

Every player has a state of one row, with a clock of its own, so that anybody
can go back at any time. A frame of several players is one call: rows are
stacked, and unused ones are filled with somebody else's. There is a program for
one and one for all; in each a frame depends on nothing but its own state,
action and key, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.models import Params, no_action
from dreamer4_jax.objectives import TwoHot
from dreamer4_jax.play.dream import Dream, DreamState
from dreamer4_jax.play.serve.timeline import Ask
from dreamer4_jax.rollout import compiler_options, sample_policy
from dreamer4_jax.types import Actions, Array, Batch, PyTree


class Frames(NamedTuple):
  """What B rows show; all but `frame` as float32.

  Attributes:
    frame: `[B, H, W, C]` uint8.
    reward: `[B]` expected reward of the task held.
    cont: `[B]` probability that the episode goes on.
    value: `[B]` of the agent's state, nan without a value head.
    action: components `[B, ...]` that were taken.
  """

  frame: Array
  reward: Array
  cont: Array
  value: Array
  action: Actions


class Programs:
  """Begins dreams and continues them, alone or up to `rows` in a call.

  `dream` should never end by itself: `termination='never'` and a long horizon.
  """

  def __init__(self, dream: Dream, params: Params, contexts: Batch, rows: int):
    """Prepares; `compile` compiles.

    Args:
      dream: how to dream; its `sampling_steps` is the first K.
      params: of `World.for_inference`.
      contexts: `[N, T, ...]` clips that dreams continue.
      rows: players at most.
    """
    self.dream, self.rows = dream, rows
    self._params, self._contexts = params, contexts
    self._begin = jax.jit(self._begin_fn(), compiler_options=compiler_options())
    self._steps: dict[tuple[int, int], Any] = {}  # By K and rows.

  @property
  def starts(self) -> int:
    """How many clips there are."""
    return len(self._contexts.cont)

  def ready(self, steps: int, rows: int = 1) -> bool:
    """Whether frames of K steps are compiled, in that many rows."""
    return (steps, rows) in self._steps

  def compile(self, steps: int, rows: int = 1) -> None:
    """Compiles frames of K steps in 1 or all rows, and runs one."""
    dream = dataclasses.replace(self.dream, sampling_steps=steps)
    step = jax.jit(_step_fn(dream, rows), compiler_options=compiler_options())
    state, _ = self.begin(0, 0)
    world = dream.world
    zeros = jax.tree.map(np.asarray, no_action(world.space, ()))
    human = {name: True for name in zeros}
    level = world.config.dynamics.context_index
    call = state, Ask(zeros, human, steps, level, 0), 0, 1
    self._run(step, rows, [call])
    self._steps[steps, rows] = step

  def begin(self, start: int, seed: int) -> tuple[DreamState, Frames]:
    """Begins one dream, frame 0, where a clip ends."""
    return self.begin_clip(self._contexts, seed, start)

  def begin_clip(
    self, clips: Batch, seed: int, start: int = 0
  ) -> tuple[DreamState, Frames]:
    """Begins one dream where one of other clips ends, `[N, T, ...]`."""
    state, shown = self._begin(
      self._params, clips, np.int32(start), np.uint32(seed)
    )
    return state, jax.device_get(shown)

  def step(
    self,
    steps: int,
    rows: int,
    calls: Sequence[tuple[PyTree, Ask, int, int]],
  ) -> list[tuple[DreamState, Frames]]:
    """Dreams a frame in up to `rows` dreams, with K = `steps`.

    Args:
      steps: K, compiled.
      rows: of the program, compiled.
      calls: state, what is asked, seed and number of the frame, of each.

    Returns:
      State and what is shown, of each; frames are of one row.
    """
    return self._run(self._steps[steps, rows], rows, calls)

  def _run(self, step: Any, rows: int, calls: Sequence[Any]) -> list[Any]:
    full = [*calls, *[calls[0]] * (rows - len(calls))]
    states = tuple(state for state, *_ in full)
    asks = [ask for _, ask, *_ in full]
    stack = lambda trees: jax.tree.map(lambda *x: np.stack(x), *trees)
    inputs = (
      stack([dict(ask.action) for ask in asks]),
      stack([{k: np.bool_(v) for k, v in ask.human.items()} for ask in asks]),
      np.asarray([seed for *_, seed, _ in full], np.uint32),
      np.asarray([number for *_, number in full], np.uint32),
      np.asarray([ask.task for ask in asks], np.int32),
      np.asarray([ask.level for ask in asks], np.int32),
    )
    new, shown = step(self._params, states, *inputs)
    shown = jax.device_get(shown)
    row = lambda i: jax.tree.map(lambda x: x[i : i + 1], shown)
    return [(new[i], row(i)) for i in range(len(calls))]

  def _begin_fn(self):
    dream = self.dream

    def begin(params, contexts, start, seed):
      clip = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, start, 1), contexts
      )
      key = jax.random.fold_in(jax.random.key(seed), 0)
      state, shown = dream.reset(params, clip, key[None])
      level = dream.world.config.dynamics.context_index
      state = dream.at_level(state, jnp.full(1, level, jnp.int32))
      frames = Frames(
        frame=shown.frame,
        reward=shown.reward,
        cont=shown.cont,
        value=_value(dream, params, state),
        action=jax.tree.map(lambda x: x[:, -1], clip.prev_action),
      )
      return jax.tree.map(_strong, (state, frames))

    return begin


def _step_fn(dream: Dream, rows: int):
  """Returns a function of `rows` states, in one program."""
  world = dream.world

  def one(params, state, action, human, seed, number, task, level):
    key = jax.random.fold_in(jax.random.key(seed), number)
    if dream.heads:
      state = state.replace(task=task[None])
      policy = sample_policy(world, params)
      drawn = policy(jax.random.split(key, 3)[0], state.agent, 0)
      action = {
        name: jnp.where(human[name], x[None], drawn[name])
        for name, x in action.items()
      }
    else:
      action = jax.tree.map(lambda x: x[None], action)
    state = state.replace(context_index=level[None])
    state, shown = dream.step(params, state, action, key[None])
    frames = Frames(
      frame=shown.frame,
      reward=shown.reward,
      cont=shown.cont,
      value=_value(dream, params, state),
      action=action,
    )
    return jax.tree.map(_strong, (state, frames))

  def step(params, states, *inputs):
    if rows == 1:
      new, shown = one(params, states[0], *jax.tree.map(_first, inputs))
      return (new,), shown
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    axes = (None, *(0,) * (1 + len(inputs)))
    new, shown = jax.vmap(one, axes)(params, stacked, *inputs)
    pick = lambda i: jax.tree.map(lambda x: x[i], new)
    return tuple(map(pick, range(rows))), jax.tree.map(lambda x: x[:, 0], shown)

  return step


def _value(dream: Dream, params: Params, state: DreamState) -> Array:
  """`[B]` value of agent states."""
  if not dream.heads or 'value' not in params:
    return jnp.full(state.count.shape, jnp.nan, jnp.float32)
  config = dream.world.config.agent
  logits = dream.world.head(params, 'value', state.agent)[..., 0, :]
  return TwoHot(config.bins, config.bin_limit).mean(logits)


def _first(x: Array) -> Array:
  return x[0]


def _strong(x: Array) -> Array:
  """Without weak type, so that a first frame's state is like all others."""
  return jax.lax.convert_element_type(x, x.dtype)
