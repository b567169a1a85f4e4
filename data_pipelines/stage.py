"""An environment and a player, run on many episodes at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Literal

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import players
from dreamer4_jax.config import require
from dreamer4_jax.envs import Environment
from dreamer4_jax.types import Actions, Array, EnvStep, PyTree

DEFAULT_NOISE = {
  'scripted': (0.1, 0.3, 0.6, 1.0),
  'aimless': (0.2, 0.4, 0.6, 0.8),
}
DEFAULT_REPEAT = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig:
  """What to record, and how."""

  out: str
  """Directory of the dataset to write."""
  env: str = 'navix:Navix-DoorKey-Random-6x6-v0'
  """Adapter and level."""
  policy: Literal['scripted', 'aimless', 'random', 'checkpoint'] = 'scripted'
  """Who plays; the aimless player is for DoorKey."""
  run: str = ''
  """Run directory of a trained agent, for the policy checkpoint."""
  episodes: int = 4000
  """Episodes of the split 'train'."""
  test_episodes: int = 200
  """Episodes of the split 'test'."""
  noise: tuple[float, ...] | None = None
  """Shares of random actions of a scripted or aimless player; each episode
  draws one. None means 0.1, 0.3, 0.6 and 1.0 for the scripted player, 0.2,
  0.4, 0.6 and 0.8 for the aimless one. Other players take none."""
  repeat: float | None = None
  """Probability that a random action is repeated; none means 0.25. A trained
  player takes none."""
  restless: float = 0.0
  """Chance per step that the scripted player of Craftax starts to wander; other
  players do not."""
  idle: float = 0.0
  """Chance per step that a player of Craftax starts to idle; others do not."""
  max_steps: int = 60
  """Time limit of an episode, in steps."""
  image_size: tuple[int, int] | None = None
  """Height and width of frames, for simulators and grid worlds."""
  seed: int = 0
  """Seed of levels, noise and actions."""
  parallel: int = 128
  """Environments that run at once."""
  workers: int = 0
  """Processes that share the environments; 0 uses one per core, 1 plays in
  this process, as is always done on accelerators."""
  block: int = 0
  """Steps between two checks for finished episodes; 0 takes the time limit,
  but at most 64."""
  chunk_length: int = 8
  """Frames in a record."""
  vectors: bool = True
  """Keep the vectors that the environment shows beside its frames, if any."""
  overwrite: bool = False
  """Replace a finished dataset."""

  def __post_init__(self):
    for name in ('episodes', 'test_episodes', 'parallel'):
      value = getattr(self, name)
      require(value >= 1, f'CollectConfig.{name}', value, 'must be at least 1')
    for name in ('workers', 'block'):
      value = getattr(self, name)
      require(value >= 0, f'CollectConfig.{name}', value, 'must be at least 0')
    require(
      self.noise is None
      or (len(self.noise) > 0 and all(0 <= p <= 1 for p in self.noise)),
      'CollectConfig.noise',
      self.noise,
      'needs at least one share, each in [0, 1]',
    )
    for name in ('restless', 'idle'):
      value = getattr(self, name)
      require(
        0 <= value <= 1, f'CollectConfig.{name}', value, 'must lie in [0, 1]'
      )
    require(
      self.repeat is None or 0 <= self.repeat < 1,
      'CollectConfig.repeat',
      self.repeat,
      'must lie in [0, 1)',
    )
    require(
      self.policy != 'checkpoint' or bool(self.run),
      'CollectConfig.run',
      self.run,
      'must name the run directory of the agent',
    )
    craftax = self.policy == 'scripted' and self.env.startswith('craftax:')
    for name, given, used in (
      ('run', bool(self.run), self.policy == 'checkpoint'),
      ('noise', self.noise is not None, self.policy in DEFAULT_NOISE),
      ('repeat', self.repeat is not None, self.policy != 'checkpoint'),
      ('restless', self.restless > 0, craftax),
      ('idle', self.idle > 0, craftax),
    ):
      require(
        used or not given,
        f'CollectConfig.{name}',
        getattr(self, name),
        f'the {self.policy} player of {self.env} has no use for it; leave it '
        'out',
      )

  @property
  def levels(self) -> tuple[float, ...]:
    """Shares of random actions, of which each episode draws one.

    Empty for players that draw none.
    """
    default = DEFAULT_NOISE.get(self.policy, ())
    return default if self.noise is None else self.noise

  @property
  def repeats(self) -> float:
    """Probability that a random action is repeated."""
    return DEFAULT_REPEAT if self.repeat is None else self.repeat


@struct.dataclass
class Lane:
  """B episodes that are being played.

  Attributes:
    state: the environment's.
    step: what it shows, `[B, ...]`.
    memory: the player's.
    keys: `[B]` typed keys of the episodes.
    t: `[B]` int32 steps so far.
  """

  state: PyTree
  step: EnvStep
  memory: PyTree
  keys: Array
  t: Array


@struct.dataclass
class Played:
  """What happened in a block, `[S, B, ...]`: steps, and actions before them."""

  step: EnvStep
  action: Actions


class Stage:
  """An environment, a player, and how they are run on B episodes."""

  def __init__(self, config: CollectConfig, env: Environment, batch: int):
    """Makes the player; programs are compiled when they are first run."""
    self.env, self.batch = env, batch
    self.config = config
    self.player = players.make_player(
      config.policy,
      env,
      config.env,
      repeat=config.repeats,
      run=config.run,
      batch=batch,
    )
    self.block = config.block or min(env.spec.max_steps, 64)
    if env.spec.on_host:
      self.begin, self.resume = self._begin, self._host_resume
      self.play = self._host_play
      self._act = jax.jit(self._decide)
    else:
      self.begin, self.resume = jax.jit(self._begin), jax.jit(self._resume)
      self.play = jax.jit(self._play, donate_argnums=1)

  @functools.cached_property
  def keys(self) -> Callable[[Array, Sequence[int]], Array]:
    """Maps a split's key and the numbers of episodes to their keys, `[B]`."""
    each = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    jitted = jax.jit(each)
    return lambda key, numbers: jitted(key, jnp.asarray(numbers, jnp.uint32))

  @functools.cached_property
  def levels(self) -> Callable[[Array], Array]:
    """Maps the keys of episodes to their noise levels, `[B]` int32.

    These are indices into `CollectConfig.levels`, 0 where that is empty.
    """
    count = max(1, len(self.config.levels))

    def one(key: Array) -> Array:
      own = jax.random.split(key, 3)[0]
      return jax.random.randint(own, (), 0, count)

    return jax.jit(jax.vmap(one))

  def _begin(self, keys: Array) -> Lane:
    state, step = self.env.reset(
      jax.vmap(lambda key: jax.random.split(key, 3)[1])(keys)
    )
    levels = jnp.asarray(self.config.levels or (0.0,), jnp.float32)
    noise = levels[self.levels(keys)]
    dials = players.Dials(
      noise=noise,
      restless=jnp.full_like(noise, self.config.restless),
      idle=jnp.full_like(noise, self.config.idle),
    )
    return Lane(
      state=state,
      step=step,
      memory=self.player.start(state, dials),
      keys=keys,
      t=jnp.zeros(keys.shape, jnp.int32),
    )

  def _resume(self, lane: Lane, keys: Array, restarted: Array) -> Lane:
    """Starts new episodes in some places; the others go on."""
    new = self._begin(keys)
    memory = self.player.restart(lane.memory, new.memory, restarted)
    mixed = players.where_batch(
      lane.replace(memory=()), new.replace(memory=()), restarted
    )
    return mixed.replace(memory=memory)

  def _decide(self, params: PyTree, lane: Lane) -> tuple[PyTree, Actions]:
    keys = jax.vmap(
      lambda key, t: jax.random.fold_in(jax.random.split(key, 3)[2], t)
    )(lane.keys, lane.t)
    return self.player.act(
      params, lane.memory, lane.state, lane.step, lane.t == 0, keys
    )

  def _play(self, params: PyTree, lane: Lane) -> tuple[Lane, Played]:
    def body(lane: Lane, _):
      memory, actions = self._decide(params, lane)
      state, step = self.env.step(lane.state, actions)
      lane = lane.replace(state=state, step=step, memory=memory, t=lane.t + 1)
      return lane, Played(step=step, action=actions)

    return jax.lax.scan(body, lane, None, length=self.block)

  def _host_play(self, params: PyTree, lane: Lane) -> tuple[Lane, Played]:
    """As `_play`, with a simulator that cannot be jitted."""
    history = []
    for _ in range(self.block):
      memory, actions = self._act(params, lane.replace(state=()))
      actions = jax.device_get(actions)
      state, step = self.env.step(lane.state, actions)
      lane = lane.replace(state=state, step=step, memory=memory, t=lane.t + 1)
      history.append(Played(step=step, action=actions))
    return lane, jax.tree.map(lambda *x: np.stack(x), *history)

  def _host_resume(self, lane: Lane, keys: Array, restarted: Array) -> Lane:
    """Simulators start all their episodes at once."""
    new = self._begin(keys)
    memory = self.player.restart(lane.memory, new.memory, restarted)
    return new.replace(memory=memory)
