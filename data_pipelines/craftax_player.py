"""A scripted player for Craftax-Classic, through the whole technology tree.

It reads the symbolic state, so it knows the map, but it plays by the rules: it
walks, digs, fights, drinks, eats, digs itself in to sleep, makes tools up to
the iron pickaxe, digs a diamond, then earns the rest of the 22 achievements.

Three dials make it as uneven as people are: `noise`, the share of random
actions, which tend to be repeated; `restless`, how often it drops its goal and
walks somewhere else; `idle`, how often it stands around for a while.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from craftax.craftax_classic.constants import Action
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import craftax_world as world
from data_pipelines.craftax_world import ACTION, BLOCK, DONE, MOVES
from dreamer4_jax.types import Array, PyTree

_EXTRAS = ('', 'cow', 'foe', 'aim', 'rock')
"""What a player walks to other than blocks."""


@struct.dataclass
class Player:
  """State of a player in one episode (add `B` in front for a batch).

  Attributes:
    noise: `[]` float32, share of random actions.
    restless: `[]` float32, chance per step to start to wander.
    idle: `[]` float32, chance per step to start to stand around.
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
    repeat: probability that a random action repeats the last one.

  Returns:
    The new memory, and the action, `[]` int32.
  """
  keys = jax.random.split(key, 8)
  player = _feel(player, game, keys[0])
  planned = _plan(player, game, keys[1])
  again = (jax.random.uniform(keys[2]) < repeat) & (player.whim >= 0)
  # Mostly moves and DO; rarely any of the 17 actions.
  usual = jax.random.randint(keys[3], (), ACTION['LEFT'], ACTION['DO'] + 1)
  any_action = jax.random.randint(keys[4], (), 0, len(Action))
  fresh = jnp.where(jax.random.uniform(keys[5]) < 0.9, usual, any_action)
  whim = jnp.where(again, player.whim, fresh)
  random = jax.random.uniform(keys[6]) < player.noise
  action = jnp.where(player.rest > 0, ACTION['NOOP'], planned)
  action = jnp.where(random, whim, action)
  # Nobody walks into lava, not even on a whim.
  step = jnp.asarray(np.concatenate([[(0, 0)], MOVES]))
  moves = (action >= ACTION['LEFT']) & (action <= ACTION['DOWN'])
  target = game.player_position + step[jnp.where(moves, action, 0)]
  burns = moves & (world.block_at(game.map, target) == BLOCK['LAVA'])
  action = jnp.where(burns, ACTION['NOOP'], action)
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


class _Sight(NamedTuple):
  """What the player sees and has; arrays without a batch.

  Attributes:
    front: block ahead.
    beside: `[4]` blocks at the four sides.
    free: whether something can be placed ahead.
    kinds: of the blocks of the whole map, as bits.
    seen: the same in the window around the player.
    table: a crafting table is near enough to be used.
    furnace: likewise.
    table_seen: a crafting table is in the window.
    enemies: on which of the four sides an enemy stands.
    faces_enemy: whether an enemy stands ahead.
  """

  front: Array
  beside: Array
  free: Array
  kinds: Array
  seen: Array
  table: Array
  furnace: Array
  table_seen: Array
  enemies: Array
  faces_enemy: Array

  @classmethod
  def of(cls, game: PyTree) -> _Sight:
    """Looks around."""
    position, blocks = game.player_position, game.map
    moves = jnp.asarray(MOVES)
    ahead = position + moves[jnp.clip(game.player_direction - 1, 0, 3)]
    around = jax.vmap(lambda d: world.block_at(blocks, position + d))
    near = around(jnp.asarray(world.AROUND))
    front = world.block_at(blocks, ahead)
    kinds = world.kinds_of(blocks)
    seen = world.window(kinds, position, 0)
    enemy_at = world.enemies(game)
    sides = (position[None] + moves)[:, None]
    return cls(
      front=front,
      beside=around(moves),
      free=world.is_one_of(front, world.FREE)
      & ~game.mob_map[ahead[0], ahead[1]],
      kinds=kinds,
      seen=seen,
      table=(near == BLOCK['CRAFTING_TABLE']).any(),
      furnace=(near == BLOCK['FURNACE']).any(),
      table_seen=_sees(seen, 'CRAFTING_TABLE'),
      enemies=(sides == enemy_at[None]).all(-1).any(1),
      faces_enemy=(enemy_at == ahead[None]).all(-1).any(),
    )


def _sees(seen: Array, *names: str) -> Array:
  return ((seen & world.mask_of(names)) != 0).any()


def _has(game: PyTree, **least: int) -> Array:
  bag = game.inventory
  return _all(getattr(bag, k) >= n for k, n in least.items())


def _plan(player: Player, game: PyTree, key: Array) -> Array:
  """Returns the action that a careful player would take."""
  s = _Sight.of(game)
  goals = _goals(player, game, s)
  goal = jnp.argmax(jnp.stack([holds for holds, _, _ in goals]))
  wanted = jnp.asarray([world.mask_of(names) for _, names, _ in goals])[goal]
  extra = jnp.asarray([_EXTRAS.index(name) for _, _, name in goals])[goal]
  target = (s.kinds & wanted) != 0
  target |= world.marked(game.map.shape, *_places(player, game, extra))
  near_target = world.window(target, game.player_position, False)
  deep = world.deep_rock(s.seen)
  near_target = jnp.where(
    (extra == _EXTRAS.index('rock')) & deep.any(), deep, near_target
  )
  action = world.approach(game, target, near_target, key)
  for holds, what in reversed(_on_the_spot(player, game, s)):
    action = jnp.where(holds, what, action)
  return action


def _on_the_spot(
  player: Player, game: PyTree, s: _Sight
) -> list[tuple[Array, Array | int]]:
  """Returns (condition, action without walking); the first to hold counts."""
  bag, done = game.inventory, game.achievements
  has = functools.partial(_has, game)
  fight = jnp.where(s.faces_enemy, ACTION['DO'], 1 + jnp.argmax(s.enemies))
  pickaxe = bag.wood_pickaxe > 0
  walled, seal = _shelter(game, s.beside, s.free)
  sleepy = player.tired & (walled | (game.player_energy <= 1))
  iron_kit = has(wood=1, stone=1, coal=1, iron=1)
  wants_furnace = has(stone=1) & (
    ~done[DONE['PLACE_FURNACE']] | (iron_kit & has(stone=2))
  )
  next_tool = (
    ~pickaxe
    | ((bag.stone_pickaxe == 0) & has(wood=3, stone=1))
    | ((bag.iron_pickaxe == 0) & iron_kit & has(wood=3))
    | ((bag.iron_sword == 0) & (bag.iron_pickaxe > 0) & iron_kit & has(wood=3))
  )
  make = s.table & s.furnace
  return [
    (game.is_sleeping, ACTION['NOOP']),
    (s.enemies.any(), fight),
    (sleepy, ACTION['SLEEP']),
    (player.tired & pickaxe & (seal >= 0) & (bag.stone > 0), seal),
    (s.table & ~pickaxe & has(wood=1), ACTION['MAKE_WOOD_PICKAXE']),
    (s.table & (bag.stone_pickaxe == 0) & has(wood=1, stone=1),
     ACTION['MAKE_STONE_PICKAXE']),
    (make & (bag.iron_pickaxe == 0) & iron_kit, ACTION['MAKE_IRON_PICKAXE']),
    (make & (bag.iron_pickaxe > 0) & (bag.iron_sword == 0) & iron_kit,
     ACTION['MAKE_IRON_SWORD']),
    (s.table & (bag.wood_sword == 0) & has(wood=1) & pickaxe,
     ACTION['MAKE_WOOD_SWORD']),
    (s.table & (bag.stone_sword == 0) & has(wood=1, stone=1)
     & (bag.stone_pickaxe > 0), ACTION['MAKE_STONE_SWORD']),
    (s.table & ~s.furnace & wants_furnace & s.free, ACTION['PLACE_FURNACE']),
    (~s.table_seen & next_tool & has(wood=2) & s.free
     & (pickaxe | has(wood=4)), ACTION['PLACE_TABLE']),
    (has(stone=2) & ~done[DONE['PLACE_STONE']] & s.free,
     ACTION['PLACE_STONE']),
    (has(sapling=1) & ~done[DONE['PLACE_PLANT']]
     & (s.front == BLOCK['GRASS']) & s.free, ACTION['PLACE_PLANT']),
  ]  # fmt: skip


def _goals(
  player: Player, game: PyTree, s: _Sight
) -> list[tuple[Array, tuple[str, ...], str]]:
  """Returns (condition, blocks, extra) to walk to; the first to hold counts."""
  bag, done = game.inventory, game.achievements
  has, sees = functools.partial(_has, game), functools.partial(_sees, s.seen)
  left = lambda name: ~done[DONE[name]]
  pickaxe = bag.wood_pickaxe > 0
  wood_first = ~pickaxe & ~has(wood=4) & ~(s.table_seen & has(wood=1))
  stone_tool = bag.stone_pickaxe == 0
  iron_tool = bag.iron_pickaxe == 0
  sword = bag.iron_sword == 0
  gather = stone_tool | iron_tool | (sword & done[DONE['COLLECT_DIAMOND']])
  more_iron = bag.iron == 0
  food = sees('RIPE_PLANT') | game.cows.mask.any()
  bench, anywhere = ('CRAFTING_TABLE',), (*world.FREE_NAMES, 'CRAFTING_TABLE')
  to_table = lambda holds: (
    (holds & s.table_seen, bench, ''), (holds & ~s.table_seen, anywhere, '')
  )  # fmt: skip
  return [
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


def _places(player: Player, game: PyTree, extra: Array) -> tuple[Array, Array]:
  """Returns `[n, 2]` positions of mobs and the aim, and which are targets."""
  groups = [
    ('cow', game.cows.position, game.cows.mask),
    ('foe', game.zombies.position, game.zombies.mask),
    ('foe', game.skeletons.position, game.skeletons.mask),
    ('aim', player.aim[None], jnp.ones((1,), bool)),
  ]
  meant = [mask & (extra == _EXTRAS.index(name)) for name, _, mask in groups]
  positions = jnp.concatenate([where for _, where, _ in groups])
  return positions, jnp.concatenate(meant)


def _shelter(game: PyTree, beside: Array, free: Array) -> tuple[Array, Array]:
  """Tells whether it is safe to sleep here, and if not, how to make it so.

  A pocket is closed from inside: the player steps back into the corridor that
  it dug, and so faces its open end.

  Args:
    game: Craftax's state.
    beside: `[4]` blocks at the four sides.
    free: `[]` bool, whether a stone can be placed in front.

  Returns:
    Whether every side is closed, except perhaps one dead end; and the action
    that works towards this, -1 if there is none.
  """
  position = game.player_position
  moves = jnp.asarray(MOVES)
  passable = (*world.FREE, BLOCK['LAVA'])
  open_side = world.is_one_of(beside, passable)

  def ways_on(direction: Array) -> Array:
    """Counts the open sides of the cell in a direction, except the way back."""
    cell = position + direction
    sides = jax.vmap(lambda d: world.block_at(game.map, cell + d))(moves)
    back = (moves == -direction[None]).all(-1)
    return (world.is_one_of(sides, passable) & ~back).sum()

  onward = jax.vmap(ways_on)(moves)
  leads_out = open_side & (onward > 0)
  dead_ends = (open_side & (onward == 0)).sum()
  walled = ~leads_out.any() & (dead_ends <= 1)
  side = jnp.argmax(leads_out)
  closes = (leads_out.sum() == 1) & (dead_ends <= 1)
  aimed = free & (game.player_direction == 1 + side)
  corridor = (onward[side] == 1) & (dead_ends == 0)
  action = jnp.where(aimed, ACTION['PLACE_STONE'], 1 + side)
  return walled, jnp.where(closes & (aimed | corridor), action, -1)


def _all(conditions) -> Array:
  result = jnp.asarray(True)
  for condition in conditions:
    result &= condition
  return result
