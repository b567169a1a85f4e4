"""The tiny world as a game: an engine with a clock that tests turn."""

import functools

import jax
import numpy as np

from dreamer4_jax.play import LoadedDream
from dreamer4_jax.play.engine import Engine
from dreamer4_jax.play.game import Game
from dreamer4_jax.play.programs import Programs
from dreamer4_jax.play.session import Session
from tests.models.tiny_world import world_and_params
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


class Table:
  """Sessions and their engine, with a clock that stands still."""

  def __init__(self, rows=2, idle=False, heads=True, **rules):
    self.now, self.sessions, self.shown = 100.0, [], {}
    self.engine = Engine(
      programs(rows, heads), lambda: self.sessions, lambda: self.now
    )
    self.rules = tiny_game(idle, heads).rules(**rules)

  def sit(self, seed=7):
    """A new session, which has begun."""
    name = f's{len(self.shown)}'
    session = Session(name, self.rules, seed, self.now)
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
