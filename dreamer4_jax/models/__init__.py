"""Tokenizer, dynamics, action spaces and heads; no losses."""

from dreamer4_jax.models.actions import (
  ActionEmbedding,
  check_actions,
  no_action,
)
from dreamer4_jax.models.dynamics import (
  Dynamics,
  DynamicsOutput,
  dynamics_cache,
)
from dreamer4_jax.models.tokenizer import (
  Decoded,
  Tokenizer,
  tokenizer_caches,
)
from dreamer4_jax.models.world import Params, World

__all__ = [
  'ActionEmbedding',
  'Decoded',
  'Dynamics',
  'DynamicsOutput',
  'Params',
  'Tokenizer',
  'World',
  'check_actions',
  'dynamics_cache',
  'no_action',
  'tokenizer_caches',
]
