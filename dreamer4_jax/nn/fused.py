"""Weights laid out for inference: products that share an input are one product.

Left alone, XLA on GPU merges such products itself, and to do so concatenates
their weights in every pass, an eighth of a frame of play (`docs/notes.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

QKV = 'query_key_value'
GATE_UP = 'gate_up'
# The norm of its input; the module; its products, and the axis on which they
# are joined.
_PRODUCTS = (
  ('attention_norm', 'attention', QKV, ('query', 'key', 'value'), -2),
  ('mlp_norm', 'mlp', GATE_UP, ('gate', 'up'), -1),
)


def fuse(params: Mapping[str, Any]) -> dict[str, Any]:
  """Joins the weights of a layer's products that share an input.

  The scale of the norm before them is multiplied into them. `Layer` takes
  either form. In the joined one, the heads of queries, keys and values lie one
  after another, which a mesh whose axis `tensor` is above 1 cannot shard.

  Args:
    params: float32 parameters of any modules, stacked by layer or not.

  Returns:
    The same tree, where each layer has a `query_key_value` of
    `[..., D, H + 2 G, h]` in place of `query`, `key` and `value`, a `gate_up`
    of `[..., D, 2 hidden]` in place of `gate` and `up`, and no `attention_norm`
    and `mlp_norm`. The scales of queries and keys are also together, as
    `[..., 2, h]`.
  """
  found = {
    name: fuse(value) if isinstance(value, Mapping) else value
    for name, value in params.items()
  }
  for norm, module, whole, parts, axis in _PRODUCTS:
    if norm not in found or module not in found:
      continue
    own, scale = found[module], found.pop(norm)['scale']
    kernel = jnp.concatenate([own.pop(n)['kernel'] for n in parts], axis=axis)
    more = tuple(range(scale.ndim, kernel.ndim))
    own[whole] = {'kernel': kernel * jnp.expand_dims(scale, more)}
  if QKV in found.get('attention', {}):
    own = found['attention']
    own[QKV]['scales'] = jnp.stack(
      [own[name]['scale'] for name in ('query_norm', 'key_norm')], axis=-2
    )
  return found


def is_joined(params: Mapping[str, Any]) -> bool:
  """Whether these are a layer's parameters after `fuse`."""
  return QKV in params.get('attention', {})
