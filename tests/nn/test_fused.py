"""Joined weights and padded frames compute what the others compute."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.nn import (
  SpaceTimeTransformer,
  append,
  fuse,
  init_cache,
  masks,
)

TOKENS = 6
MASK = masks.hidden_token_mask(TOKENS, 4)


def tokens(frames=3):
  rng = np.random.default_rng(0)
  shape = (2, frames, TOKENS, 16)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def test_joined_weights_compute_the_same(make_stack):
  _, module, params = make_stack(num_kv_heads=1)
  joined = fuse(params)
  names = {p[-2].key for p, _ in jax.tree_util.tree_leaves_with_path(joined)}
  assert names == {
    'query_key_value', 'query_norm', 'key_norm', 'out', 'gate_up', 'down',
    'norm',
  }  # fmt: skip
  run = jax.jit(
    lambda p: module.apply({'params': p}, tokens(), space_mask=MASK)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    run(joined),
    run(params),
  )


@pytest.mark.parametrize('cached', [False, True], ids=['clip', 'stream'])
def test_padding_changes_nothing(make_stack, cached, monkeypatch):
  config, module, params = make_stack(num_kv_heads=1)
  angles = jnp.ones((TOKENS, 4))

  def run(module):
    config = module.config
    if not cached:
      return module.apply(
        {'params': params}, tokens(), space_mask=MASK, space_angles=angles
      )[0]
    cache, shown = init_cache(config, 2, TOKENS), []
    for t in range(3):
      y, new = module.apply(
        {'params': params}, tokens()[:, t : t + 1], space_mask=MASK,
        space_angles=angles, cache=cache,
      )  # fmt: skip
      cache = append(cache, new)
      shown.append(y)
    assert cache.entries.keys.shape[2] == TOKENS + config.padding(TOKENS)
    return jnp.concatenate(shown, axis=1)

  expected = jax.jit(lambda: run(module))()
  # Eight rows, as for a GPU.
  monkeypatch.setattr(type(config), 'padding', lambda self, n: -n % 8)
  got = jax.jit(lambda: run(SpaceTimeTransformer(config)))()
  assert got.shape == expected.shape
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_frames_are_padded_for_the_kernels_of_gpus_only(make_stack):
  config, _, _ = make_stack()
  assert config.padding(262) == 0
  gpu = dataclasses.replace(config, attention='triton')
  assert [gpu.padding(n) for n in (262, 263, 264, 1472)] == [2, 1, 0, 0]
  # Nine tokens would become sixteen.
  assert [gpu.padding(n) for n in (9, 63, 65)] == [0, 0, 7]
