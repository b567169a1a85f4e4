"""Kernels for GPUs, interpreted here, against the einsum of `nn.attention`."""

import dataclasses
import re

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax import sharding
from dreamer4_jax.config import MeshConfig
from dreamer4_jax.nn import (
  KeyValues,
  SpaceTimeTransformer,
  append,
  attend,
  backends,
  fuse,
  gpu_attention,
  gpu_play,
  init_cache,
  masks,
  rope,
)
from dreamer4_jax.nn.layers import rms_norm

CAP = 5.0  # Low, so that it bends.
TOLERANCE = {'float32': 1e-5, 'bfloat16': 2e-2}


def draw(seed, *shape, dtype='float32'):
  x = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(x, dtype)


def close(got, expected, dtype):
  # Relative to the largest, as sums of many terms are.
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    limit = TOLERANCE[dtype]
    np.testing.assert_allclose(a, b, rtol=limit, atol=limit * np.abs(b).max())


def calls(jaxpr):
  """Yields the kernels of a program, each once."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'pallas_call':
      yield equation
      continue
    for value in equation.params.values():
      for item in value if isinstance(value, tuple | list) else [value]:
        inner = getattr(item, 'jaxpr', item)
        if isinstance(inner, jax.extend.core.Jaxpr):
          yield from calls(inner)


def names(jaxpr):
  """Which kernels a program has, by the names that they are given."""
  # Older versions of JAX do not print them with the program.
  about = [x.params['jaxpr'].debug_info for x in calls(jaxpr.jaxpr)]
  texts = [str(jaxpr), *map(str, about)]
  return set(re.findall(r'attention_([a-z]+)_\d+_flop', ' '.join(texts)))


# Lengths that no block divides; a block of keys that is seen in part; and
# modalities, of which whole blocks are not seen, with a border within a block.
MASKS = {
  'all': np.ones((70, 70), bool),
  'padded': np.broadcast_to(np.arange(70) < 62, (70, 70)),
  'agent': masks.hidden_token_mask(70, 66),
  'encoder': masks.encoder_mask([0] * 64 + [1] * 70 + [2]),
  'decoder': masks.decoder_mask([0] * 50 + [1] * 90),
}


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('name', MASKS)
def test_tokens_are_attended_forward_and_backward(name, dtype):
  mask = MASKS[name]
  length, groups, rows, head = len(mask), 2, 2, 16
  q = draw(0, 2, groups, rows, length, head, dtype=dtype)
  k, v = (draw(i, 2, groups, length, head, dtype=dtype) for i in (1, 2))
  gradient = draw(3, *q.shape, dtype=dtype)

  def reference(q, k, v):
    # Of numbers that are rounded, computed exactly.
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    block = (KeyValues(keys=k, values=v), jnp.asarray(mask))
    return attend(q, [block], CAP, fast_gradient=False)

  def kernel(q, k, v):
    return gpu_attention.attend_tokens(q, k, v, mask, CAP, interpret=True)

  run = lambda fn, g: jax.jit(
    lambda *a: (lambda y, pull: (y, pull(g.astype(y.dtype))))(*jax.vjp(fn, *a))
  )(q, k, v)
  got, expected = run(kernel, gradient), run(reference, gradient)
  assert got[0].dtype == q.dtype
  close(got, expected, dtype)
  assert np.abs(np.asarray(expected[1][1], np.float32)).max() > 0.1


def test_blocks_that_nobody_sees_are_not_computed():
  blind, all_ = MASKS['encoder'], np.ones((135, 135), bool)
  estimates = []
  for mask in (blind, all_):
    q, k = draw(0, 1, 1, 1, 135, 16), draw(1, 1, 1, 135, 16)
    fn = lambda q, k, mask=mask: gpu_attention.attend_tokens(q, k, k, mask, CAP)
    (call,) = calls(jax.make_jaxpr(fn)(q, k).jaxpr)
    estimates.append(call.params['cost_estimate'].flops)
  # Queries in blocks of 64: the latents see 135, two blocks of others see 71
  # and, with the one of the third modality among them, 71 again.
  assert estimates[1] == 4 * 16 * 3 * 64 * 135
  assert estimates[0] == 4 * 16 * 64 * (135 + 70 + 71)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('turned', [False, True], ids=['plain', 'turned'])
def test_a_frame_is_read_as_the_product_leaves_it(turned, dtype):
  mask, groups, rows, head = MASKS['encoder'], 2, 2, 32
  length, heads = len(mask), groups * rows
  joined = draw(0, 2, length, heads + 2 * groups, head, dtype=dtype)
  scales, angle = 1 + 0.2 * draw(1, 2, head), draw(2, length, head // 2)

  def reference():
    wide = joined.astype(jnp.float32)
    q, k, v = jnp.split(wide, (heads, heads + groups), axis=2)
    q, k = rms_norm(q, scales[0]), rms_norm(k, scales[1])
    if turned:
      by = rope.rotation(angle[None, :, None])
      q, k = rope.rotate(q, by), rope.rotate(k, by)
    q = rearrange(q, 'x s (g r) h -> x g r s h', g=groups)
    k, v = (rearrange(a, 'x s g h -> x g s h') for a in (k, v))
    y = attend(q, [(KeyValues(keys=k, values=v), jnp.asarray(mask))], CAP)
    return rearrange(y, 'x g r s h -> x s (g r h)')

  got = gpu_play.attend_frame(
    joined,
    scales,
    (jnp.cos(angle), jnp.sin(angle)) if turned else None,
    mask,
    CAP,
    groups=groups,
    interpret=True,
  )
  assert got.dtype == joined.dtype
  close(got, reference(), dtype)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('frames', [1, 2])
def test_the_ring_of_a_period_is_read_in_place(frames, dtype):
  batch, tokens, groups, rows, head, slots = 2, 3, 2, 2, 32, 70
  heads = groups * rows
  joined = draw(0, batch, tokens, frames, heads + 2 * groups, head, dtype=dtype)
  scales, angle = 1 + 0.2 * draw(1, 2, head), draw(2, frames, head // 2)
  shape = (3, batch, tokens, groups, slots, head)
  rings = [draw(i, *shape, dtype=dtype) for i in (3, 4)]
  shape = (batch, tokens, groups, frames, head)
  own = [draw(i, *shape, dtype=dtype) for i in (5, 6)]
  ring_mask = draw(7, batch, frames, slots) > 0
  own_mask = jnp.broadcast_to(
    jnp.tril(jnp.ones((frames, frames), bool)), (batch, frames, frames)
  )

  def reference(period):
    wide = lambda x: x.astype(jnp.float32)
    by = rope.rotation(angle[None, None, :, None])
    q = rope.rotate(rms_norm(wide(joined[:, :, :, :heads]), scales[0]), by)
    q = rearrange(q, 'b n t (g r) h -> b n g r t h', g=groups)
    past = KeyValues(keys=wide(rings[0][period]), values=wide(rings[1][period]))
    new = KeyValues(keys=wide(own[0]), values=wide(own[1]))
    spread = lambda m: m[:, None, None, None]
    blocks = [(past, spread(ring_mask)), (new, spread(own_mask))]
    y = attend(q, blocks, CAP)
    return rearrange(y, 'b n g r t h -> b n t (g r h)')

  run = jax.jit(
    lambda period: gpu_play.attend_ring(
      joined,
      KeyValues(keys=own[0], values=own[1]),
      scales,
      (jnp.cos(angle), jnp.sin(angle)),
      (KeyValues(keys=rings[0], values=rings[1]), period),
      (ring_mask, own_mask),
      CAP,
      interpret=True,
    )
  )
  for period in (0, 2):
    close(run(jnp.full(1, period)), reference(period), dtype)


@pytest.fixture
def interpreted(monkeypatch):
  monkeypatch.setattr(backends, 'INTERPRET', True)
  monkeypatch.setattr(backends, 'DTYPES', ('float32',))


def test_a_stream_of_two_frames_at_a_time_is_the_clip(make_stack, interpreted):
  # Long enough for the kernels, and padded from 130 tokens to 136.
  tokens, frames = 130, 6
  config, module, params = make_stack(
    width=64, num_heads=2, depth=4, time_every=2, context_length=4
  )
  x, mask = draw(0, 1, frames, tokens, 64), masks.hidden_token_mask(tokens, 7)
  angles = draw(1, tokens, 16)
  given = {'space_mask': mask, 'space_angles': angles}
  expected, _ = jax.jit(lambda x: module.apply({'params': params}, x, **given))(
    x
  )
  gpu = dataclasses.replace(config, attention='triton')
  joined, module = fuse(params), SpaceTimeTransformer(gpu)
  two = jax.jit(
    lambda cache, x: module.apply({'params': joined}, x, **given, cache=cache)
  )
  assert names(jax.make_jaxpr(two)(init_cache(gpu, 1, tokens), x[:, :2])) == {
    'frame',
    'ring',
  }
  cache, shown = init_cache(gpu, 1, tokens), []
  for t in range(0, frames, 2):
    y, new = two(cache, x[:, t : t + 2])
    for i in range(2):
      part = jax.tree.map(lambda a, i=i: a[..., i : i + 1, :], new)
      cache = append(cache, part)
    shown.append(y)
  np.testing.assert_allclose(np.concatenate(shown, 1), expected, atol=5e-5)


def test_a_clip_is_trained_by_the_kernel_within_frames(make_stack, interpreted):
  tokens = 130
  config, module, params = make_stack(
    width=64, num_heads=2, depth=2, time_every=2, context_length=4
  )
  gpu = SpaceTimeTransformer(dataclasses.replace(config, attention='triton'))
  x = draw(0, 1, 2, tokens, 64)
  loss = lambda module: lambda p: (module.apply({'params': p}, x)[0] ** 2).sum()
  assert names(jax.make_jaxpr(jax.grad(loss(gpu)))(params)) == {
    'forward',
    'keys',
    'queries',
  }
  got, expected = (jax.jit(jax.grad(loss(m)))(params) for m in (gpu, module))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_a_mask_that_is_known_too_late_is_padded_all_the_same(make_stack):
  config, module, params = make_stack()
  x, mask = draw(0, 1, 2, 65, 16), masks.hidden_token_mask(65, 7)
  gpu = SpaceTimeTransformer(dataclasses.replace(config, attention='triton'))
  run = lambda module: jax.jit(
    lambda mask: module.apply({'params': params}, x, space_mask=mask)[0]
  )(jnp.asarray(mask))
  np.testing.assert_allclose(run(gpu), run(module), atol=1e-5)
  with pytest.raises(ValueError, match='mask is for 64 tokens, expected 65'):
    gpu.apply({'params': params}, x, space_mask=np.ones((64, 64), bool))


@pytest.mark.parametrize(
  ('head', 'cap', 'dtype', 'served'),
  [
    (64, 50.0, 'bfloat16', True),
    (64, None, 'bfloat16', False),
    (16, 50.0, 'bfloat16', False),
    (48, 50.0, 'bfloat16', False),
    (256, 50.0, 'bfloat16', False),
    (64, 50.0, 'float32', False),
  ],
)
def test_what_no_kernel_takes_is_left_to_xla(head, cap, dtype, served):
  assert backends.has_gpu_kernel(head, cap, dtype) == served


def test_a_ring_is_read_on_every_device(make_stack, interpreted):
  tokens = 72
  config, module, params = make_stack(
    width=64, num_heads=2, depth=2, time_every=2, context_length=4
  )
  gpu = SpaceTimeTransformer(dataclasses.replace(config, attention='triton'))
  x, joined = draw(0, 4, 2, tokens, 64), fuse(params)
  cache = init_cache(config, 4, tokens)

  def run(module, params, x):
    y, new = module.apply({'params': params}, x[:, :1], cache=cache)
    again = append(cache, new)
    return y, module.apply({'params': params}, x[:, 1:], cache=again)[0]

  expected = jax.jit(lambda x: run(module, params, x))(x)
  mesh = sharding.make_mesh(MeshConfig(data=2), jax.devices()[:2])
  with sharding.use_mesh(mesh):
    split = jax.device_put(x, sharding.batch_sharding(mesh))
    got = jax.jit(lambda x: run(gpu, joined, x))(split)
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
