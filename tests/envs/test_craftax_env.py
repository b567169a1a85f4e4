"""The Craftax adapter against the package itself."""

import dataclasses
import functools
import os
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('craftax')

from craftax.craftax.craftax_state import Inventory

from dreamer4_jax import evals
from dreamer4_jax.config import EnvConfig
from dreamer4_jax.envs import craftax_env as lib
from dreamer4_jax.envs import make_env

NAME = 'Craftax-Classic-Pixels-v1'
LEFT, DO, MAKE_WOOD_PICKAXE = 1, 5, 11


@functools.cache
def build():
  # As in test_craftax_player, so that one compiled program serves both.
  env = make_env(EnvConfig(name=f'craftax:{NAME}', max_steps=100))
  return env, jax.jit(env.reset), jax.jit(env.step)


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def test_the_spec_names_achievements_and_actions():
  env = build()[0]
  assert env.spec.frame_shape == (63, 63, 3)
  assert len(env.spec.tasks) == 22 and env.spec.tasks[19] == 'collect_diamond'
  assert env.spec.actions[0].size == 17
  assert env.spec.labels['action'][DO] == 'do'
  tiles = env.spec.tiles
  assert tiles.side == 7 and tiles.pictures is None and tiles.places is None


def test_the_tiles_of_craftax_come_again():
  _, reset, _ = build()
  frames = np.asarray(reset(keys(2))[1].frame)
  palette = evals.find_palette(build()[0].spec.tiles, [frames])
  # By day few kinds of blocks are visible; misaligned tiles would show more.
  assert len(palette.pictures) < 40
  read = palette.read(frames)
  assert read.shape == (2, 9, 9)
  tiles = palette.pictures[read].swapaxes(2, 3).reshape(2, 63, 63, 3)
  np.testing.assert_array_equal(tiles, frames)


def test_frames_and_rewards_are_the_packages():
  _, reset, step = build()
  state, first = reset(keys(2))
  assert first.frame.shape == (2, 63, 63, 3) and first.frame.dtype == jnp.uint8
  engine = lib.make_engine(NAME)
  params = engine.default_params
  draw = jax.jit(engine.get_obs)
  one = lambda i: jax.tree.map(lambda x: x[i], state.game)
  for i in range(2):
    expected = np.asarray(draw(one(i))) * 255
    np.testing.assert_allclose(first.frame[i], expected, atol=0.5)
  act = jax.jit(engine.step)
  key = jax.vmap(jax.random.split)(state.key)[0, 0]
  image, game, reward, _, _ = act(key, one(0), DO, params)
  new, shown = step(state, {'action': jnp.array([DO, LEFT])})
  np.testing.assert_allclose(shown.frame[0], image * 255, atol=0.5)
  np.testing.assert_allclose(shown.reward[0], reward, atol=1e-6)
  np.testing.assert_array_equal(new.game.map[0], game.map)


def test_an_achievement_is_an_event_whenever_it_happens_and_pays_once():
  _, reset, step = build()
  state, _ = reset(keys(2))
  game = state.game
  # A table to the left, wood in the bag: the pickaxe can be made.
  x, y = game.player_position[0]
  game = game.replace(
    map=game.map.at[0, x, y - 1].set(11),
    inventory=game.inventory.replace(wood=jnp.array([3, 0])),
  )
  state = state.replace(game=game)
  made, paid = [], []
  for _ in range(4):
    action = jnp.full(2, MAKE_WOOD_PICKAXE)
    state, shown = step(state, {'action': action})
    assert not shown.events[1].any()
    made.append(np.flatnonzero(shown.events[0]).tolist())
    paid.append(float(shown.reward[0]))
  # There was wood for three.
  assert made == [[5], [5], [5], []]
  assert paid == [1.0, 0.0, 0.0, 0.0]
  assert state.game.achievements[0, 5]
  assert int(state.game.inventory.wood_pickaxe[0]) == 3


def test_rewards_are_the_packages_whatever_was_achieved_before():
  _, reset, step = build()
  state, _ = reset(keys(2, seed=3))
  engine = lib.make_engine(NAME)
  act = jax.jit(jax.vmap(engine.step, in_axes=(0, 0, 0, None)))
  rng = np.random.default_rng(0)
  happened = 0
  for _ in range(60):
    action = jnp.asarray(rng.choice([1, 2, 3, 4, 5, 5, 5], 2), jnp.int32)
    split = jax.vmap(jax.random.split)(state.key)[:, 0]
    _, game, reward, _, _ = act(
      split, state.game, action, engine.default_params
    )
    old = state.game
    state, shown = step(state, {'action': action})
    np.testing.assert_array_equal(shown.reward, reward)
    np.testing.assert_array_equal(state.game.achievements, game.achievements)
    new = np.asarray(game.achievements & ~old.achievements)
    assert (np.asarray(shown.events)[new] == 1).all()
    happened += int(shown.events.sum())
  assert happened


def test_what_the_bag_of_craftax_holds_is_no_event():
  tasks = [a.name.lower() for a in lib.Achievement]
  index = tasks.index
  empty = {
    f.name: jnp.zeros(2, jnp.int32) for f in dataclasses.fields(Inventory)
  }

  def game(level, **bag):  # What is read of one.
    return types.SimpleNamespace(
      inventory=types.SimpleNamespace(**{**empty, **bag}),
      achievements=jnp.zeros((2, len(tasks)), bool),
      player_level=jnp.array(level),
    )

  old = game([0, 0], wood=jnp.array([2, 2]), pickaxe=jnp.array([1, 1]))
  new = game([1, 0], wood=jnp.array([3, 1]), pickaxe=jnp.array([2, 1]))
  marked = jnp.zeros((2, len(tasks)), bool)
  for name in (
    'collect_wood', 'make_wood_pickaxe', 'make_stone_pickaxe', 'enter_dungeon',
    'eat_cow',
  ):  # fmt: skip
    marked = marked.at[:, index(name)].set(True)
  events = lib._happened(old, new, marked)
  named = [{tasks[i] for i in np.flatnonzero(row)} for row in events]
  assert named == [
    {'collect_wood', 'make_stone_pickaxe', 'enter_dungeon', 'eat_cow'},
    {'eat_cow'},
  ]


@pytest.mark.slow  # It draws its textures, and makes nine floors.
def test_craftax_has_tasks_and_frames_of_its_own():
  env = make_env(EnvConfig(name='craftax:Craftax-Pixels-v1', max_steps=100))
  assert len(env.spec.tasks) == 67 and env.spec.actions[0].size == 43
  assert env.spec.tiles.pictures is None and env.spec.legend is None
  state, first = jax.eval_shape(env.reset, keys(2))
  assert first.frame.shape == (2, *env.spec.frame_shape)
  again, shown = jax.eval_shape(
    env.step, state, {'action': jnp.zeros(2, jnp.int32)}
  )
  alike = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
  assert all(jax.tree.leaves(jax.tree.map(alike, state, again)))
  assert shown.events.shape == (2, 67)


def test_the_time_limit_is_no_death():
  _, reset, step = build()
  state, _ = reset(keys(2))
  game = state.game.replace(timestep=jnp.array([97, 50]))
  state = state.replace(game=game)
  for t in range(98, 102):
    state, shown = step(state, {'action': jnp.zeros(2, jnp.int32)})
    assert shown.timeout.tolist() == [t >= 100, False]
    assert not shown.terminal.any()


def test_death_is_terminal_and_what_follows_changes_nothing():
  _, reset, step = build()
  state, _ = reset(keys(2))
  state = state.replace(
    game=state.game.replace(player_health=jnp.array([0, 9]))
  )
  state, dead = step(state, {'action': jnp.zeros(2, jnp.int32)})
  assert dead.terminal.tolist() == [True, False] and not dead.timeout.any()
  _, after = step(state, {'action': jnp.full(2, LEFT)})
  np.testing.assert_array_equal(after.frame[0], dead.frame[0])
  assert after.reward[0] == 0 and not after.events[0].any()
  assert after.terminal.tolist() == [True, False]


@pytest.mark.parametrize(
  ('name', 'kwargs', 'message'),
  [
    ('craftax:Nether', {}, r"no level 'Nether'; it offers \['Craftax-Classic"),
    (f'craftax:{NAME}', {'max_steps': 0}, 'max_steps = 0'),
  ],
)
def test_mistakes_are_named(name, kwargs, message):
  with pytest.raises(ValueError, match=message):
    make_env(EnvConfig(name=name, **kwargs))


def test_half_a_file_of_textures_is_drawn_again(monkeypatch):
  made = []

  def package(level, auto_reset):
    made.append(os.environ.get('CRAFTAX_RELOAD_TEXTURES'))
    if made[-1] is None:
      raise EOFError('Compressed file ended before the end-of-stream marker')
    return level

  monkeypatch.setattr(lib, 'make_craftax_env_from_name', package)
  assert lib.make_engine('x') == 'x'
  assert made == [None, '1']
  assert 'CRAFTAX_RELOAD_TEXTURES' not in os.environ


def test_textures_are_kept_by_one_process_at_a_time(monkeypatch):
  # Another process that reads a half-written file would fail.
  busy: list[None] = []
  at_once: list[int] = []

  def package(level, auto_reset):
    del level, auto_reset
    busy.append(None)
    time.sleep(0.2)
    at_once.append(len(busy))
    busy.pop()

  monkeypatch.setattr(lib, 'make_craftax_env_from_name', package)
  threads = [threading.Thread(target=lib.make_engine, args='x') for _ in '123']
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert at_once == [1, 1, 1]
