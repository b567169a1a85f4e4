"""Layers of the efficient space/time transformer (section 2 of the paper)."""

from dreamer4_jax.nn.attention import KeyValues, attend
from dreamer4_jax.nn.backends import choose
from dreamer4_jax.nn.cache import (
  TimeCache,
  append,
  fill,
  init_cache,
  start_segment,
)
from dreamer4_jax.nn.layers import Embedding, Linear, Mlp, RmsNorm
from dreamer4_jax.nn.transformer import SpaceTimeTransformer

__all__ = [
  'Embedding',
  'KeyValues',
  'Linear',
  'Mlp',
  'RmsNorm',
  'SpaceTimeTransformer',
  'TimeCache',
  'append',
  'attend',
  'choose',
  'fill',
  'init_cache',
  'start_segment',
]
