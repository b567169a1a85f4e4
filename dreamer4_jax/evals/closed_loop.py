"""Policies in the real environment, all on the same episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from dreamer4_jax.config import Stages, require
from dreamer4_jax.data.format import REWARD_ONLY
from dreamer4_jax.envs import Environment
from dreamer4_jax.models import Params, World, distributions
from dreamer4_jax.rollout import (
  act,
  advance,
  init_actor,
  init_prompt,
  own_events,
)
from dreamer4_jax.types import Actions, Array, EnvStep, Observation, PyTree

# (params, memory, step, is_first [B], key) -> actions, memory
Agent = Callable[
  [Params, PyTree, EnvStep, Array, Array], tuple[Actions, PyTree]
]


@struct.dataclass
class Episodes:
  """Outcomes, one entry per episode.

  Attributes:
    success: `[B]` bool, the goal was achieved; None where it is not defined,
      since the environment has rewards but no events.
    returns: `[B]` float32, sum of the environment's rewards.
    length: `[B]` int32 steps until the end.
    achieved: `[B, tasks]` bool, of the environment's tasks.
    first: `[B, tasks]` int32 step on which each was first achieved, else -1.
    frames: `[n, S + 1, H, W, C]` uint8 of the first n episodes; a finished
      episode keeps its last frame.
  """

  success: np.ndarray | None
  returns: np.ndarray
  length: np.ndarray
  achieved: np.ndarray
  first: np.ndarray
  frames: np.ndarray

  def summary(self) -> dict[str, float | int | None]:
    """Means for the report, and the spread of the returns.

    `achievements` is the number of different tasks achieved in an episode.
    """
    known = self.success is not None
    return {
      'success': float(self.success.mean()) if known else None,
      'episodes': int(self.returns.size),
      'mean_return': float(self.returns.mean()),
      'std_return': float(self.returns.std()),
      'achievements': float(self.achieved.sum(1).mean()) if known else None,
      'mean_length': float(self.length.mean()),
    }


class Evaluator:
  """Plays whole episodes; compiled once for all policies of one agent.

  Parameters and memory, in which the policies differ, must have the same
  structure, shapes and types.
  """

  def __init__(self, env: Environment, agent: Agent, goal: str = ''):
    """Takes an environment, and an agent that acts on a batch in it.

    Args:
      env: the environment.
      agent: acts on a batch.
      goal: task that makes an episode a success; by default the last.
    """
    tasks = list(env.spec.tasks)
    self._goal = tasks.index(goal) if goal else len(tasks) - 1

    def decide(params, step, memory, key, t):
      first = jnp.full(step.reward.shape, t == 0)
      return agent(params, memory, step, first, jax.random.fold_in(key, t))

    def turn(params, env_state, step, memory, key, t):
      actions, memory = decide(params, step, memory, key, t)
      return *env.step(env_state, actions), memory

    self._env = env
    if env.spec.on_host:
      decide = jax.jit(decide)
      self._reset, self._turn = env.reset, turn
    else:
      self._reset, self._turn = jax.jit(env.reset), jax.jit(turn)

  def play(
    self,
    params: Params,
    memory: PyTree,
    *,
    seeds: Sequence[int],
    key: Array,
    keep_frames: int = 0,
    label: str = '',
  ) -> Episodes:
    """Plays one episode per seed, all at once.

    Args:
      params: handed to the agent.
      memory: the agent's state before the first frame.
      seeds: one per episode; the same seed is the same level.
      key: the agent's randomness.
      keep_frames: number of episodes whose frames are kept.
      label: for the progress bar.
    """
    env = self._env
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    env_state, step = self._reset(keys)
    history = [jax.device_get(step.replace(frame=step.frame[:keep_frames]))]
    limit = env.spec.max_steps
    for t in tqdm.tqdm(range(limit), desc=f'evaluate {label}', unit='step'):
      env_state, step, memory = self._turn(
        params, env_state, step, memory, key, np.uint32(t)
      )
      small = step.replace(frame=step.frame[:keep_frames])
      history.append(jax.device_get(small))
      if (history[-1].terminal | history[-1].timeout).all():
        break
    whole = jax.tree.map(lambda *x: np.stack(x, axis=1), *history)
    ended = whole.terminal | whole.timeout
    achieved = whole.events.any(axis=1)
    first = np.where(achieved, whole.events.argmax(axis=1), -1)
    # A finished episode stays as it is, with no further reward or event.
    return Episodes(
      success=achieved[:, self._goal] if has_events(env) else None,
      returns=whole.reward.sum(axis=1),
      length=np.where(ended.any(1), ended.argmax(axis=1), limit),
      achieved=achieved,
      first=first.astype(np.int32),
      frames=whole.frame,
    )


def run_episodes(
  env: Environment,
  agent: Agent,
  params: Params,
  memory: PyTree,
  **settings: Any,
) -> Episodes:
  """Plays one policy; arguments as in `Evaluator` and `Evaluator.play`."""
  return Evaluator(env, agent).play(params, memory, **settings)


def best_policy(episodes: Mapping[str, Episodes]) -> str:
  """Names the policy of highest success, then of highest mean return.

  Remaining ties go to the one with the shortest episodes or, where success is
  not defined, to the first.

  Args:
    episodes: of each policy, at least one, all on the same episodes.
  """

  def quality(name: str) -> tuple[float, float, float]:
    e = episodes[name]
    earned = float(e.returns.mean())
    if e.success is None:
      return 0.0, earned, 0.0
    return float(e.success.mean()), earned, -float(e.length.mean())

  return max(episodes, key=quality)


def has_events(env: Environment) -> bool:
  """Whether an environment has events, and not only a reward."""
  return tuple(env.spec.tasks) != REWARD_ONLY


def random_agent(world: World) -> Agent:
  """Returns an agent that acts uniformly at random."""
  heads = {}
  for part in world.space:
    extra = (part.bins,) if part.kind == 'continuous' else ()
    heads[part.name] = (part.size, *extra)

  def agent(params, memory, step, is_first, key):
    del params, step
    logits = {n: jnp.zeros((*is_first.shape, *s)) for n, s in heads.items()}
    return distributions.sample(key, logits, world.space), memory

  return agent


def streaming_agent(
  world: World,
  episodes: int,
  prompt: int | Stages | None = None,
  temperature: float = 1.0,
  *,
  tasks: Sequence[str] = (),
) -> tuple[Agent, Any]:
  """Returns the trained agent and memory; arguments as in `streaming_memory`.

  The agent is the same whatever is in the memory: one compiled `Evaluator`
  serves all prompts and temperatures. The prompt moves on to the next task on
  the very frame on which an event is seen. `tasks` are the environment's, by
  default those of the run.
  """
  tasks = tasks or world.config.tasks

  def agent(params, memory, step, is_first, key):
    actor, prompt, temperature = memory
    prompt = advance(prompt, own_events(world, step.events, tasks))
    actions, _, actor = act(
      world,
      params,
      actor,
      Observation(step.frame, is_first, step.vectors),
      prompt.task(),
      key,
      temperature,
    )
    return actions, (actor, prompt, temperature)

  return agent, streaming_memory(world, episodes, prompt, temperature)


def streaming_memory(
  world: World,
  episodes: int,
  prompt: int | Stages | None = None,
  temperature: float = 1.0,
) -> Any:
  """What the agent of `streaming_agent` knows before the first frame.

  Args:
    world: modules.
    episodes: streams.
    prompt: stages; or the id of the task, or of the baseline's prompt, that is
      pursued from the first frame to the last; by default the config's prompt.
    temperature: of the policy; 0 is greedy.

  Returns:
    Actor, prompt and temperature.

  Raises:
    ValueError: there is no such prompt.
  """
  stages = world.config.stages()
  known = world.config.num_tasks + len(world.config.baselines)
  require(
    not isinstance(prompt, int) or 0 <= prompt < known,
    'prompt',
    prompt,
    f'must lie in [0, {known}): tasks, then baselines, of which there are some '
    'with phases.finetune.baseline_share above 0',
  )
  if isinstance(prompt, int):
    # As many stages, so that the shape is always the same.
    stages = tuple((prompt, 1) for _ in stages)
  elif prompt is not None:
    stages = prompt
  return (
    init_actor(world, episodes),
    init_prompt(stages, episodes),
    jnp.float32(temperature),
  )
