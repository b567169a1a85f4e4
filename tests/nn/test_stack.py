from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.nn import (
  Period,
  SpaceTimeTransformer,
  init_cache,
  logical_axes,
  make_context,
  masks,
)
from tests.nn import reference

MASK = masks.hidden_token_mask(3, 1)
SEGMENTS = np.array([[0, 0, 0, 0, 0], [0, 0, 1, 1, 1]])


def clip():
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.normal(size=(2, 5, 3, 16)), jnp.float32)


def apply(module, params, x):
  y, _ = module.apply(
    {'params': params},
    x,
    space_mask=MASK,
    segment_ids=jnp.asarray(SEGMENTS),
  )
  return y


@pytest.mark.parametrize(
  'heads, kv_heads, time_every, soft_cap',
  [(2, 1, 4, 1.0), (4, 2, 4, 1.0), (2, 1, 2, 1.0), (2, 1, 2, None)],
)
def test_stack_matches_float64_loops(
  make_stack, heads, kv_heads, time_every, soft_cap
):
  # A cap of 1 and a base of 100 make cap and rotation visible.
  config, module, params = make_stack(
    num_heads=heads,
    num_kv_heads=kv_heads,
    soft_cap=soft_cap,
    time_every=time_every,
  )
  got = jax.jit(apply, static_argnums=0)(module, params, clip())
  tree = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  expected = reference.transformer(tree, clip(), MASK, SEGMENTS, config)
  np.testing.assert_allclose(got, expected, atol=2e-5)


def test_scan_equals_an_unrolled_stack_of_periods(make_stack):
  config, module, params = make_stack()
  context = make_context(
    config,
    clip().shape,
    space_mask=MASK,
    segment_ids=jnp.asarray(SEGMENTS),
  )

  @jax.jit
  def unrolled(params, x):
    entries = []
    for i in range(config.depth // config.time_every):
      own = jax.tree.map(lambda p, i=i: p[i], params['periods'])
      x, new = Period(config).apply({'params': own}, x, None, context)
      entries.append(new.keys)
    scale = params['norm']['scale']
    x = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
    return x * scale[None, None, None], jnp.stack(entries)

  y, new = jax.jit(
    lambda p, x: module.apply(
      {'params': p},
      x,
      space_mask=MASK,
      segment_ids=jnp.asarray(SEGMENTS),
    )
  )(params, clip())
  expected, keys = unrolled(params, clip())
  np.testing.assert_allclose(y, expected, atol=1e-5)
  np.testing.assert_allclose(new.keys, keys, atol=1e-5)


def test_remat_and_unrolling_change_neither_output_nor_gradient(make_stack):
  results = {}
  for remat, unroll in (('none', 1), ('dots', 1), ('full', 1), ('dots', 2)):
    _, module, _ = make_stack(remat=remat, unroll=unroll)
    _, _, params = make_stack()

    def loss(params, x, module=module):
      return (apply(module, params, x) ** 3).sum()

    grad = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(params, clip())
    program = str(grad.jaxpr)
    assert ('prevent_cse' in program) == (remat != 'none')
    # Without a loop, CSE must be kept from merging what is recomputed.
    assert ('prevent_cse=True' in program) == (remat != 'none' and unroll == 2)
    results[remat, unroll] = grad.lower().compile()(params, clip())
  expected = results.pop(('none', 1))
  for result in results.values():
    for a, b in zip(
      jax.tree.leaves(result), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_computes_low_and_keeps_float32_parameters(make_stack):
  _, low, params = make_stack(dtype='bfloat16')
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  y = jax.jit(apply, static_argnums=0)(low, params, clip())
  assert y.dtype == jnp.bfloat16
  _, high, _ = make_stack()
  exact = jax.jit(apply, static_argnums=0)(high, params, clip())
  error = np.abs(np.asarray(y, np.float32) - exact)
  # 2^-9 relative at each of a few dozen roundings.
  assert 1e-4 < error.max() and error.mean() < 0.03


def test_every_parameter_has_logical_axes_and_the_scan_adds_layers(make_stack):
  config, _, _ = make_stack()
  init = SpaceTimeTransformer(config).init
  x = jnp.zeros((1, 1, 2, 16))
  with logical_axes():
    mask = np.ones((2, 2), bool)
    shapes = jax.eval_shape(
      lambda k: init(k, x, space_mask=mask), jax.random.key(0)
    )
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  flat = jax.tree.leaves_with_path(shapes['params'], is_leaf=is_box)
  assert len(flat) == 4 * 11 + 1
  for path, box in flat:
    assert is_box(box), path
    assert len(box.names) == box.value.ndim, path
    scanned = 'periods' in jax.tree_util.keystr(path)
    assert (box.names[0] == 'layers') == scanned, path
    assert any(name is not None for name in box.names[1:]) or not scanned
  # Without `logical_axes` nothing is boxed.
  plain = jax.eval_shape(
    lambda k: init(k, x, space_mask=mask), jax.random.key(0)
  )
  assert plain == nn.unbox(shapes)
  assert not any(map(is_box, jax.tree.leaves(plain, is_leaf=is_box)))


def test_a_cache_takes_no_more_frames_than_it_holds(make_stack):
  config, module, params = make_stack()
  cache = init_cache(config, 2, 3)
  with pytest.raises(ValueError, match=r'T = 5: a cache of 3 frames'):
    module.apply({'params': params}, clip(), space_mask=MASK, cache=cache)
