"""The scripted player against a breadth-first search; the aimless one."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('navix')

from data_pipelines import collect, doorkey_player, players
from data_pipelines.stage import Stage
from dreamer4_jax.config import EnvConfig
from dreamer4_jax.envs import make_env

MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))


def fewest_steps(walls, start, direction, key, door, goal):
  """Breadth-first search over the whole game, action by action."""
  begin = (*start, direction, False, False)
  queue, seen = collections.deque([(begin, 0)]), {begin}
  while queue:
    (row, col, facing, has_key, opened), steps = queue.popleft()
    if (row, col) == goal:
      return steps
    ahead = (row + MOVES[facing][0], col + MOVES[facing][1])
    following = [
      (row, col, (facing + 1) % 4, has_key, opened),
      (row, col, (facing - 1) % 4, has_key, opened),
    ]
    blocked = (
      ahead in walls
      or (ahead == key and not has_key)
      or (ahead == door and not opened)
    )
    if not blocked:
      following.append((*ahead, facing, has_key, opened))
    if ahead == key and not has_key:
      following.append((row, col, facing, True, opened))
    if ahead == door and has_key:
      following.append((row, col, facing, has_key, True))
    for state in following:
      if state not in seen:
        seen.add(state)
        queue.append((state, steps + 1))
  raise AssertionError('no way')


def layout(state, i):
  """Reads episode i's level out of navix's state."""
  entities = jax.tree.map(lambda x: np.asarray(x[i]), state.entities)
  walls = {tuple(p) for p in np.argwhere(np.asarray(state.grid[i]) != 0)}
  walls |= {tuple(p) for p in entities['wall'].position}
  player = entities['player']
  return (
    {tuple(int(x) for x in p) for p in walls},
    tuple(player.position[0].tolist()),
    int(player.direction[0]),
    *(
      tuple(entities[name].position[0].tolist())
      for name in ('key', 'door', 'goal')
    ),
  )


def play(level, keys, *, noise, max_steps, policy='scripted'):
  """Plays an episode for each key to the time limit; `Played [S, B, ...]`."""
  name = f'navix:{level}'
  env = make_env(EnvConfig(name=name, max_steps=max_steps))
  config = collect.CollectConfig(
    out='unused', env=name, policy=policy, noise=noise, block=max_steps
  )
  stage = Stage(config, env, len(keys))
  lane = stage.begin(keys)
  start = lane.state.timestep.state
  # A copy: the lane is donated.
  start = jax.tree.map(jnp.copy, start)
  _, played = stage.play(None, lane)
  return start, jax.device_get(played)


@pytest.mark.parametrize(
  'level', ['Navix-DoorKey-Random-6x6-v0', 'Navix-DoorKey-Random-8x8-v0']
)
def test_without_noise_it_needs_the_fewest_steps(level):
  keys = jax.random.split(jax.random.key(5), 50)
  state, played = play(level, keys, noise=(0.0,), max_steps=80)
  for i in range(50):
    assert played.step.terminal[-1, i]
    steps = int(np.argmax(played.step.terminal[:, i])) + 1
    assert steps == fewest_steps(*layout(state, i))
    assert played.step.events[:steps, i].sum(0).tolist() == [1, 1, 1]


@pytest.mark.parametrize(('noise', 'repeat'), [(0.4, 0.5), (0.2, 0.0)])
def test_noise_is_the_share_of_random_actions(noise, repeat):
  env = make_env(EnvConfig(name='navix:Navix-DoorKey-Random-5x5-v0'))
  state, _ = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 2000))
  state = state.timestep.state
  player = jax.jit(jax.vmap(doorkey_player.start))(state, jnp.full(2000, noise))
  act = jax.jit(jax.vmap(functools.partial(doorkey_player.act, repeat=repeat)))
  restless, whims = [], []
  for t in range(6):
    keys = jax.random.split(jax.random.key(10 + t), 2000)
    player, _ = act(player, state, keys)
    restless.append(np.asarray(player.restless))
    whims.append(np.asarray(player.whim))
  # 2,000 players: five standard deviations of the share are 0.055.
  for r in restless:
    assert abs(r.mean() - noise) < 0.055
  again = [
    (a[r & q] == b[r & q]).mean()
    for a, b, r, q in zip(
      whims[:-1], whims[1:], restless[:-1], restless[1:], strict=True
    )
  ]
  # Given two random actions in a row: repeated, or drawn equal (1 in 5).
  begin = noise * (1 - repeat) / (1 - noise * repeat)
  stay = repeat / (repeat + (1 - repeat) * begin)
  assert abs(np.mean(again) - (stay + (1 - stay) / 5)) < 0.06


def test_pure_noise_uses_every_action_alike():
  keys = jax.random.split(jax.random.key(0), 256)
  level = 'Navix-DoorKey-Random-5x5-v0'
  _, played = play(level, keys, noise=(1.0,), max_steps=60)
  counts = np.bincount(played.action['action'].ravel(), minlength=5)
  assert abs(counts / (256 * 60) - 1 / 5).max() < 0.02


@pytest.fixture(scope='module')
def wandering():
  """Poses and actions of 40 aimless episodes without noise, 30 steps each."""
  env = make_env(
    EnvConfig(name='navix:Navix-DoorKey-Random-5x5-v0', max_steps=60)
  )
  state, _ = jax.jit(env.reset)(jax.random.split(jax.random.key(2), 40))
  player = jax.vmap(doorkey_player.start_aimless)(jnp.zeros(40))
  step = jax.jit(env.step)
  act = jax.jit(jax.vmap(doorkey_player.aimless))
  found = []
  for t in range(30):
    keys = jax.random.split(jax.random.key(10 + t), 40)
    player, action = act(player, state.timestep.state, keys)
    before = jax.device_get(state.timestep.state)
    opened = np.asarray(before.entities['door'].open[:, 0])
    going = ~np.asarray(state.terminal)
    for i in np.flatnonzero(going):
      found.append((*layout(before, i), bool(opened[i]), int(action[i])))
    state, _ = step(state, {'action': action})
  return found


def test_the_aimless_player_does_what_the_cell_ahead_asks_for(wandering):
  allowed = {
    'wall': {doorkey_player.LEFT, doorkey_player.RIGHT},
    'locked': {doorkey_player.LEFT, doorkey_player.RIGHT},
    'free': {
      doorkey_player.LEFT, doorkey_player.RIGHT, doorkey_player.FORWARD,
    },
    'key': {doorkey_player.PICKUP},
    'door': {doorkey_player.TOGGLE},
  }  # fmt: skip
  done = collections.defaultdict(list)
  for walls, at, direction, key, door, _, opened, action in wandering:
    ahead = (at[0] + MOVES[direction][0], at[1] + MOVES[direction][1])
    has_key = min(key) < 0
    kind = 'free'
    if ahead in walls:
      kind = 'wall'
    elif ahead == key:
      kind = 'key'
    elif ahead == door and not opened:
      kind = 'door' if has_key else 'locked'
    done[kind].append(action)
  assert {kind: set(actions) for kind, actions in done.items()} == allowed
  free = np.bincount(done['free'], minlength=3) / len(done['free'])
  # Some 500 times: five standard errors are 0.11.
  np.testing.assert_allclose(free[:3], [0.2, 0.2, 0.6], atol=0.11)
  turns = np.mean(np.array(done['wall']) == doorkey_player.LEFT)
  assert abs(turns - 0.5) < 0.11


def test_aimless_play_finds_the_key_and_seldom_the_goal():
  keys = jax.random.split(jax.random.key(3), 128)
  level = 'Navix-DoorKey-Random-5x5-v0'
  wander = functools.partial(
    play, level, noise=None, max_steps=60, policy='aimless'
  )
  _, played = wander(keys)
  key, door, goal = played.step.events.max(0).mean(0)
  # Standard errors are 0.04; of thousands of episodes: 0.98, 0.68, 0.31.
  assert key > 0.9 and 0.5 < door < 0.85 and 0.15 < goal < 0.5
  # An episode is a function of its key, wherever it is played.
  _, again = wander(keys[::-1])
  np.testing.assert_array_equal(
    again.action['action'][:, ::-1], played.action['action']
  )


def test_the_aimless_player_is_for_doorkey_and_has_noise_of_its_own():
  config = collect.CollectConfig(out='unused', policy='aimless')
  assert config.levels == (0.2, 0.4, 0.6, 0.8)
  name = 'craftax:Craftax-Classic-Pixels-v1'
  message = f"'aimless': there is no aimless player for '{name}'; use random"
  with pytest.raises(ValueError, match=message):
    players.check_player('aimless', None, name, '')
