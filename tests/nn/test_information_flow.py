import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.nn import masks
from tests.nn import reference

FRAMES, TOKENS = 8, 3
ONE_SEGMENT = [0] * FRAMES
# (space mask, segments): the reach of a depth-8 stack with a band of 3 frames
# is 4 frames back, so 8 frames show the band.
CASES = {
  'full frames': (np.ones((3, 3), bool), ONE_SEGMENT),
  'no space attention': (np.eye(3, dtype=bool), ONE_SEGMENT),
  'segments': (np.ones((3, 3), bool), [0, 0, 0, 1, 1, 1, 2, 2]),
  'separate images': (np.ones((3, 3), bool), list(range(FRAMES))),
  'hidden token': (masks.hidden_token_mask(3, 1), ONE_SEGMENT),
  'decoder': (masks.decoder_mask([0, 1, 1]), ONE_SEGMENT),
  'encoder': (masks.encoder_mask([0, 1, 1]), [0, 0, 0, 0, 1, 1, 1, 1]),
}


@pytest.fixture(scope='module')
def flow(make_stack):
  """Returns influence through gradients, and through outputs."""
  config, module, params = make_stack()
  clip = np.random.default_rng(0).normal(size=(FRAMES, TOKENS, 16))
  clip = jnp.asarray(clip, jnp.float32)
  size = FRAMES * TOKENS

  def apply(x, mask, ids):
    y, _ = module.apply({'params': params}, x, space_mask=mask, segment_ids=ids)
    return y

  def both(mask, ids):
    # Clip i differentiates output token i, clip size + i moves input token i,
    # and the last clip is as it was.
    clips = 2 * size + 1
    pick = jnp.eye(size).reshape(size, FRAMES, TOKENS, 1)
    still = jnp.broadcast_to(clip, (size, FRAMES, TOKENS, 16))
    x = jnp.concatenate([still, still + 0.5 * pick, clip[None]])

    def total(x):
      y = apply(x, mask, jnp.broadcast_to(ids, (clips, FRAMES)))
      return (pick * y[:size] ** 2).sum(), y

    gradient, y = jax.grad(total, has_aux=True)(x)
    gradient = jnp.abs(gradient[:size]).max(-1)
    moved = jnp.abs(y[size:-1] - y[-1:]).max(-1)
    return gradient, moved

  def influence(mask, ids):
    shape = (FRAMES, TOKENS) * 2
    jitted = jax.jit(functools.partial(both, mask))
    gradient, moved = jitted(jnp.asarray(ids))
    gradient = np.asarray(gradient).reshape(shape)
    moved = np.asarray(moved).reshape(shape).transpose(2, 3, 0, 1)
    return config, gradient, moved

  return influence


@pytest.mark.parametrize('case', CASES)
def test_influence_is_exactly_what_the_layers_allow(flow, case):
  # [t, n, s, m]: does input token m of frame s move output n of frame t?
  mask, ids = CASES[case]
  config, gradient, moved = flow(mask, ids)
  allowed = reference.reach(mask, ids, config)
  assert np.all(gradient[~allowed] == 0)
  assert np.all(moved[~allowed] == 0)
  assert np.all(gradient[allowed] > 1e-9)
  assert np.all(moved[allowed] > 1e-7)


def test_the_reach_says_what_the_sections_say():
  """Spot checks of the oracle, in words."""

  class Two:
    depth, time_every, context_length = 8, 4, 3

  full, _ = CASES['full frames']
  reach = reference.reach(full, ONE_SEGMENT, Two)
  assert not reach[3, :, 4:].any()  # later frames
  assert reach[7, 0, 3, 2] and not reach[7, :, :3].any()  # 2 + 2 frames back
  alone = reference.reach(np.eye(3, dtype=bool), ONE_SEGMENT, Two)
  assert not alone[:, 0, :, 1:].any()  # time layers keep to their token
  hidden = reference.reach(CASES['hidden token'][0], ONE_SEGMENT, Two)
  assert not hidden[:, [0, 2], :, 1].any() and hidden[7, 1, 6].all()
