"""The transformer alone: its config, and models that are not ours."""

import ast
import dataclasses
import functools
import inspect
import subprocess
import sys

from einops import rearrange
from flax import linen, nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamer4_jax import nn as ours
from dreamer4_jax.config import ComputeConfig, DynamicsConfig, TokenizerConfig
from dreamer4_jax.nn import (
  Attention,
  Layer,
  LayersConfig,
  Period,
  SpaceTimeTransformer,
  TransformerConfig,
  make_context,
  masks,
)

SMALL = TransformerConfig(
  width=16, depth=2, time_every=2, num_heads=2, num_kv_heads=1, mlp_hidden=24
)


class Foreign(linen.Module):
  @linen.compact
  def __call__(self, x):
    x = linen.Dense(64)(x)
    x, _ = SpaceTimeTransformer(TransformerConfig(width=64, depth=4))(x)
    return linen.Dense(1)(x)


class ForeignNnx(nnx.Module):
  def __init__(self, x, rngs):
    trunk = SpaceTimeTransformer(TransformerConfig(width=64, depth=4))
    self.trunk = nnx.bridge.ToNNX(trunk, rngs=rngs).lazy_init(x)
    self.out = nnx.Linear(64, 1, rngs=rngs)

  def __call__(self, x):
    return self.out(self.trunk(x)[0])


def draw(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize('model', [Foreign, ForeignNnx])
def test_a_foreign_model_takes_eight_lines_and_two_names_of_ours(model):
  source = inspect.getsource(model)
  assert len([line for line in source.splitlines() if line.strip()]) <= 8
  names = [n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)]
  used = set(names) & set(ours.__all__)
  assert used == {'SpaceTimeTransformer', 'TransformerConfig'}


def test_a_foreign_linen_model_trains():
  model, optimizer = Foreign(), optax.sgd(0.01)
  x = draw(2, 3, 5, 7)
  params = jax.jit(model.init)(jax.random.key(0), x)
  # All are plain arrays, as a user without a mesh expects.
  is_leaf = lambda x: not isinstance(x, dict)
  leaves = jax.tree.leaves(params, is_leaf=is_leaf)
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)

  @jax.jit
  def step(params, state):
    loss = lambda p: ((model.apply(p, x) - 1) ** 2).mean()
    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value, gradient

  params, state, before, gradient = step(params, optimizer.init(params))
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))
  assert 0 < step(params, state)[2] < before


def test_a_foreign_nnx_model_trains():
  x = draw(2, 3, 5, 64)
  model, optimizer = ForeignNnx(x, nnx.Rngs(0)), optax.sgd(0.01)

  @nnx.jit
  def step(model, state):
    loss = lambda model: ((model(x) - 1) ** 2).mean()
    value, gradient = nnx.value_and_grad(loss)(model)
    params = nnx.state(model, nnx.Param)
    updates, state = optimizer.update(gradient, state)
    nnx.update(model, optax.apply_updates(params, updates))
    return state, value, gradient

  state = optimizer.init(nnx.state(model, nnx.Param))
  state, before, gradient = step(model, state)
  leaves = jax.tree.leaves(gradient)
  assert len(leaves) == 4 * 11 + 1 + 2
  assert all(np.abs(g).max() > 0 for g in leaves)
  assert 0 < step(model, state)[1] < before


def test_masks_are_of_numpy_or_jax_and_all_see_all_without_one():
  module, x = SpaceTimeTransformer(SMALL), draw(1, 2, 3, 16)
  params = jax.jit(module.init)(jax.random.key(0), x)
  mask = masks.hidden_token_mask(3, 1)
  apply = lambda mask: module.apply(params, x, space_mask=mask)[0]
  known = lambda mask: jax.jit(lambda: apply(mask))()
  given = jax.jit(apply)
  expected = known(mask)
  for found in (known(jnp.asarray(mask)), given(mask)):
    np.testing.assert_allclose(found, expected, atol=1e-5)
  everything = known(np.ones((3, 3), bool))
  np.testing.assert_allclose(known(None), everything, atol=1e-5)
  assert np.abs(everything - expected).max() > 1e-3


@pytest.mark.parametrize(
  'mask, named',
  [
    (np.ones((2, 3), bool), r'mask has shape \(2, 3\)'),
    (np.ones((3, 3)), 'dtype float64, expected .* bool'),
    (np.ones((2, 2), bool), 'mask is for 2 tokens, expected 3'),
    (np.tri(3, k=-1, dtype=bool), r'mask\[0\] is false everywhere'),
  ],
)
def test_a_mask_that_cannot_work_is_refused(mask, named):
  module = SpaceTimeTransformer(SMALL)
  with pytest.raises(ValueError, match=named):
    module.init(jax.random.key(0), jnp.zeros((1, 1, 3, 16)), space_mask=mask)


@pytest.mark.parametrize('shape', [(1, 3, 16), (1, 1, 3, 8)])
def test_tokens_of_another_shape_are_refused(shape):
  text = rf'x has shape \{str(shape)[:-1]}.*D = width = 16'
  with pytest.raises(ValueError, match=text):
    SpaceTimeTransformer(SMALL).init(jax.random.key(0), jnp.zeros(shape))


def test_the_parts_work_alone_and_make_the_whole():
  x, whole = draw(2, 3, 5, 16), SpaceTimeTransformer(SMALL)
  params = jax.jit(whole.init)(jax.random.key(0), x)['params']
  expected, entries = jax.jit(whole.apply)({'params': params}, x)
  first = jax.tree.map(lambda p: p[0], params['periods'])

  @jax.jit
  def parts(x):
    context = make_context(SMALL, x.shape)
    y, new = Period(SMALL).apply({'params': first}, x, None, context)
    by_hand = x
    for name, axes in (('space_0', 'b t n d'), ('time', 'b n t d')):
      mask = None if name == 'space_0' else context.time_mask
      turn = None if name == 'space_0' else context.time_rotation
      by_hand = rearrange(by_hand, f'b t n d -> {axes}')
      own = {'params': first[name]}
      by_hand, _ = Layer(SMALL).apply(own, by_hand, mask, turn)
      by_hand = rearrange(by_hand, f'{axes} -> b t n d')
    return y, new, by_hand

  y, new, by_hand = parts(x)
  np.testing.assert_allclose(by_hand, y, atol=1e-5)
  unit = y / jnp.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(unit, expected, atol=1e-5)
  np.testing.assert_allclose(new.keys, entries.keys[0], atol=1e-5)


def test_attention_alone_keeps_to_its_mask():
  x, module = draw(2, 5, 16), Attention(SMALL)
  causal = np.tri(5, dtype=bool)
  params = jax.jit(module.init)(jax.random.key(0), x)
  run = jax.jit(lambda x: module.apply(params, x, causal))
  (before, entries), (after, _) = run(x), run(x.at[:, 3].add(1.0))
  assert before.shape == x.shape and entries.keys.shape == (2, 1, 5, 8)
  assert np.array_equal(after[:, :3], before[:, :3])
  assert np.abs(after - before)[:, 3:].max(axis=-1).min() > 1e-4


def test_a_config_has_defaults_and_refuses_what_cannot_work():
  assert TransformerConfig() == TransformerConfig(depth=4, time_every=4)
  text = 'TransformerConfig.depth = 6: must be a positive multiple .* = 4'
  with pytest.raises(ValueError, match=text):
    TransformerConfig(depth=6)
  assert TransformerConfig(depth=6, time_every=3).depth == 6
  # 8/3 of the width, in whole multiples of 64.
  assert [TransformerConfig(width=w).hidden for w in (16, 128, 192)] == [
    64,
    384,
    512,
  ]
  assert TransformerConfig(mlp_hidden=24).hidden == 24
  with pytest.raises(ValueError, match='width = 20: must be divisible'):
    TransformerConfig(width=20)


@pytest.mark.parametrize('kind', [TokenizerConfig, DynamicsConfig])
def test_models_take_every_field_of_the_layers(kind):
  layers = dict(
    width=64,
    num_heads=8,
    depth=6,
    time_every=2,
    context_length=5,
    rope_base=100.0,
  )
  compute = dict(dtype='bfloat16', remat='dots', attention='xla')
  for group, own in ((LayersConfig, layers), (ComputeConfig, compute)):
    default = group()
    assert set(own) == {f.name for f in dataclasses.fields(group)}
    assert all(v != getattr(default, k) for k, v in own.items())
  got = kind(**layers).transformer(ComputeConfig(**compute), 2)
  expected = TransformerConfig(**layers, **compute, num_kv_heads=2, unroll=1)
  assert got == expected
  # Defaults are those of the transformer; a single period needs no loop.
  plain = kind(depth=4).transformer(ComputeConfig())
  assert plain == TransformerConfig() and plain.kv_heads == plain.num_heads


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
    depth=2,
    time_every=2,
    num_heads=2,
    num_kv_heads=1,
    mlp_hidden=12,
    soft_cap=soft_cap,
  )
  slow = dataclasses.replace(config, fast_gradient=False)
  x, along = draw(2, 1, 3, 2, 8)
  init = jax.jit(SpaceTimeTransformer(config).init)
  params = init(jax.random.key(0), x)

  def loss(config, x):
    y, _ = SpaceTimeTransformer(config).apply(params, x)
    return (y**3).mean()

  fast, slow = (functools.partial(loss, c) for c in (config, slow))
  with pytest.raises(TypeError, match='forward-mode'):
    jax.jvp(fast, (x,), (along,))
  # The slope along a direction, and its gradient: by reverse and forward mode.
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
