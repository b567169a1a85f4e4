"""Craftax-Classic's map as its scripted player sees it, and ways through it.

The way to a goal is found by value iteration over the 31x31 cells around the
player: the fewest steps to go from every cell, where digging through stone and
bridging water cost extra steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from craftax.craftax_classic.constants import Achievement, Action, BlockType
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.types import Array, PyTree

RADIUS = 15
_SIDE = 2 * RADIUS + 1
_FAR = 10_000
"""Steps to go if no goal can be reached."""
MOVES = np.array([(0, -1), (0, 1), (-1, 0), (1, 0)])
"""Row and column step of LEFT, RIGHT, UP and DOWN, the actions 1 to 4."""
AROUND = np.array(
  [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]
)
BLOCK = {b.name: b.value for b in BlockType}
ACTION = {a.name: a.value for a in Action}
DONE = {a.name: a.value for a in Achievement}
FREE_NAMES = ('GRASS', 'SAND', 'PATH')
FREE = tuple(BLOCK[name] for name in FREE_NAMES)


def approach(game: PyTree, target: Array, near: Array, key: Array) -> Array:
  """Returns the next action on the way to the nearest target.

  Args:
    game: Craftax's state.
    target: `[H, W]` bool.
    near: `[31, 31]` bool, the window of `target` or a part of it.
    key: breaks ties, so that the player never gets stuck in a corner.
  """
  position = game.player_position
  near = near.at[RADIUS, RADIUS].set(False)
  cost = _enter_cost(game)
  steps = _steps_to_go(position, target, near, cost)
  inside = RADIUS + jnp.asarray(MOVES)
  rows, cols = inside[:, 0], inside[:, 1]
  ways = jnp.where(near[rows, cols], 1, cost[rows, cols] + steps[rows, cols])
  jitter = jax.random.uniform(key, (4,))
  best = jnp.argmin(ways.astype(jnp.float32) + 0.5 * jitter)
  direction = 1 + best
  cell = position + jnp.asarray(MOVES)[best]
  block = block_at(game.map, cell)
  occupied = game.mob_map[cell[0], cell[1]]
  aimed = game.player_direction == direction
  wanted = near[rows[best], cols[best]] & (block != BLOCK['CRAFTING_TABLE'])
  wet = is_one_of(block, (BLOCK['WATER'], BLOCK['LAVA'])) & ~wanted
  use = jnp.where(wet, ACTION['PLACE_STONE'], ACTION['DO'])
  walk = (
    is_one_of(block, FREE) & ~occupied & ~(wanted & (block == BLOCK['GRASS']))
  )
  action = jnp.where(walk | ~aimed, direction, use)
  # One cannot turn to grass without stepping on it; any grass ahead will do.
  ahead = RADIUS + jnp.asarray(MOVES)[jnp.clip(game.player_direction - 1, 0, 3)]
  front = block_at(game.map, position + ahead - RADIUS)
  grass = near[ahead[0], ahead[1]] & (front == BLOCK['GRASS'])
  action = jnp.where(grass, ACTION['DO'], action)
  lost = jax.random.randint(key, (), 1, 5)
  return jnp.where((ways[best] >= _FAR) & ~grass, lost, action)


def _steps_to_go(
  position: Array, target: Array, near: Array, cost: Array
) -> Array:
  """Value iteration in the window, until the player's cell is settled.

  Returns:
    `[31, 31]` int16 fewest steps from every cell until the target is done;
    values up to the player's own are exact.
  """
  # A goal beyond the window is sought across its edge, by Manhattan distance.
  distance = _distances(target.shape, position)
  nearest = jnp.argmin(jnp.where(target, distance, _FAR))
  row, col = nearest // target.shape[1], nearest % target.shape[1]
  rows, cols = (jnp.asarray(x) for x in np.indices((_SIDE, _SIDE)))
  away = jnp.abs(rows - RADIUS + position[0] - row) + jnp.abs(
    cols - RADIUS + position[1] - col
  )
  edge = (rows % (_SIDE - 1) == 0) | (cols % (_SIDE - 1) == 0)
  outside = edge & target.any() & ~near.any()
  value = jnp.where(near, 0, jnp.where(outside, 2 * away, _FAR))
  value = value.astype(jnp.int16)
  enter = jnp.where(near, 1, cost).astype(jnp.int16)

  def sweep(value: Array) -> Array:
    through = jnp.pad(value + enter, 1, constant_values=_FAR)
    best = jnp.minimum(
      jnp.minimum(through[:-2, 1:-1], through[2:, 1:-1]),
      jnp.minimum(through[1:-1, :-2], through[1:-1, 2:]),
    )
    return jnp.minimum(value, best)

  def body(carry):
    value, _, count = carry
    new = sweep(sweep(value))
    return new, (new != value).any(), count + 2

  def unsettled(carry):
    value, changed, count = carry
    # After n sweeps every value up to n is final.
    return changed & (count < value[RADIUS, RADIUS])

  return jax.lax.while_loop(
    unsettled, body, (value, jnp.asarray(True), jnp.zeros((), jnp.int16))
  )[0]


def _enter_cost(game: PyTree) -> Array:
  """Returns `[31, 31]` int32 steps that entering a cell of the window costs."""
  bag, position = game.inventory, game.player_position
  blocks = window(game.map, position, BLOCK['OUT_OF_BOUNDS'])
  wood, stone, iron = (
    bag.wood_pickaxe > 0, bag.stone_pickaxe > 0, bag.iron_pickaxe > 0
  )  # fmt: skip
  bridge = wood & (bag.stone > 0)
  costs = jnp.full((len(BlockType),), _FAR, jnp.int32)
  for name in FREE_NAMES:
    costs = costs.at[BLOCK[name]].set(1)
  for name, possible, steps in (
    ('TREE', True, 2), ('STONE', wood, 2), ('COAL', wood, 2),
    ('IRON', stone, 2), ('DIAMOND', iron, 2), ('WATER', bridge, 3),
    ('LAVA', bridge, 8),
  ):  # fmt: skip
    costs = costs.at[BLOCK[name]].set(jnp.where(possible, steps, _FAR))
  crowded = window(game.mob_map, position, False)
  return costs[blocks] + 3 * crowded


def deep_rock(seen: Array) -> Array:
  """Returns `[31, 31]` bool, stone with nothing but rock around it.

  Args:
    seen: kinds of blocks in the window, as bits.
  """
  rock = (seen & mask_of(('STONE', 'COAL', 'IRON', 'DIAMOND', 'TREE'))) != 0
  padded = jnp.pad(rock, 1)
  deep = (seen & mask_of(('STONE',))) != 0
  for r, c in AROUND:
    deep &= padded[1 + r : 1 + r + _SIDE, 1 + c : 1 + c + _SIDE]
  return deep


def enemies(game: PyTree) -> Array:
  """Returns `[n, 2]` positions of zombies and skeletons; far away if none."""
  positions = jnp.concatenate([game.zombies.position, game.skeletons.position])
  alive = jnp.concatenate([game.zombies.mask, game.skeletons.mask])
  return jnp.where(alive[:, None], positions, -99)


def marked(shape: Sequence[int], positions: Array, mask: Array) -> Array:
  """Returns `[H, W]` bool, true at those positions that are in the mask."""
  empty = jnp.zeros(tuple(shape), bool)
  return empty.at[positions[:, 0], positions[:, 1]].max(mask)


def kinds_of(blocks: Array) -> Array:
  """Returns the kind of each block as one bit of an int32."""
  return jnp.left_shift(1, blocks.astype(jnp.int32))


def mask_of(names: Sequence[str]) -> int:
  """Returns the bits of some kinds."""
  return sum(1 << BLOCK[name] for name in names)


def is_one_of(block: Array, kinds: Sequence[int]) -> Array:
  """Returns whether each block is one of some kinds."""
  block = jnp.asarray(block)
  each = jnp.asarray(kinds).reshape(*(1,) * block.ndim, -1)
  return (block[..., None] == each).any(-1)


def block_at(blocks: Array, position: Array) -> Array:
  """Returns the block at a position; out of bounds where there is none."""
  size = jnp.asarray(blocks.shape)
  inside = ((position >= 0) & (position < size)).all()
  row, col = jnp.clip(position, 0, size - 1)
  return jnp.where(inside, blocks[row, col], BLOCK['OUT_OF_BOUNDS'])


def window(x: Array, position: Array, outside: int | bool) -> Array:
  """Cuts the 31x31 cells around a position out of `[H, W]`."""
  padded = jnp.pad(x, RADIUS, constant_values=outside)
  return jax.lax.dynamic_slice(padded, position, (_SIDE, _SIDE))


def _distances(shape: Sequence[int], position: Array) -> Array:
  """Returns `[H, W]` Manhattan distances from a position."""
  rows, cols = (jnp.asarray(x) for x in np.indices(tuple(shape)))
  return jnp.abs(rows - position[0]) + jnp.abs(cols - position[1])
