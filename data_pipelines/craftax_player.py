"""A scripted player for Craftax-Classic, through the whole technology tree.

It reads the symbolic state, so it knows the map, but it plays by the rules: it
walks, digs, fights, drinks, eats, digs itself in to sleep, and makes tools up
to the iron pickaxe and the diamond, and then the rest of the 22 achievements.

Three dials make it as uneven as people are: `noise`, the share of random
actions, which tend to be repeated; `restless`, how often it drops what it does
and walks somewhere else; `idle`, how often it stands around for a while.

The way to a goal is found by value iteration over the 31x31 cells around the
player: the fewest steps to go from every cell, when digging through stone and
bridging water cost their own steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from craftax.craftax_classic.constants import Achievement, Action, BlockType
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.types import Array, PyTree

RADIUS = 15
_SIDE = 2 * RADIUS + 1
_FAR = 10_000
"""Steps to go from where a goal cannot be reached."""
_MOVES = np.array([(0, -1), (0, 1), (-1, 0), (1, 0)])
"""Row and column step of LEFT, RIGHT, UP and DOWN, the actions 1 to 4."""
_AROUND = np.array(
  [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]
)
_B = {b.name: b.value for b in BlockType}
_A = {a.name: a.value for a in Action}
_DONE = {a.name: a.value for a in Achievement}
_FREE_NAMES = ('GRASS', 'SAND', 'PATH')
_FREE = tuple(_B[name] for name in _FREE_NAMES)
_EXTRAS = ('', 'cow', 'foe', 'aim', 'rock')
"""What else than blocks a player walks to."""


@struct.dataclass
class Player:
  """State of a player in one episode (add `B` in front for a batch).

  Attributes:
    noise: `[]` float32, share of random actions.
    restless: `[]` float32, chance to begin to wander, at each step.
    idle: `[]` float32, chance to begin to stand around, at each step.
    whim: `[]` int32, the last random action; -1 before the first.
    wander: `[]` int32, steps left to wander.
    rest: `[]` int32, steps left to stand around.
    aim: `[2]` int32, where it wanders to.
    thirsty: `[]` bool, until it has drunk enough.
    hungry: `[]` bool, until it has eaten enough.
    tired: `[]` bool, until it has slept enough.
  """

  noise: Array
  restless: Array
  idle: Array
  whim: Array
  wander: Array
  rest: Array
  aim: Array
  thirsty: Array
  hungry: Array
  tired: Array


def start(noise: Array, restless: Array, idle: Array) -> Player:
  """Returns a player at the start of an episode; the dials are scalars."""
  zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
  return Player(
    noise=jnp.asarray(noise, jnp.float32),
    restless=jnp.asarray(restless, jnp.float32),
    idle=jnp.asarray(idle, jnp.float32),
    whim=zero - 1,
    wander=zero,
    rest=zero,
    aim=jnp.zeros((2,), jnp.int32),
    thirsty=no,
    hungry=no,
    tired=no,
  )


def act(
  player: Player, game: PyTree, key: Array, *, repeat: float = 0.5
) -> tuple[Player, Array]:
  """Chooses an action for one episode; `jax.vmap` it over a batch.

  Args:
    player: its memory.
    game: Craftax-Classic's state of this episode.
    key: all randomness.
    repeat: probability that a random action is the last one again.

  Returns:
    The new memory, and the action, `[]` int32.
  """
  keys = jax.random.split(key, 8)
  player = _feel(player, game, keys[0])
  planned = _plan(player, game, keys[1])
  again = (jax.random.uniform(keys[2]) < repeat) & (player.whim >= 0)
  # Mostly steps and what the hands do; rarely any of the 17.
  usual = jax.random.randint(keys[3], (), _A['LEFT'], _A['DO'] + 1)
  any_action = jax.random.randint(keys[4], (), 0, len(Action))
  fresh = jnp.where(jax.random.uniform(keys[5]) < 0.9, usual, any_action)
  whim = jnp.where(again, player.whim, fresh)
  random = jax.random.uniform(keys[6]) < player.noise
  action = jnp.where(player.rest > 0, _A['NOOP'], planned)
  action = jnp.where(random, whim, action)
  # Nobody walks into lava, not even by whim.
  step = jnp.asarray(np.concatenate([[(0, 0)], _MOVES]))
  moves = (action >= _A['LEFT']) & (action <= _A['DOWN'])
  target = game.player_position + step[jnp.where(moves, action, 0)]
  burns = moves & (_block(game.map, target) == _B['LAVA'])
  action = jnp.where(burns, _A['NOOP'], action)
  player = player.replace(
    whim=jnp.where(random, whim, player.whim),
    wander=jnp.maximum(player.wander - 1, 0),
    rest=jnp.maximum(player.rest - 1, 0),
  )
  return player, action.astype(jnp.int32)


def _feel(player: Player, game: PyTree, key: Array) -> Player:
  """Updates needs and moods."""
  keys = jax.random.split(key, 5)
  wanders = jax.random.uniform(keys[0]) < player.restless
  rests = jax.random.uniform(keys[1]) < player.idle
  size = jnp.asarray(game.map.shape)
  aim = (jax.random.uniform(keys[2], (2,)) * size).astype(jnp.int32)
  long = jax.random.randint(keys[3], (), 20, 80)
  short = jax.random.randint(keys[4], (), 5, 30)

  def needs(now: Array, level: Array, low: int, enough: int) -> Array:
    return (level <= low) | (now & (level < enough))

  return player.replace(
    thirsty=needs(player.thirsty, game.player_drink, 3, 9),
    hungry=needs(player.hungry, game.player_food, 4, 8),
    tired=needs(player.tired, game.player_energy, 3, 9),
    aim=jnp.where(wanders, aim, player.aim),
    wander=jnp.where(wanders, long, player.wander),
    rest=jnp.where(rests, short, player.rest),
  )


def _plan(player: Player, game: PyTree, key: Array) -> Array:
  """Returns the action that a careful player would take."""
  bag, done = game.inventory, game.achievements
  position, blocks = game.player_position, game.map
  facing = jnp.asarray(_MOVES)[jnp.clip(game.player_direction - 1, 0, 3)]
  ahead = position + facing
  front = _block(blocks, ahead)
  around = jax.vmap(lambda d: _block(blocks, position + d))
  beside = around(jnp.asarray(_MOVES))
  near = around(jnp.asarray(_AROUND))
  near_table = (near == _B['CRAFTING_TABLE']).any()
  near_furnace = (near == _B['FURNACE']).any()
  room = _is(front, _FREE) & ~game.mob_map[ahead[0], ahead[1]]
  has = lambda **least: _all(getattr(bag, k) >= n for k, n in least.items())
  kinds = _kinds(blocks)
  seen = _window(kinds, position, 0)
  sees = lambda *names: ((seen & _mask(names)) != 0).any()
  table_near = sees('CRAFTING_TABLE')

  # What is done on the spot, the first that holds.
  enemy_at = _enemies(game)
  enemy = (
    ((position[None] + jnp.asarray(_MOVES))[:, None] == enemy_at[None])
    .all(-1)
    .any(1)
  )
  faces_enemy = (enemy_at == ahead[None]).all(-1).any()
  fight = jnp.where(faces_enemy, _A['DO'], 1 + jnp.argmax(enemy))
  pickaxe = bag.wood_pickaxe > 0
  walled, seal = _shelter(game, beside, room)
  sleepy = player.tired & (walled | (game.player_energy <= 1))
  iron_kit = has(wood=1, stone=1, coal=1, iron=1)
  wants_furnace = has(stone=1) & (
    ~done[_DONE['PLACE_FURNACE']] | (iron_kit & has(stone=2))
  )
  next_tool = (
    ~pickaxe
    | ((bag.stone_pickaxe == 0) & has(wood=3, stone=1))
    | ((bag.iron_pickaxe == 0) & iron_kit & has(wood=3))
    | ((bag.iron_sword == 0) & (bag.iron_pickaxe > 0) & iron_kit & has(wood=3))
  )
  make = near_table & near_furnace
  spot = [
    (game.is_sleeping, _A['NOOP']),
    (enemy.any(), fight),
    (sleepy, _A['SLEEP']),
    (player.tired & pickaxe & (seal >= 0) & (bag.stone > 0), seal),
    (near_table & ~pickaxe & has(wood=1), _A['MAKE_WOOD_PICKAXE']),
    (near_table & (bag.stone_pickaxe == 0) & has(wood=1, stone=1),
     _A['MAKE_STONE_PICKAXE']),
    (make & (bag.iron_pickaxe == 0) & iron_kit, _A['MAKE_IRON_PICKAXE']),
    (make & (bag.iron_pickaxe > 0) & (bag.iron_sword == 0) & iron_kit,
     _A['MAKE_IRON_SWORD']),
    (near_table & (bag.wood_sword == 0) & has(wood=1) & pickaxe,
     _A['MAKE_WOOD_SWORD']),
    (near_table & (bag.stone_sword == 0) & has(wood=1, stone=1)
     & (bag.stone_pickaxe > 0), _A['MAKE_STONE_SWORD']),
    (near_table & ~near_furnace & wants_furnace & room, _A['PLACE_FURNACE']),
    (~table_near & next_tool & has(wood=2) & room
     & (pickaxe | has(wood=4)), _A['PLACE_TABLE']),
    (has(stone=2) & ~done[_DONE['PLACE_STONE']] & room, _A['PLACE_STONE']),
    (has(sapling=1) & ~done[_DONE['PLACE_PLANT']] & (front == _B['GRASS'])
     & room, _A['PLACE_PLANT']),
  ]  # fmt: skip

  # What is walked to, the first that holds: blocks, and animals or places.
  left = lambda name: ~done[_DONE[name]]
  wood_first = ~pickaxe & ~has(wood=4) & ~(table_near & has(wood=1))
  stone_tool = bag.stone_pickaxe == 0
  iron_tool = bag.iron_pickaxe == 0
  sword = bag.iron_sword == 0
  gather = stone_tool | iron_tool | (sword & done[_DONE['COLLECT_DIAMOND']])
  more_iron = bag.iron == 0
  food = sees('RIPE_PLANT') | game.cows.mask.any()
  bench, anywhere = ('CRAFTING_TABLE',), (*_FREE_NAMES, 'CRAFTING_TABLE')
  to_table = lambda holds: (
    (holds & table_near, bench, ''), (holds & ~table_near, anywhere, '')
  )  # fmt: skip
  goals = [
    (player.thirsty, ('WATER',), ''),
    (player.hungry & food, ('RIPE_PLANT',), 'cow'),
    (player.tired & pickaxe, ('STONE',), 'rock'),
    (player.wander > 0, (), 'aim'),
    (left('PLACE_PLANT') & ~pickaxe, ('GRASS',), ''),
    (wood_first, ('TREE',), ''),
    *to_table(~pickaxe),
    (gather & ~has(wood=4) & stone_tool, ('TREE',), ''),
    (gather & ~has(stone=2), ('STONE',), ''),
    *to_table(stone_tool),
    (gather & ~has(wood=4) & more_iron, ('TREE',), ''),
    (gather & ~has(coal=1), ('COAL',), ''),
    (gather & ~has(stone=4), ('STONE',), ''),
    (iron_tool & more_iron, ('IRON',), ''),
    *to_table(iron_tool),
    (left('COLLECT_DIAMOND'), ('DIAMOND',), ''),
    (left('EAT_COW'), (), 'cow'),
    (left('EAT_PLANT') & sees('RIPE_PLANT'), ('RIPE_PLANT',), ''),
    (sword & more_iron & sees('IRON'), ('IRON',), ''),
    *to_table(sword & ~more_iron),
    (left('DEFEAT_SKELETON') | left('DEFEAT_ZOMBIE'), (), 'foe'),
    (left('COLLECT_SAPLING'), ('GRASS',), ''),
    (jnp.asarray(True), ('DIAMOND',), ''),
  ]
  goal = jnp.argmax(jnp.stack([holds for holds, _, _ in goals]))
  wanted = jnp.asarray([_mask(names) for _, names, _ in goals])[goal]
  extra = jnp.asarray([_EXTRAS.index(name) for _, _, name in goals])[goal]
  target = (kinds & wanted) != 0
  target |= _marked(blocks.shape, *_places(player, game, extra))
  near_target = _window(target, position, False)
  deep = _deep_rock(seen)
  near_target = jnp.where(
    (extra == _EXTRAS.index('rock')) & deep.any(), deep, near_target
  )
  action = _approach(game, target, near_target, key)
  for holds, what in reversed(spot):
    action = jnp.where(holds, what, action)
  return action


def _places(player: Player, game: PyTree, extra: Array) -> tuple[Array, Array]:
  """Returns `[n, 2]` positions of all that moves, and which are meant."""
  groups = [
    ('cow', game.cows.position, game.cows.mask),
    ('foe', game.zombies.position, game.zombies.mask),
    ('foe', game.skeletons.position, game.skeletons.mask),
    ('aim', player.aim[None], jnp.ones((1,), bool)),
  ]
  meant = [mask & (extra == _EXTRAS.index(name)) for name, _, mask in groups]
  positions = jnp.concatenate([where for _, where, _ in groups])
  return positions, jnp.concatenate(meant)


def _approach(game: PyTree, target: Array, near: Array, key: Array) -> Array:
  """Returns the next action on the way to the nearest target.

  Args:
    game: Craftax's state.
    target: `[H, W]` bool.
    near: `[31, 31]` bool, the window of `target` or a part of it.
    key: breaks ties, so that nobody gets stuck in a corner.
  """
  position = game.player_position
  near = near.at[RADIUS, RADIUS].set(False)
  cost = _enter_cost(game)
  steps = _steps_to_go(position, target, near, cost)
  inside = RADIUS + jnp.asarray(_MOVES)
  rows, cols = inside[:, 0], inside[:, 1]
  ways = jnp.where(near[rows, cols], 1, cost[rows, cols] + steps[rows, cols])
  jitter = jax.random.uniform(key, (4,))
  best = jnp.argmin(ways.astype(jnp.float32) + 0.5 * jitter)
  direction = 1 + best
  cell = position + jnp.asarray(_MOVES)[best]
  block = _block(game.map, cell)
  occupied = game.mob_map[cell[0], cell[1]]
  aimed = game.player_direction == direction
  wanted = near[rows[best], cols[best]] & (block != _B['CRAFTING_TABLE'])
  wet = _is(block, (_B['WATER'], _B['LAVA'])) & ~wanted
  use = jnp.where(wet, _A['PLACE_STONE'], _A['DO'])
  walk = _is(block, _FREE) & ~occupied & ~(wanted & (block == _B['GRASS']))
  action = jnp.where(walk | ~aimed, direction, use)
  # Grass cannot be faced without stepping on it; what is in front will do.
  ahead = (
    RADIUS + jnp.asarray(_MOVES)[jnp.clip(game.player_direction - 1, 0, 3)]
  )
  front = _block(game.map, position + ahead - RADIUS)
  grass = near[ahead[0], ahead[1]] & (front == _B['GRASS'])
  action = jnp.where(grass, _A['DO'], action)
  lost = jax.random.randint(key, (), 1, 5)
  return jnp.where((ways[best] >= _FAR) & ~grass, lost, action)


def _steps_to_go(
  position: Array, target: Array, near: Array, cost: Array
) -> Array:
  """Value iteration in the window, until the player's cell is settled.

  Returns:
    `[31, 31]` int16 fewest steps from every cell until the target is done;
    exact up to the player's own.
  """
  # A goal beyond the window is sought across its edge, as the crow flies.
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
  blocks = _window(game.map, position, _B['OUT_OF_BOUNDS'])
  wood, stone, iron = (
    bag.wood_pickaxe > 0, bag.stone_pickaxe > 0, bag.iron_pickaxe > 0
  )  # fmt: skip
  bridge = wood & (bag.stone > 0)
  costs = jnp.full((len(BlockType),), _FAR, jnp.int32)
  for name in _FREE_NAMES:
    costs = costs.at[_B[name]].set(1)
  for name, possible, steps in (
    ('TREE', True, 2), ('STONE', wood, 2), ('COAL', wood, 2),
    ('IRON', stone, 2), ('DIAMOND', iron, 2), ('WATER', bridge, 3),
    ('LAVA', bridge, 8),
  ):  # fmt: skip
    costs = costs.at[_B[name]].set(jnp.where(possible, steps, _FAR))
  crowded = _window(game.mob_map, position, False)
  return costs[blocks] + 3 * crowded


def _shelter(game: PyTree, beside: Array, room: Array) -> tuple[Array, Array]:
  """Tells whether it is safe to sleep here, and else what would make it so.

  A pocket is closed from inside: one steps back into the corridor that was dug,
  and thereby faces its open end.

  Args:
    game: Craftax's state.
    beside: `[4]` blocks at the four sides.
    room: `[]` bool, whether a stone can be placed in front.

  Returns:
    Whether every side is closed, but for one dead end perhaps; and the action
    that brings this nearer, -1 if there is none.
  """
  position = game.player_position
  moves = jnp.asarray(_MOVES)
  passable = (*_FREE, _B['LAVA'])
  open_side = _is(beside, passable)

  def ways_on(direction: Array) -> Array:
    """Counts the open sides of the cell in a direction, but the way back."""
    cell = position + direction
    sides = jax.vmap(lambda d: _block(game.map, cell + d))(moves)
    back = (moves == -direction[None]).all(-1)
    return (_is(sides, passable) & ~back).sum()

  onward = jax.vmap(ways_on)(moves)
  leads_out = open_side & (onward > 0)
  dead_ends = (open_side & (onward == 0)).sum()
  walled = ~leads_out.any() & (dead_ends <= 1)
  side = jnp.argmax(leads_out)
  closes = (leads_out.sum() == 1) & (dead_ends <= 1)
  aimed = room & (game.player_direction == 1 + side)
  corridor = (onward[side] == 1) & (dead_ends == 0)
  action = jnp.where(aimed, _A['PLACE_STONE'], 1 + side)
  return walled, jnp.where(closes & (aimed | corridor), action, -1)


def _deep_rock(seen: Array) -> Array:
  """Returns `[31, 31]` bool, stone with nothing but rock around it.

  Args:
    seen: kinds of blocks in the window, as bits.
  """
  rock = (seen & _mask(('STONE', 'COAL', 'IRON', 'DIAMOND', 'TREE'))) != 0
  padded = jnp.pad(rock, 1)
  deep = (seen & _mask(('STONE',))) != 0
  for r, c in _AROUND:
    deep &= padded[1 + r : 1 + r + _SIDE, 1 + c : 1 + c + _SIDE]
  return deep


def _enemies(game: PyTree) -> Array:
  """Returns `[n, 2]` positions of zombies and skeletons; far away if none."""
  positions = jnp.concatenate([game.zombies.position, game.skeletons.position])
  alive = jnp.concatenate([game.zombies.mask, game.skeletons.mask])
  return jnp.where(alive[:, None], positions, -99)


def _marked(shape: Sequence[int], positions: Array, mask: Array) -> Array:
  """Returns `[H, W]` bool, true at those positions that are in the mask."""
  empty = jnp.zeros(tuple(shape), bool)
  return empty.at[positions[:, 0], positions[:, 1]].max(mask)


def _kinds(blocks: Array) -> Array:
  """Returns the kind of each block as one bit of an int32."""
  return jnp.left_shift(1, blocks.astype(jnp.int32))


def _mask(names: Sequence[str]) -> int:
  """Returns the bits of some kinds."""
  return sum(1 << _B[name] for name in names)


def _is(block: Array, kinds: Sequence[int]) -> Array:
  block = jnp.asarray(block)
  each = jnp.asarray(kinds).reshape(*(1,) * block.ndim, -1)
  return (block[..., None] == each).any(-1)


def _block(blocks: Array, position: Array) -> Array:
  """Returns the block at a position; out of bounds where there is none."""
  size = jnp.asarray(blocks.shape)
  inside = ((position >= 0) & (position < size)).all()
  row, col = jnp.clip(position, 0, size - 1)
  return jnp.where(inside, blocks[row, col], _B['OUT_OF_BOUNDS'])


def _window(x: Array, position: Array, outside: int | bool) -> Array:
  """Cuts the 31x31 cells around a position out of `[H, W]`."""
  padded = jnp.pad(x, RADIUS, constant_values=outside)
  return jax.lax.dynamic_slice(padded, position, (_SIDE, _SIDE))


def _distances(shape: Sequence[int], position: Array) -> Array:
  """Returns `[H, W]` steps from a position, as the crow flies."""
  rows, cols = (jnp.asarray(x) for x in np.indices(tuple(shape)))
  return jnp.abs(rows - position[0]) + jnp.abs(cols - position[1])


def _all(conditions) -> Array:
  result = jnp.asarray(True)
  for condition in conditions:
    result &= condition
  return result
