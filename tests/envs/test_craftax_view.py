"""Our pictures of Craftax-Classic against those of the package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('craftax')

from craftax.craftax_classic.constants import BlockType

from dreamer4_jax.envs import Palette, Tiles, craftax_env, craftax_view

BATCH = 12


def some_games(engine, rng):
  """Worlds of random blocks, mobs around the player, and any inventory."""
  shapes = jax.eval_shape(
    engine.reset, jax.random.key(0), engine.default_params
  )[1].replace(state_rng=None)
  game = jax.tree.map(lambda x: np.zeros((BATCH, *x.shape), x.dtype), shapes)
  position = rng.integers(0, 64, (BATCH, 2))
  turns = np.array([[0, 1], [0, -1], [1, 0], [-1, 0]])

  def mobs(old):
    count = old.mask.shape[1]
    offset = rng.integers(-5, 6, (BATCH, count, 2))
    offset[0] = 0  # All in one tile, and that the player's.
    return old.replace(
      position=position[:, None] + offset, mask=rng.random((BATCH, count)) < 0.8
    )

  arrows = game.arrows.mask.shape[1]
  number = lambda low=0, high=12: rng.integers(low, high, BATCH)
  game = game.replace(
    map=rng.integers(0, 17, game.map.shape),
    player_position=position,
    player_direction=number(1, 5),
    player_health=number(-2, 10),
    player_food=number(0, 10),
    player_drink=number(0, 10),
    player_energy=number(0, 10),
    is_sleeping=rng.random(BATCH) < 0.3,
    inventory=jax.tree.map(lambda _: number(), game.inventory),
    zombies=mobs(game.zombies),
    cows=mobs(game.cows),
    skeletons=mobs(game.skeletons),
    arrows=mobs(game.arrows),
    arrow_directions=turns[rng.integers(0, 4, (BATCH, arrows))],
    state_rng=jax.random.split(jax.random.key(rng.integers(99)), BATCH),
  )
  return jax.tree.map(jnp.asarray, game)


def test_pictures_are_the_packages():
  engine = craftax_env.make_engine('Craftax-Classic-Pixels-v1')

  @jax.jit
  def expected(game):
    with jax.numpy_rank_promotion('allow'):
      return jax.vmap(engine.get_obs)(game) * 255

  rng, draw = np.random.default_rng(0), jax.jit(craftax_view.draw)
  for light in (np.ones(BATCH), rng.uniform(0.0, 1.0, BATCH)):
    game = some_games(engine, rng)
    game = game.replace(light_level=jnp.asarray(light, jnp.float32))
    pictures = np.asarray(draw(game))
    assert pictures.shape == (BATCH, 63, 63, 3) and pictures.std() > 40
    # Of 255; where they lie on a half, compilers may round them apart.
    np.testing.assert_allclose(pictures, expected(game), rtol=0, atol=1e-4)


def test_tiles_by_day_are_named():
  engine = craftax_env.make_engine('Craftax-Classic-Pixels-v1')
  game = some_games(engine, np.random.default_rng(1))
  no_mobs = lambda mobs: mobs.replace(mask=jnp.zeros_like(mobs.mask))
  game = game.replace(
    light_level=jnp.ones(BATCH),
    is_sleeping=jnp.zeros(BATCH, bool),
    player_position=game.player_position.clip(8, 55),
    map=game.map.clip(2, 16),
    inventory=jax.tree.map(lambda x: x.clip(0, 9), game.inventory),
    **{name: no_mobs(getattr(game, name))
       for name in ('zombies', 'skeletons', 'arrows')},
    cows=game.cows.replace(
      mask=jnp.zeros_like(game.cows.mask).at[:, 0].set(True),
      position=game.cows.position.at[:, 0].set(
        game.player_position.clip(8, 55) + jnp.array([[1, 2]])),
    ),
  )  # fmt: skip
  with jax.numpy_rank_promotion('allow'):
    shown = jax.vmap(engine.get_obs)(game)
  pictures = np.round(np.asarray(shown) * 255).astype(np.uint8)
  tiles, names = craftax_view.by_day()
  legend = Tiles(side=7, pictures=tiles, names=names)
  numbers = Palette(legend, tiles).read(pictures)
  look = lambda i, row, column: names[numbers[i, row, column]]
  turned = {1: 'left', 2: 'right', 3: 'up', 4: 'down'}
  for i in range(BATCH):
    row, column = map(int, game.player_position[i])
    for r, c in ((0, 0), (0, 8), (6, 3), (3, 5), (2, 4)):
      block = BlockType(int(game.map[i, row + r - 3, column + c - 4]))
      assert look(i, r, c) == block.name.lower()
    player = f'player {turned[int(game.player_direction[i])]} on '
    ground = BlockType(int(game.map[i, row, column])).name.lower()
    if ground in ('grass', 'sand', 'path'):
      assert look(i, 3, 4) == player + ground
    under = BlockType(int(game.map[i, row + 1, column + 2])).name.lower()
    if under in ('grass', 'sand', 'path'):
      assert look(i, 4, 6) == f'cow on {under}'
    for at, name in ((2, 'player_drink'), (5, 'wood'), (6, 'stone')):
      owner = game if at == 2 else game.inventory
      count = int(getattr(owner, name)[i])
      said = f'{name.removeprefix("player_")} {count}' if count else 'nothing'
      assert look(i, 7 + at // 9, at % 9) == said
