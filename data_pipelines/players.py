"""Who plays while a dataset is recorded.

Players are scripted, aimless, random or trained.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.checkpoint import load_params
from dreamer4_jax.config import Config, require
from dreamer4_jax.envs import Environment
from dreamer4_jax.models import World
from dreamer4_jax.rollout import (
  act,
  advance,
  init_actor,
  init_prompt,
  own_events,
  restart,
)
from dreamer4_jax.types import Actions, Array, Observation, PyTree

_DOORKEY, _CRAFTAX = 'navix:Navix-DoorKey', 'craftax:Craftax-Classic'
_KNOWN = {'scripted': (_DOORKEY, _CRAFTAX), 'aimless': (_DOORKEY,)}
"""Prefixes of the names of environments that players are written for."""


@struct.dataclass
class Dials:
  """How a scripted or aimless player plays in each of B episodes.

  Attributes:
    noise: `[B]` share of random actions.
    restless: `[B]` chance per step to start walking somewhere else.
    idle: `[B]` chance per step to start standing around for a while.
  """

  noise: Array
  restless: Array
  idle: Array


@dataclasses.dataclass(frozen=True)
class Player:
  """A player of B episodes at once; its functions can be jitted.

  Attributes:
    start: `(environment state, dials) -> memory`, before the first frame.
    act: `(params, memory, environment state, step, is_first [B], keys [B]) ->
      (memory, actions)`.
    restart: `(memory, fresh memory, restarted [B]) -> memory`.
    params: passed to `act`, so that they are not constants of the program.
  """

  start: Callable[[PyTree, Dials], PyTree]
  act: Callable[..., tuple[PyTree, Actions]]
  restart: Callable[[PyTree, PyTree, Array], PyTree]
  params: PyTree = None


def check_player(kind: str, env: Environment, name: str, run: str) -> None:
  """Raises what `make_player` would raise, before anything is played."""
  players = ('random', 'checkpoint', *_KNOWN)
  require(
    kind in players, 'CollectConfig.policy', kind, f'must be one of {players}'
  )
  if kind == 'checkpoint':
    _check_space(env, load_params(run, 'imagination')[1], run)
  if kind in _KNOWN and not name.startswith(_KNOWN[kind]):
    raise ValueError(
      f'CollectConfig.policy = {kind!r}: there is no {kind} player for '
      f'{name!r}; use random or checkpoint'
    )


def make_player(
  kind: str, env: Environment, name: str, *, repeat: float, run: str, batch: int
) -> Player:
  """Makes a player.

  Args:
    kind: 'random', 'scripted', 'aimless' or 'checkpoint'.
    env: the environment.
    name: its name, `adapter:level`.
    repeat: probability that a random action is repeated.
    run: run directory of the checkpoint.
    batch: episodes at once.

  Raises:
    ValueError: there is no such player for this environment, or the checkpoint
      was trained for another one.
    FileNotFoundError: the run has not been trained.
  """
  if kind == 'random':
    return _random(env, repeat, batch)
  if kind == 'checkpoint':
    return _trained(env, run, batch)
  check_player(kind, env, name, run)
  if name.startswith(_DOORKEY):
    from data_pipelines import doorkey_player as script

    if kind == 'aimless':
      return Player(
        start=lambda _, dials: jax.vmap(script.start_aimless)(dials.noise),
        act=_scripted(script.aimless, lambda s: s.timestep.state, repeat),
        restart=where_batch,
      )
    return Player(
      start=lambda state, dials: jax.vmap(script.start)(
        state.timestep.state, dials.noise
      ),
      act=_scripted(script.act, lambda s: s.timestep.state, repeat),
      restart=where_batch,
    )
  from data_pipelines import craftax_player as script

  return Player(
    start=lambda _, dials: jax.vmap(script.start)(
      dials.noise, dials.restless, dials.idle
    ),
    act=_scripted(script.act, lambda s: s.game, repeat),
    restart=where_batch,
  )


def where_batch(old: PyTree, new: PyTree, restarted: Array) -> PyTree:
  """Takes the new values where episodes `[B]` were restarted."""

  def choose(a: Array, b: Array) -> Array:
    mask = jnp.expand_dims(restarted, tuple(range(1, a.ndim)))
    return jnp.where(mask, b, a)

  return jax.tree.map(choose, old, new)


def _scripted(
  script: Callable[..., tuple[PyTree, Array]],
  game_of: Callable[[PyTree], PyTree],
  repeat: float,
) -> Callable[..., tuple[PyTree, Actions]]:
  def play(params, memory, state, step, is_first, keys):
    del params, step, is_first
    each = jax.vmap(functools.partial(script, repeat=repeat))
    memory, action = each(memory, game_of(state), keys)
    return memory, {'action': action}

  return play


def _random(env: Environment, repeat: float, batch: int) -> Player:
  def draw(key: Array) -> Actions:
    actions = {}
    for i, part in enumerate(env.spec.actions):
      own = jax.random.fold_in(key, i)
      if part.kind == 'categorical':
        actions[part.name] = jax.random.randint(own, (), 0, part.size)
      elif part.kind == 'binary':
        bits = jax.random.bernoulli(own, 0.5, (part.size,))
        actions[part.name] = bits.astype(jnp.int32)
      else:
        actions[part.name] = jax.random.uniform(
          own, (part.size,), minval=part.low, maxval=part.high
        )
    return actions

  def play(params, memory, state, step, is_first, keys):
    del params, state, step
    split = jax.vmap(jax.random.split)(keys)
    again = jax.vmap(jax.random.uniform)(split[:, 0]) < repeat
    fresh = jax.vmap(draw)(split[:, 1])
    actions = where_batch(fresh, memory, again & ~is_first)
    return actions, actions

  def start(state, dials):
    del state, dials
    return jax.vmap(draw)(jax.random.split(jax.random.key(0), batch))

  return Player(start=start, act=play, restart=lambda old, new, which: old)


def _trained(env: Environment, run: str, batch: int) -> Player:
  params, config = load_params(run, 'imagination')
  params.pop('prior')
  _check_space(env, config, run)
  world = World.from_config(config)
  stages = config.stages()

  def start(state, dials):
    del state, dials
    return init_actor(world, batch), init_prompt(stages, batch)

  def play(params, memory, state, step, is_first, keys):
    del state
    actor, prompt = memory
    prompt = restart(prompt, is_first)
    events = own_events(world, step.events, env.spec.tasks)
    prompt = advance(prompt, events * ~is_first[:, None])
    actions, _, actor = act(
      world,
      params,
      actor,
      Observation(step.frame, is_first, step.vectors),
      prompt.task(),
      keys[0],
    )
    return (actor, prompt), actions

  # `act` forgets the past of a stream where an episode starts.
  return Player(
    start=start,
    act=play,
    restart=lambda old, new, which: old,
    params=jax.tree.map(jnp.asarray, params),
  )


def _check_space(env: Environment, config: Config, run: str) -> None:
  t = config.tokenizer
  for field, found, expected in (
    ('actions', config.actions, env.spec.actions),
    (
      'frame_shape',
      t.frame_shape,
      env.spec.frame_shape,
    ),
  ):
    if tuple(found) != tuple(expected):
      raise ValueError(
        f'{run}: {field}: trained for {found}, the environment has {expected}'
      )
  unknown = [task for task in config.tasks if task not in env.spec.tasks]
  if unknown:
    raise ValueError(
      f'{run}: tasks: trained for {unknown}, the environment has '
      f'{env.spec.tasks}'
    )
  wanted = {v.name: v.size for v in config.vectors}
  shown = {v.name: v.size for v in env.spec.vectors}
  if not wanted.items() <= shown.items():
    raise ValueError(
      f'{run}: vectors: trained for {wanted}, the environment has '
      f'{shown or "none"}; name an environment that shows them'
    )
