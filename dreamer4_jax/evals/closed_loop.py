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
  init_actor,
  init_prompt,
  own_events,
  pursue,
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
    success: `[B]` bool, the last task of the prompt was achieved as often as
      the prompt asks for it; None where it is not defined, since the
      environment has rewards but no events.
    returns: `[B]` float32, sum of the environment's rewards.
    length: `[B]` int32 steps until the end.
    achieved: `[B, tasks]` bool, of the environment's tasks.
    first: `[B, tasks]` int32 step on which each was first achieved, else -1.
    frames: `[n, S + 1, H, W, C]` uint8 of the first n episodes, S the length of
      the longest of them; a finished episode keeps its last frame.
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

  def __init__(
    self, env: Environment, agent: Agent, goal: str = '', times: int = 1
  ):
    """Takes an environment, and an agent that acts on a batch in it.

    Args:
      env: the environment.
      agent: acts on a batch.
      goal: task that makes an episode a success; by default the last.
      times: how many of its events it takes.
    """
    tasks = list(env.spec.tasks)
    self._goal = tasks.index(goal) if goal else len(tasks) - 1, times

    def decide(params, step, memory, key, t, first):
      return agent(params, memory, step, first, jax.random.fold_in(key, t))

    def turn(params, env_state, step, memory, key, t, first):
      actions, memory = decide(params, step, memory, key, t, first)
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
    """Plays one episode per seed, as many at once as there are places.

    Args:
      params: handed to the agent.
      memory: the agent's state before the first frame, of `places(env, n)`
        streams; it must begin afresh where `is_first` is true.
      seeds: one for each of the n episodes; the same seed is the same level.
      key: the agent's randomness.
      keep_frames: number of episodes whose frames are kept.
      label: for the progress bar.
    """
    count = places(self._env, len(seeds))
    diary = _Diary(self._env, len(seeds), keep_frames)
    episode, waiting = np.arange(count), list(range(count, len(seeds)))
    env_state, step = self._reset(_keys(seeds[:count]))
    first, t = np.ones(count, bool), 0
    diary.note(episode, step, first)
    with tqdm.tqdm(
      total=len(seeds), desc=f'evaluate {label}', unit='episode'
    ) as bar:
      while (episode >= 0).any():
        env_state, step, memory = self._turn(
          params, env_state, step, memory, key, np.uint32(t), first
        )
        t, first = t + 1, np.zeros(count, bool)
        over = diary.note(episode, step, first)
        episode[over] = -1
        bar.update(int(over.sum()))
        if waiting and t % _REFILL == 0 and (episode < 0).any():
          first = episode < 0
          first &= np.cumsum(first) <= len(waiting)
          number = first.sum()
          episode[first] = waiting[:number]
          del waiting[:number]
          # Every place is begun anew, and most of them go on as they were.
          fresh = self._reset(_keys([seeds[max(i, 0)] for i in episode]))
          env_state, step = _mix(first, fresh, (env_state, step))
          diary.note(episode, step, first)
    return diary.episodes(*self._goal)


PLACES = 64
"""Episodes that are played at once on a CPU; a place that is free is filled."""
_PLACES_ON_ACCELERATOR = 1024
_REFILL = 32
"""Steps after which free places are filled."""


def places(env: Environment, episodes: int) -> int:
  """How many episodes an `Evaluator` plays at once.

  Short ones are all played at once, and so are those of a simulator on the
  host, which starts all its episodes together.
  """
  cpu = jax.default_backend() == 'cpu'
  most = PLACES if cpu else _PLACES_ON_ACCELERATOR
  if env.spec.on_host or env.spec.max_steps <= 2 * _REFILL:
    return episodes
  return min(episodes, most)


def _keys(seeds: Sequence[int]) -> Array:
  return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


@jax.jit
def _mix(which: Array, new: PyTree, old: PyTree) -> PyTree:
  """Takes the new values at some places `[B]`."""

  def choose(a: Array, b: Array) -> Array:
    mask = jnp.expand_dims(which, tuple(range(1, a.ndim)))
    return jnp.where(mask, a, b)

  return jax.tree.map(choose, new, old)


class _Diary:
  """What happens in n episodes."""

  def __init__(self, env: Environment, n: int, keep: int):
    """Takes the environment, the number of episodes, and of those kept."""
    tasks = len(env.spec.tasks)
    self._eventful = has_events(env)
    self._limit = env.spec.max_steps
    self._returns = np.zeros(n, np.float32)
    self._length = np.zeros(n, np.int64)
    self._first = np.full((n, tasks), -1, np.int32)
    self._count = np.zeros((n, tasks), np.int32)
    self._frames: list[list[np.ndarray]] = [[] for _ in range(min(keep, n))]
    shape = env.spec.frame_shape
    self._empty = np.zeros((0, 1, *shape), np.uint8)

  def note(self, episode: np.ndarray, step: EnvStep, first: Array) -> Array:
    """Notes what places show; `episode [B]` is that of each, or -1.

    Args:
      episode: number of each place's episode.
      step: what it shows.
      first: `[B]` bool; if any is true, only those are noted, as first frames.

    Returns:
      `[B]` bool, the episodes that end with this step.
    """
    now = episode >= 0
    if first.any():
      now &= first
    kept = np.flatnonzero(now & (episode < len(self._frames)))
    frame = step.frame[kept] if len(kept) else None
    step, frame = jax.device_get((step.replace(frame=None, vectors={}), frame))
    for i, place in enumerate(kept):
      self._frames[episode[place]].append(np.asarray(frame[i]))
    if first.any():
      return np.zeros_like(now)
    which = episode[now]
    self._length[which] += 1
    self._returns[which] += step.reward[now]
    events = step.events[now] > 0
    self._count[which] += events
    fresh = events & (self._first[which] < 0)
    length = np.broadcast_to(self._length[which][:, None], fresh.shape)
    self._first[which] = np.where(fresh, length, self._first[which])
    over = step.terminal | step.timeout
    return now & (over | (self._length[episode] >= self._limit))

  def episodes(self, goal: int, times: int) -> Episodes:
    """Returns the outcomes; `times` events of the task `goal` are a success."""
    achieved = self._first >= 0
    longest = max((len(f) for f in self._frames), default=0)
    padded = [
      np.stack(frames + frames[-1:] * (longest - len(frames)))
      for frames in self._frames
    ]
    return Episodes(
      success=self._count[:, goal] >= times if self._eventful else None,
      returns=self._returns,
      length=self._length,
      achieved=achieved,
      first=self._first,
      frames=np.stack(padded) if padded else self._empty,
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
    actions, _, memory = pursue(
      world,
      params,
      memory,
      Observation(step.frame, is_first, step.vectors),
      own_events(world, step.events, tasks),
      key,
    )
    return actions, memory

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
