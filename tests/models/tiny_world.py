"""A world small enough for tests, with every parameter non-zero."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import (
  ActionComponent,
  AgentConfig,
  Config,
  DynamicsConfig,
  TokenizerConfig,
)
from dreamer4_jax.models import World
from dreamer4_jax.types import Batch

ACTIONS = (
  ActionComponent(name='move', kind='categorical', size=3),
  ActionComponent(name='keys', kind='binary', size=2),
  ActionComponent(
    name='look', kind='continuous', size=2, low=-1.0, high=3.0, bins=3
  ),
)
SIZES = dict(width=16, num_heads=2, context_length=4, time_every=2)
CONFIG = Config(
  actions=ACTIONS,
  tasks=('key', 'door'),
  tokenizer=TokenizerConfig(
    **SIZES,
    frame_shape=(20, 12, 3),
    patch_size=8,
    num_latents=4,
    bottleneck_dim=4,
    depth=2,
    # The whole range of the tanh, so that nothing hides in rounding.
    bottleneck_gain=1.0,
  ),
  dynamics=DynamicsConfig(
    **SIZES,
    num_kv_heads=1,
    depth=4,
    num_spatial_tokens=2,
    num_registers=1,
    max_steps=8,
  ),
  agent=AgentConfig(hidden=(16,), distances=3, bins=31, bin_limit=5.0),
)
MODULES = (
  'tokenizer',
  'dynamics',
  'task',
  'policy',
  'reward',
  'continuation',
  'value',
  'prior',
)


def with_dynamics(config, **changes):
  """Returns the config with other dynamics fields."""
  return config.edit({f'dynamics.{k}': v for k, v in changes.items()})


def changed(world, fields):
  """Returns the world with other fields of its config, by dotted name.

  For those that do not shape modules, such as settings of phases.
  """
  return dataclasses.replace(world, config=world.config.edit(fields))


@functools.cache
def world_and_params(config=CONFIG):
  """Returns the modules, and parameters that are nowhere zero.

  With the zero output layers of the initialisation much would hold trivially.
  """
  world = World.from_config(config)

  modules = tuple(m for m in MODULES if m != 'prior')
  shapes = jax.eval_shape(
    lambda key: nn.unbox(world.init(key, modules)), jax.random.key(0)
  )
  rng = np.random.default_rng(7)

  # Drawn with NumPy: XLA would take seconds to compile the initialisers.
  def draw(path, leaf):
    scale = path[-1].key == 'scale'
    x = rng.normal(size=leaf.shape) * (0.2 if scale else 0.3)
    return jnp.asarray(1 + x if scale else x, jnp.float32)

  params = jax.tree.map_with_path(draw, shapes)
  params['prior'] = params['policy']
  shape = config.tokenizer.latent_shape
  latents = {
    'mean': jnp.asarray(rng.normal(size=shape) * 0.3, jnp.float32),
    'std': jnp.asarray(rng.uniform(0.3, 0.9, shape), jnp.float32),
  }
  return world, {**params, 'latents': latents}


def random_actions(rng, lead):
  """Returns NumPy actions of the tiny space."""
  centers = np.linspace(-1, 3, 3, dtype=np.float32)
  return {
    'move': rng.integers(0, 3, lead).astype(np.int32),
    'keys': rng.integers(0, 2, (*lead, 2)).astype(np.int32),
    'look': centers[rng.integers(0, 3, (*lead, 2))],
  }


def make_batch(b, t, seed=0, starts=()):
  """Returns clips; `starts` are pairs (row, frame) at which episodes begin.

  Every row begins an episode. Odd rows are relevant. All actions are known.
  """
  rng = np.random.default_rng(seed)
  first = np.zeros((b, t), bool)
  first[:, 0] = True
  for row, frame in starts:
    first[row, frame] = True
  action = random_actions(rng, (b, t))
  relevant = np.arange(b) % 2 == 1
  shift = lambda a: np.concatenate([np.zeros_like(a[:, :1]), a[:, :-1]], 1)
  return Batch(
    frames=rng.integers(0, 256, (b, t, 20, 12, 3)).astype(np.uint8),
    action=action,
    action_mask=np.ones((b, t), bool),
    prev_action={k: shift(v) for k, v in action.items()},
    prev_action_mask=~first,
    cloned=np.broadcast_to(relevant[:, None], (b, t)).copy(),
    reward=(rng.uniform(size=(b, t, 2)) < 0.3).astype(np.float32),
    cont=np.ones((b, t), np.float32),
    task=rng.integers(0, 2, (b, t)).astype(np.int32),
    segment_ids=(np.cumsum(first, axis=1) - 1).astype(np.int32),
    relevant=relevant,
  )


def random_tokens(seed, b, t):
  """Returns standardised tokens `[B, T, N_z, C]` of the tiny world."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(b, t, 2, 8)), jnp.float32)
