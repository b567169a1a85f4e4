"""Dream against reality: what a dream promises, and what the game then gives.

Dreams begin in states of the agent's own episodes. The actions that the agent
takes in its dream are then taken in the real game, from that very state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import require
from dreamer4_jax.envs import Environment
from dreamer4_jax.evals.closed_loop import has_events
from dreamer4_jax.evals.moments import Moment, moments, play_on
from dreamer4_jax.models import Params, World
from dreamer4_jax.rollout import (
  Rollout,
  arrivals,
  imagine,
  own_events,
  sample_policy,
)
from dreamer4_jax.types import Array, Batch, EnvStep

PHANTOMS = 6
"""Broken promises that are kept to be shown."""
_PROMISE = 0.5
"""A promise is broken where the dream exceeds reality by more than this."""
_MODULES = (
  'tokenizer',
  'latents',
  'dynamics',
  'task',
  'task_vectors',
  'policy',
  'reward',
  'continuation',
)


@struct.dataclass
class Phantoms:
  """The n worst promises that reality did not keep, worst first.

  Attributes:
    frames: `[n, 1 + H, H, W, C]` uint8, the frame at which the dream begins and
      those of the real game.
    dreamed: same shape, uint8, the same frame decoded and those of the dream.
    task: `[n]` int32 task held.
    start: `[n]` int32 frame of the episode at which the dream begins.
    promise: `[n]` float32, how far the dream exceeds reality, in probability
      or, without events, in return.
  """

  frames: np.ndarray
  dreamed: np.ndarray
  task: np.ndarray
  start: np.ndarray
  promise: np.ndarray

  def captions(self, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Returns `task`, `start` and `promise` of each, for the report."""
    rows = zip(self.task, self.start, self.promise, strict=True)
    return [
      {'task': tasks[k], 'start': int(t), 'promise': float(p)}
      for k, t, p in rows
    ]


@struct.dataclass
class Reality:
  """Dreams and what came of their actions, one entry per state.

  Attributes:
    start: `[n]` int32 frame of the episode at which the dream begins.
    task: `[n]` int32 task that the agent held there, in dream and game.
    dreamed: `[n]` float32, probability that the dream gives the task's event
      within its horizon; None where the environment has rewards but no events.
    real: `[n]` bool, the event happened; likewise.
    return_dreamed: `[n]` float32, undiscounted return of the dream, steps
      weighted by the probability that it still goes on.
    return_real: `[n]` float32, of the game.
    phantoms: the worst promises.
  """

  start: np.ndarray
  task: np.ndarray
  dreamed: np.ndarray | None
  real: np.ndarray | None
  return_dreamed: np.ndarray
  return_real: np.ndarray
  phantoms: Phantoms

  def summary(self, tasks: Sequence[str]) -> dict[str, Any]:
    """Means for the report.

    Args:
      tasks: names of the tasks, in id order.

    Returns:
      `states`, the number; `dreamed` and `real`, mean probability and share;
      `hit` and `phantom`, mean probability dreamed where reality has the event
      (in `events` states) and where it does not (in `without`); `missed`, 1 -
      hit; `return_dreamed`, `return_real`. None stands for what is not defined.
      `tasks` has the same by name, `phantoms` the captions of the pictures.
    """
    everything = np.ones(self.task.shape, bool)
    return {
      **self._means(everything),
      'tasks': {
        name: self._means(self.task == i) for i, name in enumerate(tasks)
      },
      'phantoms': self.phantoms.captions(tasks),
    }

  def _means(self, where: np.ndarray) -> dict[str, float | int | None]:
    known = self.dreamed is not None
    dreamed = self.dreamed[where] if known else np.zeros(0)
    real = self.real[where] if known else np.zeros(0, bool)
    hit = _mean(dreamed[real])
    return {
      'states': int(where.sum()),
      'dreamed': _mean(dreamed),
      'real': _mean(real),
      'events': int(real.sum()) if known else None,
      'hit': hit,
      'missed': None if hit is None else 1 - hit,
      'without': int((~real).sum()) if known else None,
      'phantom': _mean(dreamed[~real]),
      'return_dreamed': _mean(self.return_dreamed[where]),
      'return_real': _mean(self.return_real[where]),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dreams:
  """Settings of the dreams that reality is compared with.

  Attributes:
    context: real frames that a dream begins with; fewer if the episode has
      fewer.
    horizon: frames of a dream.
    sampling_steps: K.
    stop_at_event: returns end at the first event, as in training.
  """

  context: int
  horizon: int
  sampling_steps: int
  stop_at_event: bool


def dream_and_play(
  world: World,
  agents: Mapping[str, Params],
  env: Environment,
  key: Array,
  *,
  seeds: Sequence[int],
  starts: Sequence[int],
  dreams: Dreams,
) -> dict[str, Reality] | None:
  """Lets agents dream in states of their own episodes, and plays their dreams.

  Each agent plays at temperature 1, prompted as the config says. At
  the frames `starts` of every episode that is still going on it dreams, holding
  its task; the actions of the dream are then taken in the game. What the dream
  has beyond the game's time limit is left out.

  Args:
    world: modules.
    agents: by name, entries `tokenizer`, `latents`, `dynamics`, `task`,
      `policy`, `reward`, `continuation`.
    env: functional environment.
    key: all randomness, the same for every agent.
    seeds: one per episode; the same seed is the same level.
    starts: frames at which dreams begin; 0 is an episode's first.
    dreams: settings of the dreams.

  Returns:
    By agent; None if the environment runs on the host, since its states cannot
    be kept.

  Raises:
    ValueError: a start does not lie within an episode.
  """
  if env.spec.on_host:
    return None
  limit = env.spec.max_steps
  require(
    len(starts) > 0 and all(0 <= t < limit for t in starts),
    'starts',
    tuple(starts),
    f'needs at least one, each in 0..{limit - 1}: an episode of env.max_steps '
    f'= {limit} steps ends then',
  )
  play, dream = moments(world, env), _dreamer(world, dreams)
  go_on, decode = jax.jit(functools.partial(play_on, env)), _decoder(world)
  acting, dreaming = jax.random.split(key)
  results = {}
  for name, params in agents.items():
    params = {name: params[name] for name in _MODULES if name in params}
    parts = []
    for moment in play(params, acting, seeds, starts):
      batch = moment.context(world, dreams.context)
      own = jax.random.fold_in(dreaming, moment.start)
      dreamt = dream(params, batch, own)
      game = go_on(moment.env_state, dreamt[0].actions)
      own = own_events(world, game.events, env.spec.tasks)
      game = game.replace(events=own)
      parts.append(_states(env, moment, batch, dreamt, game))
    results[name] = _compare(
      jax.tree.map(lambda *x: np.concatenate(x), *parts),
      has_events(env),
      dreams.stop_at_event,
      functools.partial(decode, params),
    )
  return results


@struct.dataclass
class _States:
  """Dreams and games from n states; steps beyond the time limit pay 0.

  Attributes:
    start: `[n]` int32.
    context: what the dreams begin with.
    z: `[n, H, N_z, C]` tokens of the dream.
    reward: `[n, H]` reward at the dream's frames.
    cont: `[n, H]` continuation there.
    frames: `[n, H, H, W, C]` uint8 of the game.
    paid: `[n, H]` float32 the game's events of the task held, or its rewards.
  """

  start: np.ndarray
  context: Batch
  z: np.ndarray
  reward: np.ndarray
  cont: np.ndarray
  frames: np.ndarray
  paid: np.ndarray


def _dreamer(
  world: World, dreams: Dreams
) -> Callable[[Params, Batch, Array], tuple[Rollout, Array, Array]]:
  @jax.jit
  def dream(params, batch, key):
    rollout = imagine(
      world,
      params,
      batch,
      key,
      policy=sample_policy(world, params),
      horizon=dreams.horizon,
      sampling_steps=dreams.sampling_steps,
    )
    return rollout, *arrivals(world, params, rollout)

  return dream


def _states(
  env: Environment,
  moment: Moment,
  batch: Batch,
  dream: tuple[Rollout, Array, Array],
  game: EnvStep,
) -> _States:
  """Puts dream and game side by side, where the episode still goes on."""
  rollout, reward, cont = jax.device_get(dream)
  game = jax.device_get(game)
  paid = game.reward
  if has_events(env):
    task = batch.task[:, -1, None, None]
    paid = np.take_along_axis(game.events, task, axis=-1)[..., 0]
  # The same frames count whether or not the game ends before its time is up.
  late = moment.start + 1 + np.arange(paid.shape[1]) > env.spec.max_steps
  states = _States(
    start=np.full(len(paid), moment.start, np.int32),
    context=batch,
    z=rollout.z,
    reward=np.where(late[None], 0, reward),
    cont=cont,
    frames=game.frame,
    paid=np.where(late[None], 0, paid),
  )
  return jax.tree.map(lambda x: x[moment.live], states)


def _compare(
  states: _States,
  events: bool,
  stop_at_event: bool,
  decode: Callable[[Batch, np.ndarray], np.ndarray],
) -> Reality:
  dreamed = real = None
  if events:
    dreamed = 1 - np.prod(1 - np.clip(states.reward, 0, 1), axis=1)
    real = (states.paid > 0).any(axis=1)
  pays = _returns(states.reward, states.cont, stop_at_event)
  paid = _returns(states.paid, np.ones_like(states.paid), stop_at_event)
  above = dreamed - real if events else pays - paid
  worst = np.argsort(-above, kind='stable')[:PHANTOMS]
  worst = worst[above[worst] > _PROMISE]
  return Reality(
    start=states.start,
    task=states.context.task[:, -1],
    dreamed=dreamed,
    real=real,
    return_dreamed=pays,
    return_real=paid,
    phantoms=_phantoms(states, worst, above, decode),
  )


def _returns(reward: np.ndarray, cont: np.ndarray, stop: bool) -> np.ndarray:
  """Undiscounted returns `[n]`, as imagination weights them."""
  if stop:
    cont = cont * (1 - np.clip(reward, 0, 1))
  alive = np.cumprod(cont, axis=1)
  alive = np.concatenate([np.ones_like(alive[:, :1]), alive[:, :-1]], axis=1)
  return (reward * alive).sum(axis=1)


def _phantoms(
  states: _States,
  worst: np.ndarray,
  above: np.ndarray,
  decode: Callable[[Batch, np.ndarray], np.ndarray],
) -> Phantoms:
  chosen = jax.tree.map(lambda x: x[worst], states)
  last = chosen.context.frames[:, -1:]
  frames = dreamed = np.concatenate([last, chosen.frames], axis=1)
  if len(worst):
    # Always the same number, so that one program serves all agents.
    rows = np.resize(np.arange(len(worst)), PHANTOMS)
    full = jax.tree.map(lambda x: x[rows], chosen)
    dreamed = np.asarray(decode(full.context, full.z))[: len(worst)]
  return Phantoms(
    frames=frames,
    dreamed=dreamed,
    task=chosen.context.task[:, -1],
    start=chosen.start,
    promise=above[worst],
  )


def _decoder(
  world: World,
) -> Callable[[Params, Batch, np.ndarray], Array]:
  """Returns a function that draws the last frame of contexts, and dreams."""

  @jax.jit
  def decode(params, batch, z):
    past = world.encode_clips(params, batch)
    after = jnp.repeat(batch.segment_ids[:, -1:], z.shape[1], axis=1)
    images, _ = world.decode(
      params,
      jnp.concatenate([past, z], axis=1),
      segment_ids=jnp.concatenate([batch.segment_ids, after], axis=1),
    )
    images = jnp.clip(images[:, past.shape[1] - 1 :], 0, 1)
    return jnp.round(images * 255).astype(jnp.uint8)

  return decode


def _mean(x: np.ndarray) -> float | None:
  return float(x.mean(dtype=np.float64)) if x.size else None
