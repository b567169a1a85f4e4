"""Layers of the efficient space/time transformer (section 2 of the paper).

A config is plain data and comes without JAX, which is imported with the first
of the other names that is asked for.
"""

from typing import TYPE_CHECKING, Any

from dreamer4_jax.nn.config import LayersConfig, TransformerConfig

if TYPE_CHECKING:
  from dreamer4_jax.nn.attention import KeyValues, attend
  from dreamer4_jax.nn.backends import SequenceMask, choose
  from dreamer4_jax.nn.cache import (
    TimeCache,
    append,
    fill,
    init_cache,
    start_segment,
  )
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
  'Attention',
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
  'choose',
  'fill',
  'init_cache',
  'logical_axes',
  'make_context',
  'start_segment',
]


def __getattr__(name: str) -> Any:
  """Imports a name that is not there yet."""
  if name in __all__:
    from dreamer4_jax.nn import (
      attention,
      backends,
      cache,
      layers,
      partition,
      transformer,
    )

    homes = (attention, backends, cache, layers, partition, transformer)
    for module in homes:
      if hasattr(module, name):
        return globals().setdefault(name, getattr(module, name))
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
