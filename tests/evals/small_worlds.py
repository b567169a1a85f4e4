"""Five small worlds whose frames show what actions do, each in another way.

`write` makes datasets of them, with actions that stand where they act, or some
rows early or late.
"""

import numpy as np

from data_pipelines import writer
from dreamer4_jax.config import ActionComponent
from dreamer4_jax.data import format as fmt

LENGTH = 48


def held(rng, chance, draw, before):
  """A player that often goes on with what it did."""
  return before if before is not None and rng.random() < chance else draw()


def grid(rng):
  """Turns and steps of an arrow between walls; a quarter of a 4 x 4 tile."""
  steps = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])
  wall = rng.random((6, 6)) < 0.15
  place, side, action = rng.integers(0, 6, 2), 0, None
  frames, actions = [], []
  for _ in range(LENGTH):
    frame = np.full((24, 24, 3), 40, np.uint8)
    frame[wall.repeat(4, 0).repeat(4, 1)] = (120, 120, 120)
    y, x = 4 * place
    frame[y : y + 4, x : x + 4] = (90, 0, 0)
    tip = [(0, slice(4)), (slice(4), 3), (3, slice(4)), (slice(4), 0)][side]
    frame[y : y + 4, x : x + 4][tip] = (255, 60, 60)
    frames.append(frame)
    action = held(rng, 0.4, lambda: int(rng.integers(3)), action)
    actions.append(action)
    if action < 2:
      side = (side + (1 if action else -1)) % 4
    else:
      to = np.clip(place + steps[side], 0, 5)
      place = place if wall[tuple(to)] else to
  return frames, {'move': actions}


def scrolling(rng):
  """A map of tiles that moves under a player who walks to what shines."""
  size, view, tile = 30, 7, 5
  look = np.random.default_rng(5).integers(0, 200, (6, tile, tile, 3))
  world = rng.integers(0, 6, (size, size))
  steps = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])
  place, facing = np.array([15, 15]), 1
  frames, actions = [], []
  for _ in range(LENGTH):
    at = [(place[i] + np.arange(view) - view // 2) % size for i in range(2)]
    near = world[np.ix_(*at)]
    frame = look[near].swapaxes(1, 2).reshape(view * tile, view * tile, 3)
    middle = view // 2 * tile
    frame[middle : middle + tile, middle : middle + tile] = 255
    frame[middle + 2 + steps[facing][0], middle + 2 + steps[facing][1]] = 0
    frames.append(frame.astype(np.uint8))
    shining = np.argwhere(near == 0) - view // 2
    shining = shining[abs(shining).sum(axis=1) > 0]
    if len(shining) and rng.random() < 0.6:
      y, x = shining[abs(shining).sum(axis=1).argmin()]
      action = 1 + int(y > 0) if abs(y) >= abs(x) else 3 + int(x > 0)
    else:
      action = int(rng.integers(5))
    actions.append(action)
    to = (place + steps[action]) % size
    facing = action or facing
    if world[tuple(to)] != 1:
      place = to
      world[tuple(to)] = 2 if world[tuple(to)] == 0 else world[tuple(to)]
  return frames, {'move': actions}


def paddle(rng):
  """A paddle with inertia, actions that stick, and a ball that distracts."""
  y, speed, ball, going = 16.0, 0.0, rng.uniform(4, 24, 2), np.array([1.3, 0.9])
  action, done = None, 0
  frames, actions = [], []
  for _ in range(LENGTH):
    frame = np.full((32, 32, 3), (100, 50, 20), np.uint8)
    top = int(np.clip(round(y), 0, 25))
    frame[top : top + 7, 28:30] = (90, 190, 90)
    by, bx = ball.astype(int)
    frame[by : by + 2, bx : bx + 2] = 230
    frames.append(frame)
    action = held(rng, 0.3, lambda: int(rng.integers(3)), action)
    actions.append(action)
    done = done if rng.random() < 0.25 else action
    speed = 0.5 * speed + 1.5 * (done - 1)
    y = float(np.clip(y + speed, 0, 25))
    going = np.where((ball + going < 0) | (ball + going > 26), -going, going)
    ball = np.clip(ball + going, 0, 29)
  return frames, {'stick': actions}


def pendulum(rng):
  """A grey rod that a noisy controller turns by its torque."""
  angle, speed = rng.uniform(-1, 1), 0.0
  rows, columns = np.mgrid[:32, :32] - 15.5
  frames, actions = [], []
  for _ in range(LENGTH):
    along = rows * np.cos(angle) + columns * np.sin(angle)
    away = abs(rows * np.sin(angle) - columns * np.cos(angle))
    rod = np.clip(2.5 - away, 0, 1) * (along > 0) * (along < 14)
    frames.append((255 * rod).astype(np.uint8)[..., None])
    wish = -0.4 * speed - 0.3 * np.sin(angle) + rng.normal(0, 0.5)
    torque = np.clip(wish, -1, 1)
    actions.append([torque])
    speed += 0.3 * torque - 0.08 * np.sin(angle)
    angle += speed
  return frames, {'torque': np.array(actions, np.float32)}


def first_person(rng):
  """A picture that pans with the camera; keys and camera are held for long."""
  big = np.random.default_rng(7).normal(size=(96, 160, 3))
  wave = np.fft.fftfreq(96)[:, None] ** 2 + np.fft.fftfreq(160) ** 2
  smooth = (wave + 2e-4)[..., None] ** -0.6
  big = np.fft.ifft2(smooth * np.fft.fft2(big, axes=(0, 1)), axes=(0, 1)).real
  big = np.clip(128 + 50 * big / big.std(), 0, 255).astype(np.uint8)
  y, x = rng.integers(0, 96), rng.integers(0, 160)
  camera, keys, hit, bob = None, np.zeros(2, int), 0, 0
  frames, actions, pressed = [], [], []
  for _ in range(LENGTH):
    rows, columns = np.arange(36) + y - bob, np.arange(64) + x
    frame = big[np.ix_(rows % 96, columns % 160)].copy()
    frame[24 + 3 * hit :, 44 - 5 * hit : 56 - 5 * hit] = (200, 150, 120)
    frames.append(frame)
    camera = held(rng, 0.8, lambda: int(rng.choice([4, *range(9)])), camera)
    keys = np.where(rng.random(2) < 0.15, 1 - keys, keys)
    actions.append(camera)
    pressed.append(keys.copy())
    y, x = y + 3 * (camera // 3 - 1), x + 3 * (camera % 3 - 1)
    hit = (hit + 1) % 3 if keys[0] else 0
    bob = min(bob + 2, 4) if keys[1] else max(bob - 2, 0)
  return frames, {'camera': actions, 'keys': pressed}


WORLDS = {
  'grid': (grid, (('move', 'categorical', 3),)),
  'scrolling': (scrolling, (('move', 'categorical', 5),)),
  'paddle': (paddle, (('stick', 'categorical', 3),)),
  'pendulum': (pendulum, (('torque', 'continuous', 1),)),
  'first_person': (
    first_person,
    (('camera', 'categorical', 9), ('keys', 'binary', 2)),
  ),
}


def shifted(values, by):
  """Actions that stand `by` rows late; the ends are repeated."""
  at = np.clip(np.arange(len(values)) - by, 0, len(values) - 1)
  return np.asarray(values)[at]


def episodes(name, count, by=0, seed=0):
  """Yields episodes of a world."""
  play, _ = WORLDS[name]
  for number in range(count):
    frames, actions = play(np.random.default_rng((seed, number)))
    known = np.arange(LENGTH) < LENGTH - 1
    yield writer.Episode(
      steps={
        'observation': np.stack(frames),
        'action': {k: shifted(v, by) for k, v in actions.items()},
        'action_known': known,
        'reward': np.where(known, number % 2, 0.0).astype(np.float32),
        'events': np.zeros((LENGTH, 1), bool),
      },
      terminal=False,
    )


def write(path, name, count=60, by=0, held_out=4):
  """Writes a dataset of a world, its actions `by` rows late."""
  space = tuple(
    ActionComponent(name=n, kind=kind, size=size)
    for n, kind, size in WORLDS[name][1]
  )
  shape = next(episodes(name, 1)).steps['observation'].shape[1:]
  return writer.write_dataset(
    path,
    description=fmt.Description(
      actions=space, tasks=fmt.REWARD_ONLY, frame_shape=shape
    ),
    splits={
      'train': episodes(name, count, by),
      'test': episodes(name, held_out, by, seed=1),
    },
  )
