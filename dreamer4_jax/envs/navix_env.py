"""Adapter for the DoorKey levels of navix (MiniGrid in JAX).

Frames are navix's full RGB view. Its sprites are pooled to the wanted tile
size once, and a frame is then one table lookup per cell; this gives the same
pixels as navix's own renderer, without its per-episode picture cache. Since
0.9.3 that renderer draws brighter lines over the floor; frames here keep the
floor as it was, so that all versions show the same.

Events follow from where things are and whether the door is open, since the form
of navix's own record of them has changed.
"""

from __future__ import annotations

import einops
from flax import struct
import jax
import jax.numpy as jnp
import navix
from navix.environments.environment import Timestep
from navix.rendering import cache as rendering_cache
from navix.rendering import registry as rendering_registry
from navix.states import State
import numpy as np

from dreamer4_jax.config import ActionComponent, EnvConfig, require
from dreamer4_jax.envs.protocol import EnvSpec, Tiles
from dreamer4_jax.types import Actions, Array, EnvStep

ACTION = 'action'
"""Name of the only action component."""
ACTIONS = ('left', 'right', 'forward', 'pickup', 'toggle')
"""Meaning of the classes of the action component, in order. MiniGrid's other
two, 'drop' and 'done', are documented as unused in DoorKey; navix's 'drop'
before 3.2 also puts a key on the floor that stays in the pocket."""
_NAVIX_ACTION = (0, 1, 2, 3, 5)
"""navix's number of each of them."""
TASKS = ('key', 'door', 'goal')
_PREFIX = 'Navix-DoorKey-'
SPRITES = (
  'floor', 'wall', 'goal', 'key', 'closed', 'open',
  'player_right', 'player_down', 'player_left', 'player_up',
)  # fmt: skip
"""Names of the tiles, in the order of the sprite table."""
_FLOOR, _WALL, _GOAL, _KEY, _CLOSED, _OPEN, _PLAYER = range(7)
PLACES = ('before the door', 'doorway', 'behind the door')


@struct.dataclass
class NavixState:
  """State of a batch of episodes.

  Attributes:
    timestep: navix's own, batched over `B`.
    terminal: `[B]` bool, the episode ended at the goal.
    timeout: `[B]` bool, the episode was cut by its time limit.
  """

  timestep: Timestep
  terminal: Array
  timeout: Array


def known_levels() -> list[str]:
  """Returns the names of the levels that this adapter offers."""
  return sorted(n for n in navix.registry() if n.startswith(_PREFIX))


def achieved(state: State) -> Array:
  """Returns `[..., num_tasks]` bool: the tasks that the state shows as done.

  Without `drop`, a taken key stays away and an opened door stays open. The
  pocket is no evidence: since 0.8, opening the door uses up the key.

  Args:
    state: navix state of one episode, or of a batch.
  """
  entities = state.entities
  # A key that was taken lies outside the grid.
  taken = (entities['key'].position < 0).any(-1)
  arrived = entities['player'].position == entities['goal'].position
  done = [taken, entities['door'].open, arrived.all(-1)]
  return jnp.stack(done, axis=-1)[..., 0, :]


def _facts(state: NavixState) -> dict[str, Array]:
  """Where the player is and faces, and how far it has come."""
  player = state.timestep.state.entities['player']
  done = achieved(state.timestep.state)
  row, column = jnp.moveaxis(player.position[:, 0], -1, 0)
  facing = {
    f'faces {name}': player.direction[:, 0] == i
    for i, name in enumerate(('right', 'down', 'left', 'up'))
  }
  own = {f'{task} done': done[:, i] for i, task in enumerate(TASKS[:2])}
  return {'row': row, 'column': column, **facing, **own}


def places(tiles: np.ndarray) -> np.ndarray:
  """Says where the player stands, from the tiles of DoorKey frames alone.

  The wall with the door is the inner column with the most walls; a player in
  that column stands in the doorway. The goal is behind the door, and so is a
  player who covers it.

  Args:
    tiles: `[N, rows, columns]` int, numbers of `SPRITES`.

  Returns:
    `[N]` str, of `PLACES`, or '' if no player is visible.
  """
  divide = (tiles[:, 1:-1, 1:-1] == _WALL).sum(axis=1).argmax(axis=1) + 1
  player = (tiles >= _PLAYER).any(axis=1)
  goal = (tiles == _GOAL).any(axis=1)
  column = player.argmax(axis=1)
  same = (column > divide) == (goal.argmax(axis=1) > divide)
  side = np.where(same | ~goal.any(axis=1), PLACES[2], PLACES[0])
  place = np.where(column == divide, PLACES[1], side)
  return np.where(player.any(axis=1), place, '')


class NavixDoorKey:
  """DoorKey: fetch the key, open the door, reach the goal."""

  def __init__(self, level: str, config: EnvConfig):
    """Looks the level up and prepares its sprites.

    Args:
      level: navix's name of the level.
      config: tile size and time limit.

    Raises:
      ValueError: the level is unknown, the tile does not divide navix's, or
        the time limit is not positive.
    """
    if level not in known_levels():
      raise ValueError(
        f'EnvConfig.name = {config.name!r}: the adapter navix knows no level '
        f'{level!r}; it offers {known_levels()}'
      )
    require(
      config.max_steps >= 1,
      'EnvConfig.max_steps',
      config.max_steps,
      'must be at least 1',
    )
    self._env = navix.make(
      level,
      max_steps=config.max_steps,
      observation_fn=navix.observations.none,
    )
    grid = self._env.height, self._env.width
    side = _tile_side(config.image_size, grid)
    self._sprites = _sprite_table(side)
    self._spec = EnvSpec(
      height=grid[0] * side,
      width=grid[1] * side,
      channels=3,
      actions=(
        ActionComponent(name=ACTION, kind='categorical', size=len(ACTIONS)),
      ),
      tasks=TASKS,
      max_steps=config.max_steps,
      labels={ACTION: ACTIONS},
      tiles=Tiles(
        side=side,
        pictures=np.asarray(self._sprites),
        names=SPRITES,
        places=places,
      ),
      facts=_facts,
    )

  @property
  def spec(self) -> EnvSpec:
    """Sizes, actions and tasks."""
    return self._spec

  @property
  def grid_shape(self) -> tuple[int, int]:
    """Rows and columns of the level, outer walls included."""
    return self._env.height, self._env.width

  def reset(self, keys: Array) -> tuple[NavixState, EnvStep]:
    """Starts one episode per key; see `Environment.reset`."""
    # An empty picture cache: it is never read (see the module docstring).
    cache = rendering_cache.RenderingCache(
      patches=jnp.zeros((0,), dtype=jnp.uint8)
    )
    with jax.numpy_rank_promotion('allow'):
      timestep = jax.vmap(lambda key: self._env.reset(key, cache))(keys)
    batch = keys.shape[0]
    state = NavixState(
      timestep=jax.tree.map(_strong, timestep),
      terminal=jnp.zeros((batch,), dtype=bool),
      timeout=jnp.zeros((batch,), dtype=bool),
    )
    return state, EnvStep(
      frame=self._render(state.timestep.state),
      reward=jnp.zeros((batch,), dtype=jnp.float32),
      events=jnp.zeros((batch, len(TASKS)), dtype=jnp.float32),
      terminal=state.terminal,
      timeout=state.timeout,
    )

  def step(
    self, state: NavixState, actions: Actions
  ) -> tuple[NavixState, EnvStep]:
    """Acts once in every episode; see `Environment.step`."""
    action = jnp.asarray(_NAVIX_ACTION)[actions[ACTION]]
    with jax.numpy_rank_promotion('allow'):
      # `_step`, since `step` resets by itself and would compile reset as well.
      timestep = jax.vmap(self._env._step)(state.timestep, action)
    over = state.terminal | state.timeout
    timestep = jax.tree.map(
      lambda new, old: _where(over, old, new), timestep, state.timestep
    )
    fresh = achieved(timestep.state) & ~achieved(state.timestep.state)
    state = NavixState(
      timestep=timestep,
      terminal=timestep.is_termination(),
      timeout=timestep.is_truncation(),
    )
    return state, EnvStep(
      frame=self._render(timestep.state),
      reward=jnp.where(over, 0.0, timestep.reward),
      events=fresh.astype(jnp.float32),
      terminal=state.terminal,
      timeout=state.timeout,
    )

  def _render(self, state: State) -> Array:
    """Draws `[B, H, W, 3]` uint8 frames; later layers cover earlier ones."""
    rows, cols = (jnp.asarray(x) for x in np.indices(self.grid_shape))

    def cells(state: State) -> Array:
      def at(position: Array) -> Array:
        return (rows == position[0]) & (cols == position[1])

      entities = state.entities
      door, player = entities['door'], entities['player']
      walls = jax.vmap(at)(entities['wall'].position).any(0)
      cell = jnp.where((state.grid != 0) | walls, _WALL, _FLOOR)
      for where, sprite in (
        (at(door.position[0]), jnp.where(door.open[0], _OPEN, _CLOSED)),
        (at(entities['goal'].position[0]), _GOAL),
        (at(entities['key'].position[0]), _KEY),
        (at(player.position[0]), _PLAYER + player.direction[0]),
      ):
        cell = jnp.where(where, sprite, cell)
      return cell

    tiles = self._sprites[jax.vmap(cells)(state)]
    return einops.rearrange(tiles, 'b h w y x c -> b (h y) (w x) c')


def _tile_side(
  image_size: tuple[int, int] | None, grid: tuple[int, int]
) -> int:
  """Returns the side in pixels of the tiles of a frame."""
  whole = rendering_registry.TILE_SIZE
  if image_size is None:
    return min(whole, 8)
  side = image_size[0] // grid[0]
  fits = tuple(image_size) == (side * grid[0], side * grid[1])
  require(
    fits and side >= 1 and whole % side == 0,
    'EnvConfig.image_size',
    image_size,
    f'must be {grid[0]} x {grid[1]} tiles, each of a side that divides {whole} '
    'pixels',
  )
  return side


def _sprite_table(tile: int) -> Array:
  """Returns navix's sprites `[10, tile, tile, 3]` uint8, mean-pooled."""
  side = rendering_registry.TILE_SIZE
  sprites = rendering_registry.SPRITES_REGISTRY
  yellow = int(rendering_registry.PALETTE.YELLOW)
  # A door's second index is open + 2 * locked.
  table = [
    sprites['floor'],
    sprites['wall'],
    sprites['goal'],
    sprites['key'][yellow],
    sprites['door'][yellow, 2],
    sprites['door'][yellow, 1],
    *sprites['player'],
  ]
  table = np.stack([np.asarray(s, dtype=np.float32) for s in table])
  table = einops.reduce(
    table,
    'n (h y) (w x) c -> n h w c',
    'mean',
    y=side // tile,
    x=side // tile,
  )
  return jnp.asarray(np.round(table).astype(np.uint8))


def _is_key(x: Array) -> bool:
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _strong(x: Array) -> Array:
  """Drops a weak type, with which `step` would compile twice."""
  return x if _is_key(x) else jax.lax.convert_element_type(x, x.dtype)


def _where(over: Array, old: Array, new: Array) -> Array:
  """Keeps the old value in episodes `[B]` that are over."""
  mask = jnp.expand_dims(over, tuple(range(1, new.ndim)))
  return _strong(jnp.where(mask, old, new))
