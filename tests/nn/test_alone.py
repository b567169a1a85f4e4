"""The transformer alone: its config, and models that are not ours."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax import nn as ours
from dreamer4_jax.config import DynamicsConfig, TokenizerConfig
from dreamer4_jax.nn import (
  LayersConfig,
  SpaceTimeTransformer,
  TransformerConfig,
)


def test_a_config_has_defaults_and_refuses_what_cannot_work():
  assert TransformerConfig() == TransformerConfig(depth=4, time_every=4)
  text = 'TransformerConfig.depth = 6: must be a positive multiple .* = 4'
  with pytest.raises(ValueError, match=text):
    TransformerConfig(depth=6)
  assert TransformerConfig(depth=6, time_every=3).depth == 6
  with pytest.raises(ValueError, match='width = 20: must be divisible'):
    TransformerConfig(width=20)


@pytest.mark.parametrize('kind', [TokenizerConfig, DynamicsConfig])
def test_models_take_every_field_of_the_layers(kind):
  # No field has a default of its own, and all reach the transformer.
  changed = kind(
    width=64, num_kv_heads=2, time_every=2, soft_cap=30.0, unroll=2
  )
  for config in (kind(), changed):
    stack = config.stack(8)
    assert stack.depth == 8
    for field in dataclasses.fields(LayersConfig):
      assert getattr(stack, field.name) == getattr(config, field.name)
  assert kind().stack(4) == TransformerConfig()


def test_every_name_is_there_and_a_config_needs_no_jax():
  assert all(hasattr(ours, name) for name in ours.__all__)
  with pytest.raises(AttributeError, match="no attribute 'attent'"):
    ours.attent  # noqa: B018
  code = 'import sys\nfrom dreamer4_jax.nn import TransformerConfig\n'
  code += "print(TransformerConfig().width, 'jax' in sys.modules)"
  child = subprocess.run([sys.executable, '-c', code], capture_output=True)
  assert child.stdout == b'128 False\n', child.stderr


@pytest.mark.parametrize('soft_cap', [2.0, None])
def test_forward_mode_passes_without_the_fast_gradient(soft_cap):
  config = TransformerConfig(
    width=8,
    depth=4,
    time_every=2,
    num_heads=2,
    num_kv_heads=1,
    mlp_hidden=12,
    soft_cap=soft_cap,
  )
  slow = dataclasses.replace(config, fast_gradient=False)
  x, along = np.random.default_rng(0).normal(size=(2, 1, 3, 2, 8))
  x, along = jnp.asarray(x, jnp.float32), jnp.asarray(along, jnp.float32)
  mask = np.ones((2, 2), bool)
  params = SpaceTimeTransformer(config).init(
    jax.random.key(0), x, space_mask=mask
  )

  def loss(config, x):
    y, _ = SpaceTimeTransformer(config).apply(params, x, space_mask=mask)
    return (y**3).mean()

  fast, slow = (functools.partial(loss, c) for c in (config, slow))
  with pytest.raises(TypeError, match='forward-mode'):
    jax.jvp(fast, (x,), (along,))
  # Along a direction, and the Hessian of that: backward, and not.
  slope = lambda x: jnp.vdot(jax.grad(fast)(x), along)
  expected = jax.jit(jax.value_and_grad(slope))(x)
  _, got = jax.jit(lambda x: jax.jvp(slow, (x,), (along,)))(x)
  np.testing.assert_allclose(got, expected[0], rtol=1e-4, atol=1e-6)
  hessian = jax.jit(jax.hessian(slow))(x)
  got = np.einsum('btndBTND,BTND->btnd', hessian, along)
  assert np.abs(got).max() > 0.01
  np.testing.assert_allclose(got, expected[1], rtol=1e-3, atol=1e-4)


def test_kernels_keep_their_own_gradients():
  text = 'fast_gradient = False: needs attention = auto or xla'
  with pytest.raises(ValueError, match=text):
    TransformerConfig(fast_gradient=False, attention='splash')
