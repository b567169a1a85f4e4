"""The tiny world as a game: an engine with a clock that tests turn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.envs import EnvSpec, Palette, Tiles
from dreamer4_jax.play import LoadedDream
from dreamer4_jax.play.serve.challenges import Challenge, Challenges
from dreamer4_jax.play.serve.engine import Engine
from dreamer4_jax.play.serve.game import Game
from dreamer4_jax.play.serve.programs import Programs
from dreamer4_jax.play.serve.reality import Reality
from dreamer4_jax.play.serve.session import Session
from dreamer4_jax.play.serve.timeline import Ask
from dreamer4_jax.types import EnvStep
from tests.models.tiny_world import ACTIONS, world_and_params
from tests.play.runs import tiny_contexts, tiny_dream

LABELS = {'move': ['left', 'right', 'jump'], 'keys': ['grab', 'duck']}
IDLE = LABELS | {'move': ['noop', 'left', 'right']}


@functools.cache
def tiny_game(idle=False, heads=True):
  """A game of the tiny world; with `idle`, one that need not wait."""
  _, params = world_and_params()
  dream = tiny_dream(horizon=1 << 30, termination='never', heads=heads)
  loaded = LoadedDream(dream, params, tiny_contexts(4, 5))
  return Game(loaded, 'tiny', IDLE if idle else LABELS, 10.0)


@functools.cache
def programs(rows, heads=True, steps=(2,)):
  """Compiled frames of the tiny world."""
  game = tiny_game(heads=heads)
  made = Programs(*game.loaded, rows)
  for k in steps:
    made.compile(k)
    if rows > 1:
      made.compile(k, rows)
  return made


class TinyGame:
  """A game of noise: each frame follows from the one before and the action."""

  spec = EnvSpec(
    height=20, width=12, channels=3, actions=ACTIONS, tasks=('key', 'door'),
    max_steps=50,
  )  # fmt: skip

  def reset(self, keys):
    bits = jax.vmap(lambda k: jax.random.bits(k, (20, 12, 3), jnp.uint8))
    return self._show(bits(keys), jnp.zeros(len(keys), jnp.int32))

  def step(self, state, actions):
    frame, count = state
    moved = frame + jnp.uint8(7) * actions['move'].astype(jnp.uint8).reshape(
      -1, 1, 1, 1
    )
    moved = moved + jnp.round(actions['look'][:, :1]).astype(jnp.uint8).reshape(
      -1, 1, 1, 1
    )
    return self._show(jnp.roll(moved, 1, axis=2), count + 1)

  def _show(self, frame, count):
    no = jnp.zeros(len(count), bool)
    shown = EnvStep(
      frame=frame, reward=jnp.zeros(len(count)), terminal=no,
      events=jnp.zeros((len(count), 2)), timeout=count >= 50,
    )  # fmt: skip
    return (frame, count), shown


@functools.cache
def tiny_reality():
  """The game of noise, for dreams that begin with three frames."""
  return Reality(TinyGame(), world_and_params()[0], 3)


class Table:
  """Sessions and their engine, with a clock that stands still."""

  def __init__(
    self, rows=2, idle=False, heads=True, real=False, game=None, **rules
  ):
    self.now, self.sessions, self.shown = 100.0, [], {}
    self.engine = Engine(
      programs(rows, heads), lambda: self.sessions, lambda: self.now,
      tiny_reality() if real else None, game and game.challenges,
    )  # fmt: skip
    self.rules = (game or tiny_game(idle, heads)).rules(real=real, **rules)

  def sit(self, seed=7):
    """A new session, which has begun."""
    name = f's{len(self.shown)}'
    session = Session(name, self.rules, seed)
    self.shown[name] = []
    session.listener = lambda kind, what: self.shown[name].append((kind, what))
    self.sessions.append(session)
    self.tick()
    return session

  def tick(self, seconds=0.0):
    """Lets time pass, and computes what is due."""
    self.now += seconds
    return self.engine.tick()

  def act(self, session, *controls, seconds=0.5):
    """Taps controls for a frame; returns the picture."""
    for control in controls:
      session.press(control)
    before = session.position
    self.tick(seconds)
    for _ in range(40):  # A state that is behind catches up first.
      if session.position != before:
        break
      self.tick()
    for control in controls:
      session.hands.release(control)
    return session.timeline[session.position].picture


def random_controls(rng):
  """What a player may hold in a frame."""
  bits = [f'keys:{i}' for i in range(2) if rng.random() < 0.3]
  return f'move:{rng.integers(3)}', *bits, f'look:{rng.integers(4)}'


def leaves_equal(a, b):
  """Whether two states are the same to the last bit."""
  same = jax.tree.map(lambda x, y: np.array_equal(x, y), a, b)
  return all(jax.tree.leaves(same))


@functools.cache
def challenged_game(stages=2):
  """The tiny game, with a challenge: a tile that changes, and changes back.

  The tile is its own before anybody acts, whatever the seed.
  """
  game = tiny_game()
  start = 3
  state, shown = programs(1).begin(start, 7)
  before = shown.frame[0]
  zero = {p.part.name: np.zeros((), np.int32) for p in game.rules().panels}
  zero['look'] = np.zeros(2, np.float32)
  zero['keys'] = np.zeros(2, np.int32)
  ask = Ask(zero, dict.fromkeys(zero, True), 2, 7, 0)
  ((_, shown),) = programs(1).step(2, 1, [(state, ask, 7, 1)])
  pictures = np.stack([before[:4, :4], shown.frame[0][:4, :4]])
  tiles = Tiles(side=4, pictures=pictures, names=('old', 'new'))
  known = [{'0,0': 'new'}, {'0,0': 'o*', 'any': 'old|new'}]
  own = Challenge(
    name='Change the corner', stages=tuple(known[:stages]), start=start,
    keys=('left', 'right', 'jump+grab', 'left*40'), seed=7,
  )  # fmt: skip
  found = Challenges((own,), Palette(tiles, pictures))
  return dataclasses.replace(game, challenges=found)
