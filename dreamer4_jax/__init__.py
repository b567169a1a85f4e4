"""Dreamer 4 in JAX and Flax: agents that learn inside a world model.

    import dreamer4_jax as d4

Nothing below is imported before it is used.
"""

from etils import epy as _epy

__version__ = '0.1.0'

with _epy.lazy_api_imports(globals()):
  from dreamer4_jax import (
    aot,
    checkpoint,
    config,
    data,
    envs,
    evals,
    models,
    nn,
    objectives,
    play,
    rollout,
    runtime,
    sharding,
    training,
    types,
  )
  from dreamer4_jax.config import Config
  from dreamer4_jax.evals import dream, evaluate
  from dreamer4_jax.models import Dynamics, Tokenizer, World
  from dreamer4_jax.nn import SpaceTimeTransformer
  from dreamer4_jax.play import Agent, DreamEnv
  from dreamer4_jax.rollout import imagine
  from dreamer4_jax.training import train
  from dreamer4_jax.types import Batch

__all__ = [
  'Agent',
  'Batch',
  'Config',
  'DreamEnv',
  'Dynamics',
  'SpaceTimeTransformer',
  'Tokenizer',
  'World',
  '__version__',
  'aot',
  'checkpoint',
  'config',
  'data',
  'dream',
  'envs',
  'evals',
  'evaluate',
  'imagine',
  'models',
  'nn',
  'objectives',
  'play',
  'rollout',
  'runtime',
  'sharding',
  'train',
  'training',
  'types',
]
