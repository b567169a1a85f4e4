"""Tiny transformers with parameters that are nowhere 0 or 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.nn import SpaceTimeTransformer, TransformerConfig


@pytest.fixture(scope='session')
def make_stack():
  """Returns a function of config fields to (config, module, parameters)."""

  @functools.cache
  def make(**changes):
    fields = dict(
      width=16,
      depth=8,
      time_every=4,
      num_heads=2,
      num_kv_heads=1,
      mlp_hidden=24,
      context_length=3,
      soft_cap=50.0,
      rope_base=100.0,
      remat='none',
      dtype='float32',
      attention='xla',
      unroll=1,
    )
    config = TransformerConfig(**(fields | changes))
    module = SpaceTimeTransformer(config)

    def init(key):
      x, mask = jnp.zeros((1, 1, 2, config.width)), np.ones((2, 2), bool)
      params = module.init(key, x, space_mask=mask)
      return params['params']

    # Drawn with NumPy: XLA would take seconds to compile the initialisers.
    rng = np.random.default_rng(1)

    def draw(path, shape):
      kernel = path[-1].key == 'kernel'
      x = rng.normal(size=shape.shape) * (0.3 if kernel else 0.2)
      return jnp.asarray(x if kernel else 1 + x, jnp.float32)

    shapes = jax.eval_shape(init, jax.random.key(0))
    params = jax.tree.map_with_path(draw, shapes)
    return config, module, params

  return make
