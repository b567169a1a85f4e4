"""Craftax and Craftax-Classic, vectorised on the accelerator.

Source: Matthews et al., "Craftax" (arXiv 2402.16801); the package craftax.
Every achievement is a task. Its event is every step on which it happens, such
as one more piece of wood; the reward counts the first, as in the package.

The package reports `discount` 0 at the time limit too; here a time-out is not
terminal.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pathlib
import pickle
from typing import Any

from craftax.craftax import constants
from craftax.craftax.constants import Achievement, Action
from craftax.craftax_classic import constants as classic_constants
from craftax.craftax_classic.constants import Achievement as ClassicAchievement
from craftax.craftax_classic.constants import Action as ClassicAction
from craftax.craftax_env import make_craftax_env_from_name
from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.config import ActionComponent, EnvConfig, require
from dreamer4_jax.envs import craftax_view
from dreamer4_jax.envs.protocol import EnvSpec, Tiles
from dreamer4_jax.types import Actions, Array, EnvStep, PyTree

ACTION = 'action'
"""Name of the only action component."""
LEVELS = {
  'Craftax-Classic-Pixels-v1': (ClassicAction, ClassicAchievement),
  'Craftax-Pixels-v1': (Action, Achievement),
}
_NEVER = 1 << 30
# Achievements that Craftax reads off the inventory, which holds what was had
# before as well: the field that has to rise, and to what level.
_HAD = {
  **{
    f'COLLECT_{name}': (name.lower(), 0)
    for name in (
      'WOOD', 'STONE', 'COAL', 'IRON', 'DIAMOND', 'RUBY', 'SAPPHIRE', 'SAPLING',
    )
  },
  'FIND_BOW': ('bow', 0),
  'MAKE_ARROW': ('arrows', 0),
  'MAKE_TORCH': ('torches', 0),
  **{
    f'MAKE_{material}_{tool}': (tool.lower(), level)
    for tool in ('PICKAXE', 'SWORD')
    for level, material in enumerate(('WOOD', 'STONE', 'IRON', 'DIAMOND'), 1)
  },
}  # fmt: skip
_DRAW_AGAIN = 'CRAFTAX_RELOAD_TEXTURES'


@struct.dataclass
class CraftaxState:
  """State of a batch of episodes.

  Attributes:
    game: Craftax's own state, batched over `B`.
    key: `[B]` typed keys for the steps to come.
    terminal: `[B]` bool, the player died.
    timeout: `[B]` bool, the episode was cut by its time limit.
  """

  game: PyTree
  key: Array
  terminal: Array
  timeout: Array


class Craftax:
  """Mine, craft and survive; 22 achievements in Classic, 67 in Craftax."""

  def __init__(self, level: str, config: EnvConfig):
    """Makes the engine, which draws its textures the first time on a machine.

    Args:
      level: one of `LEVELS`.
      config: time limit; `tile` has no meaning here.

    Raises:
      ValueError: the level is unknown, or the time limit is not positive.
    """
    require(
      level in LEVELS,
      'EnvConfig.name',
      config.name,
      f'the adapter craftax knows no level {level!r}; it offers '
      f'{sorted(LEVELS)}',
    )
    require(
      config.max_steps >= 1,
      'EnvConfig.max_steps',
      config.max_steps,
      'must be at least 1',
    )
    self._env = make_engine(level)
    classic = level.startswith('Craftax-Classic')
    self._draw = craftax_view.draw if classic else self._package_draw
    self._play = self._play_classic if classic else self._play_full
    if classic:
      craftax_view.tables()  # Must not first run while tracing.
    params = self._env.default_params
    self.params = params.replace(max_timesteps=_NEVER)
    actions, achievements = LEVELS[level]
    height, width, channels = self._env.observation_space(params).shape
    side = (classic_constants if classic else constants).BLOCK_PIXEL_SIZE_AGENT
    self._spec = EnvSpec(
      height=height,
      width=width,
      channels=channels,
      actions=(
        ActionComponent(name=ACTION, kind='categorical', size=len(actions)),
      ),
      tasks=tuple(a.name.lower() for a in achievements),
      max_steps=config.max_steps,
      labels={ACTION: [a.name.lower() for a in actions]},
      # Darkness changes their pixels: there are too many tiles to list.
      tiles=Tiles(side=side),
      facts=_facts if classic else None,
      legend=_legend(side) if classic else None,
    )

  @property
  def spec(self) -> EnvSpec:
    """Sizes, actions and tasks."""
    return self._spec

  def reset(self, keys: Array) -> tuple[CraftaxState, EnvStep]:
    """Starts one episode per key; see `Environment.reset`."""
    split = jax.vmap(jax.random.split)(keys)
    with jax.numpy_rank_promotion('allow'):
      _, game = jax.vmap(self._env.reset, in_axes=(0, None))(
        split[:, 0], self.params
      )
    image = self._draw(game)
    batch = keys.shape[0]
    never = jnp.zeros((batch,), bool)
    state = CraftaxState(
      game=jax.tree.map(_strong, game),
      key=split[:, 1],
      terminal=never,
      timeout=never,
    )
    return state, EnvStep(
      frame=_to_uint8(image),
      reward=jnp.zeros((batch,), jnp.float32),
      events=jnp.zeros((batch, len(self._spec.tasks)), jnp.float32),
      terminal=never,
      timeout=never,
    )

  def step(
    self, state: CraftaxState, actions: Actions
  ) -> tuple[CraftaxState, EnvStep]:
    """Acts once in every episode; see `Environment.step`."""
    split = jax.vmap(jax.random.split)(state.key)
    over = state.terminal | state.timeout
    with jax.numpy_rank_promotion('allow'):
      game, reward, died, events = self._play(
        split[:, 0], state.game, actions[ACTION]
      )
    game = jax.tree.map(
      lambda new, old: _where(over, old, new), game, state.game
    )
    image = self._draw(game)
    late = ~died & (game.timestep >= self._spec.max_steps)
    new = CraftaxState(
      game=game,
      key=split[:, 1],
      terminal=jnp.where(over, state.terminal, died),
      timeout=jnp.where(over, state.timeout, late),
    )
    return new, EnvStep(
      frame=_to_uint8(image),
      reward=jnp.where(over, 0.0, reward).astype(jnp.float32),
      events=(events & ~over[:, None]).astype(jnp.float32),
      terminal=new.terminal,
      timeout=new.timeout,
    )

  def _engine_step(
    self, keys: Array, game: PyTree, action: Array
  ) -> tuple[PyTree, Array, Array]:
    """Returns game, reward and death; the package's picture is never drawn."""
    step = jax.vmap(self._env.step, in_axes=(0, 0, 0, None))
    _, game, reward, died, _ = step(keys, game, action, self.params)
    return game, reward, died

  def _play_classic(
    self, keys: Array, game: PyTree, action: Array
  ) -> tuple[PyTree, Array, Array, Array]:
    """Returns game, reward, death and events `[B, tasks]` bool of one step.

    The engine never reads what was achieved: with nothing achieved before, it
    marks what is achieved now.
    """
    before = game.achievements
    blank = game.replace(achievements=jnp.zeros_like(before))
    game, reward, died = self._engine_step(keys, blank, action)
    events = game.achievements
    reward -= (events & before).sum(axis=-1)
    return game.replace(achievements=events | before), reward, died, events

  def _play_full(
    self, keys: Array, game: PyTree, action: Array
  ) -> tuple[PyTree, Array, Array, Array]:
    """As `_play_classic`; here a new floor pays only if it was not achieved."""
    blank = game.replace(achievements=jnp.zeros_like(game.achievements))
    again, _, _ = self._engine_step(keys, blank, action)
    new, reward, died = self._engine_step(keys, game, action)
    events = _happened(game, new, again.achievements)
    return new, reward, died, events

  def _package_draw(self, game: PyTree) -> Array:
    """`[B, H, W, 3]` float32 in 0..255."""
    with jax.numpy_rank_promotion('allow'):
      return jax.vmap(self._env.get_obs)(game) * 255


def _happened(before: PyTree, after: PyTree, marked: Array) -> Array:
  """Which of Craftax's achievements happened in one step.

  Args:
    before: the game, batched over `B`.
    after: the game one step later.
    marked: `[B, 67]` bool, what the engine marks where nothing was achieved
      before. Some of it only tells how things stand, and has to change.

  Returns:
    `[B, 67]` bool.
  """
  moved = after.player_level != before.player_level
  for achievement in Achievement:
    name, i = achievement.name, achievement.value
    if name in _HAD:
      field, level = _HAD[name]
      now, then = (getattr(game.inventory, field) for game in (after, before))
      happened = (now > then) & ((now == level) | (level == 0))
    elif name.startswith('ENTER_'):
      happened = marked[:, i] & moved
    elif name == 'DEFEAT_NECROMANCER':
      happened = marked[:, i] & ~before.achievements[:, i]
    else:
      continue
    marked = marked.at[:, i].set(happened)
  return marked


def _facts(state: CraftaxState) -> dict[str, Array]:
  """What Classic shows of the player: needs, inventory, where it faces."""
  game = state.game
  found = {
    name.removeprefix('player_'): getattr(game, name)
    for name in (
      'player_health', 'player_food', 'player_drink', 'player_energy',
    )
  }  # fmt: skip
  bag = {f.name: getattr(game.inventory, f.name)
         for f in dataclasses.fields(game.inventory)}  # fmt: skip
  facing = {
    f'faces {name}': game.player_direction == 1 + i
    for i, name in enumerate(('left', 'right', 'up', 'down'))
  }
  return {**found, **bag, **facing, 'light': game.light_level}


def _legend(side: int) -> Tiles:
  pictures, names = craftax_view.by_day()
  return Tiles(side=side, pictures=pictures, names=names)


def _to_uint8(image: Array) -> Array:
  return jnp.round(image).astype(jnp.uint8)


def _strong(x: Array) -> Array:
  """Drops a weak type, with which `step` would compile twice."""
  x = jnp.asarray(x)
  return jax.lax.convert_element_type(x, x.dtype)


def _where(over: Array, old: Array, new: Array) -> Array:
  """Keeps the old value in episodes `[B]` that are over."""
  return jnp.where(over.reshape(-1, *(1,) * (new.ndim - 1)), old, new)


def make_engine(level: str) -> Any:
  """Makes the package's environment, one process at a time.

  The first process on a machine draws the package's textures and keeps them in
  a file beside the package. Others must not read that file half written, so the
  directory is locked meanwhile. A process that was killed while writing leaves
  half a file behind, which is drawn again.

  Args:
    level: one of `LEVELS`.

  Returns:
    An environment of the package, which does not reset itself.
  """
  make = lambda: make_craftax_env_from_name(level, auto_reset=False)
  directory = os.open(
    pathlib.Path(classic_constants.__file__).parent, os.O_RDONLY
  )
  try:
    try:
      fcntl.flock(directory, fcntl.LOCK_EX)
    except OSError:
      pass  # A file system without locks.
    try:
      return make()
    except (EOFError, OSError, ValueError, pickle.UnpicklingError):
      os.environ[_DRAW_AGAIN] = '1'
      try:
        return make()
      finally:
        del os.environ[_DRAW_AGAIN]
  finally:
    os.close(directory)
