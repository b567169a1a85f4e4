"""Our pictures of Craftax-Classic against those of the package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('craftax')

from dreamer4_jax.envs import craftax_env, craftax_view

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
