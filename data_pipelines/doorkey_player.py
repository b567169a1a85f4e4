"""A scripted player for DoorKey, from perfect to random.

The plan is made once per episode: the steps that are left from every (row,
column, direction), by value iteration over two layers. With the key in hand
the way to the goal may lead through the door, which costs one step more (to
open it). Without the key every step leads to the pose from which picking the
key up makes the *whole* way shortest. Without noise the player therefore
needs the fewest steps possible.

Noise is human-like: a random action tends to be repeated for a few steps.
"""

from __future__ import annotations

from flax import struct
import jax
import jax.numpy as jnp
from navix.states import State
import numpy as np

from dreamer4_jax.envs.navix_env import ACTIONS, achieved
from dreamer4_jax.types import Array

LEFT, RIGHT, FORWARD, PICKUP, TOGGLE = range(len(ACTIONS))
_MOVES = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
"""Row and column step of the directions east, south, west, north."""
_NEVER = 1_000
"""Steps to go from where the aim cannot be reached."""


@struct.dataclass
class Player:
  """State of the player in one episode (add `B` in front for a batch).

  Attributes:
    steps: `[2, rows, cols, 4]` int16 steps to go, without and with the key.
    noise: `[]` float32, share of random actions.
    restless: `[]` bool, the last action was random.
    whim: `[]` int32, the last action drawn; -1 before the first step.
  """

  steps: Array
  noise: Array
  restless: Array
  whim: Array


def start(state: State, noise: Array) -> Player:
  """Plans one episode.

  Args:
    state: navix state of one episode, just after `reset`.
    noise: `[]` share of random actions, in [0, 1].

  Returns:
    The player at the start of the episode.
  """
  shape = state.grid.shape
  rows, cols = (jnp.asarray(x) for x in np.indices(shape))

  def at(position: Array) -> Array:
    return (rows == position[0]) & (cols == position[1])

  entities = state.entities
  walls = jax.vmap(at)(entities['wall'].position).any(0) | (state.grid != 0)
  key = at(entities['key'].position[0])
  door = at(entities['door'].position[0])
  goal = at(entities['goal'].position[0])

  # Steps that entering a cell costs; opening the door is one of them.
  enter = jnp.where(walls, _NEVER, jnp.where(door, 2, 1))
  aim = jnp.where(goal[..., None], 0, jnp.full((*shape, 4), _NEVER))
  with_key = _steps_to_go(aim, enter)
  # Picking up ends the first part, with the rest of the way as its cost.
  in_front = jnp.stack([_ahead(key, d) for d in range(4)], axis=-1)
  aim = jnp.where(in_front & ~walls[..., None], 1 + with_key, _NEVER)
  enter = jnp.where(walls | door | key, _NEVER, 1)
  without_key = _steps_to_go(aim, enter)
  return Player(
    steps=jnp.stack([without_key, with_key]).astype(jnp.int16),
    noise=jnp.asarray(noise, dtype=jnp.float32),
    restless=jnp.asarray(False),
    whim=jnp.asarray(-1, dtype=jnp.int32),
  )


def act(
  player: Player, state: State, key: Array, *, repeat: float = 0.25
) -> tuple[Player, Array]:
  """Chooses an action.

  A random action is followed by the same one with probability `repeat`; how
  often a new one starts makes up for it, so that the expected share of random
  actions is `player.noise` at every step.

  Args:
    player: the player of this episode.
    state: navix state now.
    key: typed key, used up.
    repeat: probability in [0, 1) that a random action is repeated.

  Returns:
    The player after its choice, and the action `[]` int32.
  """
  first, again, draw = jax.random.split(key, 3)
  p = player.noise
  begin = p * (1 - repeat) / (1 - p * repeat)
  # The first step draws with p itself: the chain starts in balance.
  begin = jnp.where(player.whim < 0, p, begin)
  repeated = player.restless & (jax.random.uniform(again) < repeat)
  started = jax.random.uniform(first) < begin
  whim = jax.random.randint(draw, (), 0, len(ACTIONS))
  whim = jnp.where(repeated, player.whim, whim)
  restless = repeated | started
  action = jnp.where(restless, whim, best_action(player, state))
  player = player.replace(restless=restless, whim=whim)
  return player, action.astype(jnp.int32)


def best_action(player: Player, state: State) -> Array:
  """Returns the action `[]` int32 that leaves the fewest steps to go."""
  entities = state.entities
  avatar = state.get_player()
  row, col = avatar.position
  direction = avatar.direction
  has_key, is_open, _ = achieved(state)
  steps = player.steps[has_key.astype(jnp.int32)]
  moves = jnp.asarray(_MOVES)
  front = avatar.position + moves[direction]
  faces_key = (front == entities['key'].position[0]).all()
  faces_door = (front == entities['door'].position[0]).all() & ~is_open

  turns = (direction + jnp.array([3, 1])) % 4
  left, right = steps[row, col, turns[0]], steps[row, col, turns[1]]
  ahead = steps[front[0], front[1], direction]
  # From a pose that faces the key, picking it up costs one step and leaves
  # the way with the key; `steps` was made from the same sum.
  pickup = jnp.where(
    faces_key & ~has_key, player.steps[1, row, col, direction], _NEVER
  )
  ahead = jnp.where(faces_door & has_key, ahead + 1, ahead)
  choice = jnp.argmin(jnp.stack([pickup, ahead, left, right]))
  action = jnp.array([PICKUP, FORWARD, LEFT, RIGHT])[choice]
  return jnp.where((action == FORWARD) & faces_door, TOGGLE, action)


def _ahead(field: Array, direction: int) -> Array:
  """Returns, per cell, the value `[rows, cols]` of the cell in front."""
  # Rolling around the border is harmless: the border is wall.
  return jnp.roll(field, tuple(-_MOVES[direction]), axis=(0, 1))


def _steps_to_go(aim: Array, enter: Array) -> Array:
  """Value iteration to convergence over (row, column, direction).

  Args:
    aim: `[rows, cols, 4]` int32, steps to go if the way ends in this pose.
    enter: `[rows, cols]` int32, steps that entering a cell costs.

  Returns:
    `[rows, cols, 4]` int32 fewest steps to go, at most `_NEVER`.
  """

  def sweep(value: Array) -> Array:
    turned = 1 + jnp.minimum(
      jnp.roll(value, 1, axis=2), jnp.roll(value, -1, axis=2)
    )
    entered = enter[..., None] + value
    moved = [_ahead(entered[..., d], d) for d in range(4)]
    best = jnp.minimum(turned, jnp.stack(moved, axis=-1))
    return jnp.minimum(jnp.minimum(value, best), _NEVER)

  def body(carry: tuple[Array, Array]) -> tuple[Array, Array]:
    value, _ = carry
    new = sweep(value)
    return new, (new != value).any()

  value, _ = jax.lax.while_loop(
    lambda carry: carry[1], body, (aim, jnp.asarray(True))
  )
  # A blocked cell can be left, but nobody gets there.
  return jnp.where((enter >= _NEVER)[..., None], _NEVER, value)
