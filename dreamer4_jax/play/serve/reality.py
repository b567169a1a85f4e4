"""The real game beside the dream: the same actions, from the same start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import require
from dreamer4_jax.envs import Environment
from dreamer4_jax.models import World, no_action
from dreamer4_jax.models.actions import ActionSpace
from dreamer4_jax.types import Batch, PyTree

_TRIES = 20
_WANDER = 12


class Real(NamedTuple):
  """A game, and what a dream needs to go on from it.

  Attributes:
    state: of the environment, one episode.
    frames: `[T, H, W, C]` uint8, the latest last.
    actions: components `[T, ...]`, chosen at these frames; that of the last is
      not known yet.
    over: whether the episode has ended.
  """

  state: PyTree
  frames: np.ndarray
  actions: Mapping[str, np.ndarray]
  over: bool

  @property
  def frame(self) -> np.ndarray:
    """`[H, W, C]` uint8."""
    return self.frames[-1]


class Twin(NamedTuple):
  """A dream and the game beside it; no dream where only the game is played."""

  dream: PyTree | None
  real: Real


class Reality:
  """Games to play beside a dream, or to leave for one."""

  def __init__(self, env: Environment, world: World, frames: int):
    """Compiles the game.

    Args:
      env: with frames and actions of the world.
      world: that dreams of it.
      frames: T that a dream begins with.

    Raises:
      ValueError: the environment does not fit, or cannot be returned to.
    """
    config, spec = world.config, env.spec
    require(
      not spec.on_host,
      '--real',
      config.env.name,
      'its simulator cannot go back in time; leave --real out',
    )
    shape = config.tokenizer.frame_shape
    require(
      spec.frame_shape == shape and not config.vectors,
      '--real',
      config.env.name,
      f'shows frames of {spec.frame_shape}, the run has {shape}, and no '
      'vectors are needed; leave --real out',
    )
    sizes = lambda parts: [(p.name, p.kind, p.size) for p in parts]
    require(
      sizes(spec.actions) == sizes(config.actions),
      '--real',
      config.env.name,
      'has other actions than the run; leave --real out',
    )
    self._space, self._length = config.actions, frames
    self._reset = jax.jit(env.reset)
    self._step = jax.jit(env.step)
    self.begin(0)

  def begin(self, seed: int) -> Real:
    """Plays a new game at random for a while; the same for the same seed.

    Raises:
      RuntimeError: every game was over before a dream could begin.
    """
    rng = np.random.default_rng(seed)
    for attempt in range(_TRIES):
      key = jax.random.fold_in(jax.random.key(np.uint32(seed)), attempt)
      state, shown = self._reset(key[None])
      first = np.asarray(shown.frame)
      none = no_action(self._space, (self._length,))
      real = Real(
        state=state,
        frames=np.repeat(first, self._length, axis=0),
        actions={name: np.array(x) for name, x in none.items()},
        over=False,
      )
      for _ in range(self._length - 1 + int(rng.integers(_WANDER))):
        real = self.step(real, _random(self._space, rng))
      if not real.over:
        return real
    raise RuntimeError(
      f'--real: {_TRIES} games ended before a dream could begin'
    )

  def step(self, real: Real, action: Mapping[str, np.ndarray]) -> Real:
    """Acts in the game, components `[...]`."""
    own = {name: np.asarray(x)[None] for name, x in action.items()}
    state, shown = self._step(real.state, own)
    past = {
      name: np.concatenate([x[1:-1], own[name], np.zeros_like(x[:1])])
      for name, x in real.actions.items()
    }
    frame = np.asarray(shown.frame)
    return Real(
      state=state,
      frames=np.concatenate([real.frames[1:], frame]),
      actions=past,
      over=bool(shown.terminal[0] | shown.timeout[0]),
    )

  def clip(self, real: Real, task: int) -> Batch:
    """Returns the latest frames for a dream to go on from, `[1, T, ...]`."""
    known = np.arange(self._length) < self._length - 1
    return Batch.of(
      jnp.asarray(real.frames)[None],
      {name: jnp.asarray(x)[None] for name, x in real.actions.items()},
      action_mask=jnp.asarray(known)[None],
      task=jnp.full((1, self._length), task, jnp.int32),
    )


def psnr(dreamed: np.ndarray, real: np.ndarray) -> float:
  """Returns the PSNR of two frames `[H, W, C]` uint8, in dB, 99 at most."""
  error = np.mean((dreamed.astype(np.float64) - real) ** 2) / 255**2
  return float(min(99.0, -10 * np.log10(max(error, 1e-10))))


def _random(
  space: ActionSpace, rng: np.random.Generator
) -> dict[str, np.ndarray]:
  drawn = {}
  for part in space:
    if part.kind == 'categorical':
      drawn[part.name] = np.int32(rng.integers(part.size))
    elif part.kind == 'binary':
      drawn[part.name] = rng.integers(0, 2, part.size).astype(np.int32)
    else:
      x = rng.uniform(part.low, part.high, part.size)
      drawn[part.name] = x.astype(np.float32)
  return drawn
