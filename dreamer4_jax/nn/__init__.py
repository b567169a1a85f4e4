"""Layers of the efficient space/time transformer (section 2 of the paper).

Configs are plain data and need no JAX, which is imported when the first of the
other names is used.
"""

from etils import epy as _epy

from dreamer4_jax.nn.config import (
  ComputeConfig,
  LayersConfig,
  TransformerConfig,
)

with _epy.lazy_api_imports(globals()):
  from dreamer4_jax.nn.attention import KeyValues, attend
  from dreamer4_jax.nn.backends import SequenceMask, resolve_backend
  from dreamer4_jax.nn.cache import (
    NO_SEGMENT,
    TimeCache,
    append,
    fill,
    forget_last,
    init_cache,
    splice,
    start_segment,
  )
  from dreamer4_jax.nn.fused import fuse
  from dreamer4_jax.nn.layers import Embedding, Linear, Mlp, RmsNorm
  from dreamer4_jax.nn.partition import logical_axes
  from dreamer4_jax.nn.transformer import (
    Attention,
    Context,
    Layer,
    Period,
    SpaceTimeTransformer,
    make_context,
  )

__all__ = [
  'NO_SEGMENT',
  'Attention',
  'ComputeConfig',
  'Context',
  'Embedding',
  'KeyValues',
  'Layer',
  'LayersConfig',
  'Linear',
  'Mlp',
  'Period',
  'RmsNorm',
  'SequenceMask',
  'SpaceTimeTransformer',
  'TimeCache',
  'TransformerConfig',
  'append',
  'attend',
  'fill',
  'forget_last',
  'fuse',
  'init_cache',
  'logical_axes',
  'make_context',
  'resolve_backend',
  'splice',
  'start_segment',
]
