"""The scripted player of Craftax-Classic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('craftax')

from craftax.craftax_classic.constants import Action, BlockType

from data_pipelines import craftax_player as lib
from dreamer4_jax.config import EnvConfig
from dreamer4_jax.envs import make_env

PICKAXES = {'wood_pickaxe': 1, 'stone_pickaxe': 1, 'iron_pickaxe': 1}
GRASS, STONE = BlockType.GRASS.value, BlockType.STONE.value


@functools.cache
def tools():
  env = make_env(
    EnvConfig(name='craftax:Craftax-Classic-Pixels-v1', max_steps=100)
  )
  state, _ = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 2))
  turn = jax.jit(env.step)
  step = lambda s, a: turn(s, {'action': jnp.full(2, a)})[0]
  act = jax.jit(functools.partial(lib.act, repeat=0.5))
  return state, step, act


def world(**changes):
  """A meadow without animals, with the player in the middle."""
  state = tools()[0]
  game = jax.tree.map(lambda x: x[0], state.game)
  nobody = lambda mobs: mobs.replace(mask=jnp.zeros_like(mobs.mask))
  blocks = jnp.full_like(game.map, GRASS)
  for (row, col), block in changes.pop('blocks', {}).items():
    blocks = blocks.at[32 + row, 32 + col].set(block)
  bag = {k: jnp.int32(v) for k, v in changes.pop('bag', {}).items()}
  return game.replace(
    map=blocks,
    mob_map=jnp.zeros_like(game.mob_map),
    player_position=jnp.array([32, 32]),
    player_direction=jnp.int32(Action.UP.value),
    zombies=nobody(game.zombies),
    cows=nobody(game.cows),
    skeletons=nobody(game.skeletons),
    inventory=game.inventory.replace(**bag),
    achievements=jnp.ones_like(game.achievements),
    **changes,
  )


def play(game, steps, **dials):
  """Plays on; returns the actions and the last state."""
  state, step, act = tools()
  # Two of the same, since that program is compiled for another test too.
  game = jax.tree.map(lambda x: jnp.stack([x, x]), game)
  state = state.replace(game=game)
  dials = {'noise': 0.0, 'restless': 0.0, 'idle': 0.0, **dials}
  player, actions = lib.start(**dials), []
  for t in range(steps):
    now = jax.tree.map(lambda x: x[0], state.game)
    player, action = act(player, now, jax.random.key(t))
    actions.append(Action(int(action)).name)
    state = step(state, action)
  return actions, jax.tree.map(lambda x: x[0], state.game)


def test_it_walks_the_shortest_way_around_a_wall():
  wall = {(-2, c): BlockType.WATER.value for c in range(-2, 3)}
  blocks = {**wall, (-4, 0): BlockType.DIAMOND.value}
  game = world(blocks=blocks, bag=PICKAXES)
  game = game.replace(achievements=game.achievements.at[19].set(False))
  actions, game = play(game, 12)
  # Three sideways, four up, two back (the last into the diamond's column).
  assert int(game.inventory.diamond) == 1
  assert actions.index('DO') <= 10


def test_it_digs_where_that_is_shorter():
  stones = {(-1, c): STONE for c in range(-9, 10)}
  blocks = {**stones, (-3, 0): BlockType.DIAMOND.value}
  game = world(blocks=blocks, bag=PICKAXES)
  game = game.replace(achievements=game.achievements.at[19].set(False))
  actions, game = play(game, 5)
  # Dig, two steps up, dig: the diamond is in front.
  assert actions[:4] == ['DO', 'UP', 'UP', 'DO']
  assert int(game.inventory.diamond) == 1 and int(game.inventory.stone) == 1


def test_thirst_comes_first():
  blocks = {(0, 3): BlockType.WATER.value, (-2, 0): BlockType.TREE.value}
  game = world(blocks=blocks, player_drink=jnp.int32(2))
  actions, game = play(game, 9)
  # Two steps, and then the water is in front.
  assert actions[:2] == ['RIGHT', 'RIGHT']
  assert set(actions[2:]) == {'DO'} and int(game.player_drink) == 9


def test_an_enemy_is_faced_and_fought():
  game = world()
  beside = game.zombies.position.at[0].set(jnp.array([32, 33]))
  game = game.replace(
    zombies=game.zombies.replace(
      position=beside, mask=jnp.array([True, False, False])
    ),
    mob_map=game.mob_map.at[32, 33].set(True),
  )
  actions, _ = play(game, 2)
  assert actions == ['RIGHT', 'DO']


def test_nobody_walks_into_lava():
  around = {(r, c): BlockType.LAVA.value for r, c in lib.MOVES.tolist()}
  _, game = play(world(blocks=around), 40, noise=1.0)
  assert game.player_position.tolist() == [32, 32]


def test_tools_are_made_at_the_table():
  blocks = {(0, 1): BlockType.CRAFTING_TABLE.value}
  game = world(blocks=blocks, bag={'wood': 4, 'stone': 3})
  actions, game = play(game, 4)
  bag = game.inventory
  assert actions[:2] == ['MAKE_WOOD_PICKAXE', 'MAKE_STONE_PICKAXE']
  assert int(bag.wood_pickaxe) == int(bag.stone_pickaxe) == 1
  assert int(bag.wood_sword) == int(bag.stone_sword) == 1


def test_the_tired_dig_themselves_in():
  rock = {(r, c): STONE for r in range(-9, -1) for c in range(-6, 7)}
  game = world(
    blocks=rock,
    bag={'wood_pickaxe': 1, 'stone': 2},
    player_energy=jnp.int32(3),
  )
  actions, game = play(game, 40)
  assert 'SLEEP' in actions and bool(game.is_sleeping)
  # Nobody gets in: the open cells around the player have no way out.
  blocks, seen = np.asarray(game.map), set()
  edge = [tuple(game.player_position.tolist())]
  while edge:
    row, col = edge.pop()
    if (row, col) in seen or blocks[row, col] in (STONE,):
      continue
    seen.add((row, col))
    edge += [(row + r, col + c) for r, c in lib.MOVES.tolist()]
    assert len(seen) < 5


def test_noise_is_a_share_of_random_actions():
  actions, _ = play(world(), 100, noise=1.0)
  assert len(set(actions)) >= 5


def test_idle_players_stand_around():
  actions, _ = play(world(), 60, idle=1.0)
  assert set(actions) == {'NOOP'}


def test_it_makes_its_way_from_nothing():
  state, step, act = tools()
  player, now = lib.start(0.0, 0.0, 0.0), state
  for t in range(90):
    game = jax.tree.map(lambda x: x[0], now.game)
    player, action = act(player, game, jax.random.key(t))
    now = step(now, action)
  reached = np.asarray(now.game.achievements[0])
  # Wood, table, pickaxe; what else depends on the map.
  assert reached[[0, 1, 5]].all()
