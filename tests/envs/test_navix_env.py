"""The navix adapter against navix itself and the environment protocol."""

import hashlib
import pathlib
import sys

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax import envs, evals
from dreamer4_jax.config import EnvConfig
from dreamer4_jax.envs import make_env

navix = pytest.importorskip('navix')

PLACES = ('before the door', 'doorway', 'behind the door')
LEVEL = 'navix:Navix-DoorKey-Random-5x5-v0'
LEFT, RIGHT, FORWARD, PICKUP, TOGGLE = range(5)
TILES = '0eb23ffbc54b017f561d49dd05999d7edf427dd8b7556071ed64c30041bad8d0'
"""SHA-256 of the sprites shown, tile by tile, in the episode played by hand."""
SPRITES = pathlib.Path(__file__).parent / 'navix_sprites.npy'
"""Those of navix 0.7.4, `[10, 8, 8, 3]` uint8."""


@pytest.fixture(scope='module')
def env():
  return make_env(EnvConfig(name=LEVEL, max_steps=40))


@pytest.fixture(scope='module')
def fns(env):
  return jax.jit(env.reset), jax.jit(env.step)


def random_actions(t, batch=64):
  key = jax.random.fold_in(jax.random.key(7), t)
  return {'action': jax.random.randint(key, (batch,), 0, 5)}


def test_spec(env):
  spec = env.spec
  assert spec.frame_shape == (40, 40, 3)
  assert spec.tasks == ('key', 'door', 'goal')
  assert [(a.name, a.kind, a.size) for a in spec.actions] == [
    ('action', 'categorical', 5)
  ]
  assert spec.max_steps == 40


def test_the_tiles_are_named(env):
  tiles = env.spec.tiles
  assert tiles.side == 8 and tiles.pictures.shape == (10, 8, 8, 3)
  assert [tiles.names[i] for i in tiles.player] == [
    f'player_{direction}' for direction in ('right', 'down', 'left', 'up')
  ]
  distance = abs(tiles.pictures.astype(int) - np.load(SPRITES).astype(int))
  assert distance.max() <= 1
  # Specs compare as equal, though their tiles are different objects.
  other = make_env(EnvConfig(name=LEVEL, max_steps=40)).spec
  assert other == env.spec and other.tiles is not tiles


@pytest.mark.parametrize('level', ['Random-5x5', '6x6', '8x8', 'Random-16x16'])
def test_places_are_where_the_game_has_the_player(level):
  name = f'navix:Navix-DoorKey-{level}-v0'
  env = make_env(EnvConfig(name=name, max_steps=100))
  state, _ = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 64))
  game = state.timestep.state
  at = {k: np.array(v.position) for k, v in game.entities.items()}
  at['player'], door = at['player'][:, 0], at['door'][:, 0]
  rng = np.random.default_rng(0)
  for i in range(64):
    # Anywhere but in a wall; one in four in the doorway, some on the goal.
    free = np.argwhere(np.asarray(game.grid[i]) == 0)
    taken = np.concatenate([at['wall'][i], at['key'][i]])
    free = free[~(free[:, None] == taken).all(-1).any(1)]
    at['player'][i] = rng.choice(free)
    if i % 4 == 0:
      at['player'][i] = door[i]
    if i % 4 == 1:
      at['player'][i] = at['goal'][i, 0]
    if i % 2:  # the key is in the pocket
      at['key'][i] = -1
  entities = dict(game.entities)
  for name, position in (('player', at['player'][:, None]), ('key', at['key'])):
    entities[name] = entities[name].replace(position=jnp.asarray(position))
  entities['door'] = entities['door'].replace(
    open=jnp.ones_like(entities['door'].open)
  )
  timestep = state.timestep.replace(state=game.replace(entities=entities))
  _, shown = jax.jit(env.step)(
    state.replace(timestep=timestep), {'action': jnp.full(64, LEFT)}
  )
  tiles = evals.find_palette(env.spec.tiles, []).read(np.asarray(shown.frame))
  expected = []
  for player, door, goal in zip(
    at['player'], at['door'][:, 0], at['goal'][:, 0], strict=True
  ):
    side = (player[1] > door[1]) == (goal[1] > door[1])
    place = 'behind the door' if side else 'before the door'
    expected.append('doorway' if (player == door).all() else place)
  assert env.spec.tiles.places(tiles).tolist() == expected
  assert set(expected) == set(PLACES)
  # Where no player is visible, there is no place.
  tiles[tiles >= 6] = 0
  assert set(env.spec.tiles.places(tiles)) == {''}


@pytest.mark.parametrize('tile', [8, 4])
def test_frames_are_those_of_navix(tile, monkeypatch):
  # Since 0.9.3 the renderer draws brighter lines over those of the floor.
  monkeypatch.setattr(
    navix.rendering.cache, 'draw_grid_lines', lambda x, **_: x, raising=False
  )
  env = make_env(
    EnvConfig(name=LEVEL, max_steps=40, image_size=(5 * tile,) * 2)
  )
  state, shown = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 64))
  step = jax.jit(env.step)

  def reference(state):
    cache = navix.rendering.cache.RenderingCache.init(state.grid)
    return navix.observations.rgb(state.replace(cache=cache))

  with jax.numpy_rank_promotion('allow'):
    reference = jax.jit(jax.vmap(reference))
    for t in range(12):
      full = np.asarray(reference(state.timestep.state), np.float32)
      side = 8 // tile
      pooled = full.reshape(64, 5 * tile, side, 5 * tile, side, 3)
      expected = np.round(pooled.mean((2, 4))).astype(np.uint8)
      np.testing.assert_array_equal(shown.frame, expected)
      state, shown = step(state, random_actions(t))


def test_step_and_reset_compile_once(fns):
  reset, step = fns
  state, _ = reset(jax.random.split(jax.random.key(0), 8))
  reset(jax.random.split(jax.random.key(1), 8))
  before = step._cache_size()
  for t in range(4):
    state, _ = step(state, random_actions(t, 8))
  assert step._cache_size() - before == 1
  assert reset._cache_size() == 1


def test_one_episode_by_hand():
  # A level with player and goal fixed: from (1, 1) facing east to (3, 3), with
  # a wall between. Key and door are random; here the key is below the player
  # and the door at the bottom of the wall.
  level = 'navix:Navix-DoorKey-5x5-v0'
  env = make_env(EnvConfig(name=level, max_steps=20))
  state, shown = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 64))
  at = {k: v.position[:, 0] for k, v in state.timestep.state.entities.items()}
  places = np.concatenate([at['key'], at['door']], axis=-1)
  here = np.flatnonzero((places == [2, 1, 3, 2]).all(-1))[0]
  step = jax.jit(env.step)
  frames = [shown.frame[here]]
  for action, event, picture in (
    (TOGGLE, None, 'same'),  # a wall
    (FORWARD, None, 'same'),
    (PICKUP, None, 'same'),
    (RIGHT, None, 'new'),
    (FORWARD, None, 'same'),  # the key is in the way
    (PICKUP, 'key', 'new'),
    (PICKUP, None, 'same'),
    (FORWARD, None, 'new'),
    (FORWARD, None, 'new'),
    (LEFT, None, 'new'),
    (FORWARD, None, 'same'),  # the door is closed
    (TOGGLE, 'door', 'new'),
    (TOGGLE, None, 'same'),
    (PICKUP, None, 'same'),
    (FORWARD, None, 'new'),
    (FORWARD, 'goal', 'new'),
    (FORWARD, None, 'same'),  # over
  ):
    state, shown = step(state, {'action': jnp.full(64, action)})
    now = jax.tree.map(lambda x: x[here], shown)
    expected = [float(event == task) for task in env.spec.tasks]
    assert now.events.tolist() == expected
    assert now.reward == float(event == 'goal')
    assert bool((now.frame == frames[-1]).all()) == (picture == 'same')
    frames.append(now.frame)
  assert bool(now.terminal) and not bool(now.timeout)
  # As under navix 0.7.4. Its sprites are resized by JAX, whose versions round
  # nine values of the wall differently.
  sprites = np.load(SPRITES).astype(int)
  shown = einops.rearrange(
    np.stack(frames), 't (r h) (c w) k -> (t r c) h w k', h=8, w=8
  ).astype(int)
  distance = abs(shown[:, None] - sprites[None]).max((-1, -2, -3))
  assert (distance.min(axis=1) <= 1).all()
  tiles = distance.argmin(axis=1).astype(np.uint8)
  assert hashlib.sha256(tiles.tobytes()).hexdigest() == TILES


def run_optimally(env, keys):
  """Plays without noise; returns the steps shown and their number."""
  from data_pipelines import doorkey_player

  step = jax.jit(env.step)
  state, _ = jax.jit(env.reset)(keys)
  players = jax.jit(jax.vmap(doorkey_player.start))(
    state.timestep.state, jnp.zeros(len(keys))
  )
  best = jax.jit(jax.vmap(doorkey_player.best_action))
  shown = []
  for _ in range(env.spec.max_steps):
    action = best(players, state.timestep.state)
    state, now = step(state, {'action': action})
    shown.append(now)
  return state, shown


def test_goal_and_time_limit():
  keys = jax.random.split(jax.random.key(3), 4)
  env = make_env(EnvConfig(name=LEVEL, max_steps=30))
  _, shown = run_optimally(env, keys)
  terminal = np.stack([np.asarray(s.terminal) for s in shown])
  assert terminal[-1].all()
  steps = int(np.argmax(terminal[:, 0])) + 1
  reward = np.array([s.reward[0] for s in shown])
  np.testing.assert_array_equal(reward, np.eye(30)[steps - 1])
  assert not any(bool(s.timeout[0]) for s in shown)
  assert np.asarray(shown[steps - 1].events[0]).tolist() == [0, 0, 1]

  # The goal on the very last step is terminal, not a time-out.
  env = make_env(EnvConfig(name=LEVEL, max_steps=steps))
  _, shown = run_optimally(env, keys)
  assert bool(shown[-1].terminal[0]) and not bool(shown[-1].timeout[0])

  # One step fewer, and the episode is cut.
  env = make_env(EnvConfig(name=LEVEL, max_steps=steps - 1))
  _, shown = run_optimally(env, keys)
  assert not bool(shown[-1].terminal[0]) and bool(shown[-1].timeout[0])
  assert [bool(s.timeout[0]) for s in shown] == [False] * (steps - 2) + [True]


def test_stepping_a_finished_episode_is_harmless():
  env = make_env(EnvConfig(name=LEVEL, max_steps=30))
  state, shown = run_optimally(env, jax.random.split(jax.random.key(3), 4))
  last = shown[-1]
  assert bool(last.terminal.all())
  step = jax.jit(env.step)
  for t in range(5):
    state, now = step(state, random_actions(t, 4))
    np.testing.assert_array_equal(now.frame, last.frame)
    assert not np.asarray(now.reward).any()
    assert not np.asarray(now.events).any()
    assert bool(now.terminal.all()) and not bool(now.timeout.any())


def test_same_key_same_episode(fns):
  reset, step = fns
  keys = jnp.concatenate([jax.random.split(jax.random.key(0), 4)] * 2)
  state, shown = reset(keys)
  for t in range(6):
    np.testing.assert_array_equal(shown.frame[:4], shown.frame[4:])
    half = random_actions(t, 4)['action']
    state, shown = step(state, {'action': jnp.concatenate([half, half])})
  assert len({f.tobytes() for f in np.asarray(shown.frame[:4])}) > 1


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (EnvConfig(name='atari:Pong'), r"'atari:Pong'.*'gymnasium', 'navix'\]"),
    (EnvConfig(name='Navix-DoorKey-5x5-v0'), 'must be adapter:level'),
    (EnvConfig(name='navix:Navix-Maze'), 'Navix-DoorKey-Random-6x6-v0'),
    (
      EnvConfig(name=LEVEL, image_size=(15, 15)),
      r'image_size = \(15, 15\): must be 5 x 5 tiles, .* divides 8 pixels',
    ),
    (EnvConfig(name=LEVEL, image_size=(40, 20)), 'must be 5 x 5 tiles'),
    (EnvConfig(name=LEVEL, max_steps=0), 'EnvConfig.max_steps = 0'),
  ],
)
def test_mistakes_are_named(config, message):
  with pytest.raises(ValueError, match=message):
    make_env(config)


def test_a_missing_engine_names_the_extra(monkeypatch):
  monkeypatch.delitem(sys.modules, 'dreamer4_jax.envs.navix_env')
  monkeypatch.delattr(envs, 'navix_env', raising=False)
  for name in [n for n in sys.modules if n.split('.')[0] == 'navix']:
    monkeypatch.delitem(sys.modules, name)

  class Absent:
    def find_spec(self, name, path=None, target=None):
      if name.split('.')[0] == 'navix':
        raise ModuleNotFoundError("No module named 'navix'", name='navix')

  monkeypatch.setattr(sys, 'meta_path', [Absent(), *sys.meta_path])
  with pytest.raises(ImportError, match=r"pip install 'dreamer4_jax\[navix\]'"):
    make_env(EnvConfig(name=LEVEL))
