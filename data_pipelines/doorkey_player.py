"""Players for DoorKey: a scripted one, from perfect to random; an aimless one.

The scripted player's plan is made once per episode: the steps that are left
from every (row, column, direction), by value iteration over two layers. With
the key in hand the way to the goal may lead through the door, which costs one
extra step (to open it). Without the key every step leads to the pose from which
picking the key up makes the *whole* way shortest. Without noise it therefore
needs the fewest steps possible.

The aimless player has no plan and heads for nothing: it walks on or turns, and
uses the key and the door when it faces them.

Noise is human-like: a random action tends to be repeated for a few steps.
"""

from __future__ import annotations

from typing import TypeVar

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
"""Steps to go if the aim cannot be reached."""
_WALK = 0.6
"""Chance that the aimless player walks on where nothing is in its way."""


@struct.dataclass
class Noise:
  """Random actions in one episode (add `B` in front for a batch).

  It is all that the aimless player remembers.

  Attributes:
    noise: `[]` float32, share of random actions.
    restless: `[]` bool, the last action was random.
    whim: `[]` int32, the last action drawn; -1 before the first step.
  """

  noise: Array
  restless: Array
  whim: Array


@struct.dataclass
class Player(Noise):
  """State of the scripted player in one episode (`B` in front for a batch).

  Attributes:
    steps: `[2, rows, cols, 4]` int16 steps to go, without and with the key.
  """

  steps: Array


_P = TypeVar('_P', bound=Noise)


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
  calm = start_aimless(noise)
  return Player(
    steps=jnp.stack([without_key, with_key]).astype(jnp.int16),
    noise=calm.noise,
    restless=calm.restless,
    whim=calm.whim,
  )


def start_aimless(noise: Array) -> Noise:
  """Returns the aimless player at the start of an episode.

  Args:
    noise: `[]` share of random actions, in [0, 1].
  """
  return Noise(
    noise=jnp.asarray(noise, dtype=jnp.float32),
    restless=jnp.asarray(False),
    whim=jnp.asarray(-1, dtype=jnp.int32),
  )


def act(
  player: Player, state: State, key: Array, *, repeat: float = 0.25
) -> tuple[Player, Array]:
  """Chooses an action by the plan, or a random one.

  Args:
    player: the player of this episode.
    state: navix state now.
    key: typed key, used up.
    repeat: probability in [0, 1) that a random action is repeated.

  Returns:
    The player after its choice, and the action `[]` int32.
  """
  return _disturb(player, best_action(player, state), key, repeat)


def aimless(
  player: Noise, state: State, key: Array, *, repeat: float = 0.25
) -> tuple[Noise, Array]:
  """Chooses an action without a plan, or a random one.

  Facing the key it picks it up; facing the closed door, with the key, it opens
  it. Where nothing is in its way it mostly walks on; otherwise it turns to
  either side.

  Args:
    player: the player of this episode.
    state: navix state now.
    key: typed key, used up.
    repeat: probability in [0, 1) that a random action is repeated.

  Returns:
    The player after its choice, and the action `[]` int32.
  """
  noise, walk, side = jax.random.split(key, 3)
  has_key, is_open, _ = achieved(state)
  front, faces_key, faces_door = _in_front(state, is_open)
  wall = (state.entities['wall'].position == front[None]).all(-1).any()
  wall |= state.grid[front[0], front[1]] != 0
  on = ~(wall | faces_key | faces_door) & (jax.random.uniform(walk) < _WALK)
  turn = jnp.where(jax.random.bernoulli(side), LEFT, RIGHT)
  action = jnp.where(on, FORWARD, turn)
  action = jnp.where(faces_key, PICKUP, action)
  action = jnp.where(faces_door & has_key, TOGGLE, action)
  return _disturb(player, action, noise, repeat)


def _in_front(state: State, is_open: Array) -> tuple[Array, Array, Array]:
  """Returns the cell ahead `[2]`, and whether key or closed door is there."""
  avatar = state.get_player()
  front = avatar.position + jnp.asarray(_MOVES)[avatar.direction]
  # A key that was taken lies outside the grid.
  faces_key = (front == state.entities['key'].position[0]).all()
  faces_door = (front == state.entities['door'].position[0]).all() & ~is_open
  return front, faces_key, faces_door


def _disturb(
  player: _P, action: Array, key: Array, repeat: float
) -> tuple[_P, Array]:
  """Replaces the intended action with a random one, now and then.

  A random action is followed by the same one with probability `repeat`; new
  ones start less often to make up for it, so that the expected share of random
  actions is `player.noise` at every step.
  """
  first, again, draw = jax.random.split(key, 3)
  p = player.noise
  begin = p * (1 - repeat) / (1 - p * repeat)
  # The first step draws with p itself: the chain starts in equilibrium.
  begin = jnp.where(player.whim < 0, p, begin)
  repeated = player.restless & (jax.random.uniform(again) < repeat)
  started = jax.random.uniform(first) < begin
  whim = jax.random.randint(draw, (), 0, len(ACTIONS))
  whim = jnp.where(repeated, player.whim, whim)
  restless = repeated | started
  action = jnp.where(restless, whim, action)
  player = player.replace(restless=restless, whim=whim)
  return player, action.astype(jnp.int32)


def best_action(player: Player, state: State) -> Array:
  """Returns the action `[]` int32 that leaves the fewest steps to go."""
  avatar = state.get_player()
  row, col = avatar.position
  direction = avatar.direction
  has_key, is_open, _ = achieved(state)
  steps = player.steps[has_key.astype(jnp.int32)]
  front, faces_key, faces_door = _in_front(state, is_open)

  turns = (direction + jnp.array([3, 1])) % 4
  left, right = steps[row, col, turns[0]], steps[row, col, turns[1]]
  ahead = steps[front[0], front[1], direction]
  # From a pose that faces the key, picking it up costs one step and leaves
  # the way with the key; `steps` was computed from the same sum.
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
