"""The trained agent as an object: a frame in, an action out.

For a robot, a game, or any loop that is no program of ours. It decides as in
`dreamer4 evaluate`, by `rollout.pursue`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import require
from dreamer4_jax.models import Params, World
from dreamer4_jax.play.convert import to_actions
from dreamer4_jax.play.loading import load_policy, task_id
from dreamer4_jax.rollout import (
  Pursuit,
  arrival,
  init_actor,
  init_prompt,
  pursue,
)
from dreamer4_jax.types import Actions, Array, Observation

EVENT_ABOVE = 0.5
"""Predicted reward above which a task's event has happened, where nobody says
whether it has."""


class Agent:
  """Acts on streams of frames, and remembers them.

  One stream, `frame [H, W, C]`, or B of them, `[B, H, W, C]`: then everything
  that is given or returned leads with B. The first frame decides which.
  """

  def __init__(
    self,
    run_dir: str | pathlib.Path,
    *,
    phase: str = 'imagination',
    temperature: float = 1.0,
    seed: int = 0,
  ):
    """Loads the policy of a run.

    Args:
      run_dir: run directory.
      phase: `imagination`, or `finetune` for the clone.
      temperature: of the policy; 0 is greedy.
      seed: of the actions that are drawn.

    Raises:
      FileNotFoundError: there is no run, or the phase is not trained.
      ValueError: the phase has no policy, or the temperature is below 0.
    """
    self._begin(*load_policy(run_dir, phase), temperature, seed)

  @classmethod
  def of(
    cls,
    world: World,
    params: Params,
    *,
    temperature: float = 1.0,
    seed: int = 0,
  ) -> Agent:
    """Returns an agent of modules and parameters that are at hand.

    Args:
      world: modules.
      params: entries `tokenizer`, `latents`, `dynamics`, `task`, `policy`,
        `reward`, `continuation`.
      temperature: of the policy; 0 is greedy.
      seed: of the actions that are drawn.
    """
    agent = cls.__new__(cls)
    agent._begin(world, params, temperature, seed)
    return agent

  def _begin(
    self, world: World, params: Params, temperature: float, seed: int
  ) -> None:
    require(
      temperature >= 0, 'temperature', temperature, 'must be at least 0, greedy'
    )
    self.world = world
    self._params, self._temperature = params, temperature
    self._key, self._turn = jax.random.key(seed), 0
    self._decide = jax.jit(_decider(world))
    self.reset()

  def reset(self) -> None:
    """Forgets everything; the next frame is a first one. Draws go on."""
    self._memory: Pursuit | None = None
    self._events: Array | None = None
    self._batched, self._fresh = False, True

  @property
  def tasks(self) -> list[str] | str | None:
    """Names of the tasks that the prompt asks for; None before a first frame.

    A name for a single stream, else a list of B.
    """
    if self._memory is None:
      return None
    names = [
      (*self.world.config.tasks, *self.world.config.baselines)[i]
      for i in np.asarray(self._memory[1].task())
    ]
    return names if self._batched else names[0]

  def step(
    self,
    frame: Any,
    prev_action: Mapping[str, Any] | None = None,
    task: str | int | Sequence[str | int] | np.ndarray | None = None,
    is_first: bool | Sequence[bool] | np.ndarray = False,
    *,
    events: Sequence[str] | np.ndarray | None = None,
    vectors: Mapping[str, Any] | None = None,
  ) -> dict[str, np.ndarray]:
    """Sees the next frame, and decides what to do.

    Args:
      frame: `[H, W, C]` or `[B, H, W, C]` uint8, as the run was trained on.
      prev_action: what was really done since the last frame, components by
        name, for example because a person took over. None is what this agent
        has decided.
      task: name or id to pursue on this frame, or `[B]` of them; or vectors,
        `[E]` or `[B, E]` floats, in a run with `agent.task_vector_size`. None
        follows the prompt of the run.
      is_first: whether an episode begins with this frame, for all streams or
        `[B]`; memory and prompt then begin anew. The first frame after `reset`
        always does.
      events: what was achieved on the way to this frame, by which the prompt
        moves on at once: names of tasks, or numbers, `[num_tasks]` or
        `[B, num_tasks]`. None leaves it to the reward head, which knows of the
        task pursued only: above `EVENT_ABOVE` its event has happened, and the
        prompt moves on with the next frame.
      vectors: what is observed along with the frame, by name, `[n]` or
        `[B, n]`; needed if the run has some.

    Returns:
      Components by name, `[...]` or `[B, ...]`.

    Raises:
      ValueError: something is not of the shape or type that it must have.
    """
    world, frame = self.world, np.asarray(frame)
    shape = world.config.tokenizer.frame_shape
    require(
      frame.dtype == np.uint8
      and frame.ndim in (3, 4)
      and frame.shape[-3:] == shape,
      'frame',
      f'{frame.dtype} {frame.shape}',
      f'must be uint8 {shape}, or [B, ...] of them',
    )
    batched = frame.ndim == 4
    frame = frame if batched else frame[None]
    rows = len(frame)
    first = np.broadcast_to(np.asarray(is_first, bool), (rows,))
    if self._memory is None:
      self._remember(rows, batched)
    first = first | self._fresh
    known = len(self._events)
    require(
      (known, self._batched) == (rows, batched),
      'frame',
      frame.shape if batched else frame.shape[1:],
      f'the memory is of {f"[{known}] streams" if self._batched else "one"}; '
      'call reset() first',
    )
    actor, *rest = self._memory
    if prev_action is not None:
      given = prev_action if batched else _spread(prev_action)
      given = to_actions(given, world.space, (rows,), 'prev_action')
      actor = actor.replace(prev_action=jax.tree.map(jnp.asarray, given))
    seen = _spread(vectors or {}) if not batched else dict(vectors or {})
    if events is not None:
      self._events = jnp.asarray(self._named(events, rows))
    actions, self._memory, self._events = self._decide(
      self._params,
      (actor, *rest),
      Observation(
        frame,
        first,
        {k: np.asarray(v, np.float32) for k, v in seen.items()},
      ),
      self._events,
      self._held(task, rows),
      jax.random.fold_in(self._key, self._turn),
    )
    self._turn, self._fresh = self._turn + 1, False
    actions = jax.tree.map(np.array, jax.device_get(actions))
    return actions if batched else {k: v[0] for k, v in actions.items()}

  def _remember(self, rows: int, batched: bool) -> None:
    config = self.world.config
    self._memory = (
      init_actor(self.world, rows),
      init_prompt(config.stages(), rows),
      jnp.float32(self._temperature),
    )
    self._events = jnp.zeros((rows, config.num_tasks))
    self._batched = batched

  def _held(self, task: Any, rows: int) -> np.ndarray | None:
    """Ids `[B]` or vectors `[B, E]`."""
    if task is None:
      return None
    config = self.world.config
    if isinstance(task, (str, int, np.integer)):
      return np.full(rows, task_id(config, task), np.int32)
    given, size = np.asarray(task), config.agent.task_vector_size
    if np.issubdtype(given.dtype, np.floating):
      require(
        size > 0 and given.shape in ((size,), (rows, size)),
        'task',
        given.shape,
        f'vectors must be [{size}] or [{rows}, {size}], and need '
        'agent.task_vector_size above 0',
      )
      return np.broadcast_to(given.astype(np.float32), (rows, size))
    require(
      given.shape == (rows,), 'task', task, f'needs one for each of {rows}'
    )
    ids = [task_id(config, x.item()) for x in given]
    return np.asarray(ids, np.int32)

  def _named(self, events: Any, rows: int) -> np.ndarray:
    """Events `[B, num_tasks]` float32."""
    config, given = self.world.config, events
    if len(given) == 0 or isinstance(given[0], str):
      ids = [task_id(config, name) for name in given]
      given = np.isin(np.arange(config.num_tasks), ids)
    given = np.asarray(given, np.float32)
    require(
      given.shape[-1:] == (config.num_tasks,) and given.ndim <= 2,
      'events',
      given.shape,
      f'must be names, or numbers of the {config.num_tasks} tasks',
    )
    return np.broadcast_to(given, (rows, config.num_tasks))


def _spread(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """One stream as a batch of one."""
  return {name: np.asarray(x)[None] for name, x in values.items()}


def _decider(world: World):
  """Returns a pure function that acts, and notes events for the next frame."""

  def decide(
    params: Params,
    memory: Pursuit,
    seen: Observation,
    events: Array,
    task: Array | None,
    key: Array,
  ) -> tuple[Actions, Pursuit, Array]:
    actions, h, memory = pursue(world, params, memory, seen, events, key, task)
    held = memory[1].task() if task is None else task
    happened = arrival(world, params, h)[0] > EVENT_ABOVE
    if held.ndim > 1:  # Vectors are no task of the prompt.
      return actions, memory, jnp.zeros_like(events)
    own = jax.nn.one_hot(held, world.config.num_tasks)
    return actions, memory, own * happened[:, None]

  return decide
