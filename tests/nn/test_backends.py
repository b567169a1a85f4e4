"""Splash attention, interpreted here, agrees with the einsum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.nn import KeyValues, attend, masks, resolve_backend
from dreamer4_jax.nn.backends import (
  SequenceMask,
  attend_sequence,
  splash,
)
from dreamer4_jax.nn.transformer import banded_causal_mask

GROUPS, PER_GROUP, HEAD = 2, 2, 8
SOFT_CAP = 5.0  # Low enough to bite.


def frame_mask():
  """A frame of the tokenizer's decoder, longer than one block."""
  return SequenceMask.make(masks.decoder_mask([0] * 9 + [1] * 121))


def clip_mask():
  """Clips of two segments, another for each row."""
  segments = (np.arange(130) > np.array([[[40]], [[90]]])).astype(np.int32)
  return SequenceMask.make(banded_causal_mask(130, 50), jnp.asarray(segments))


def inputs(dtype):
  rng = np.random.default_rng(0)
  draw = lambda *lead: jnp.asarray(rng.normal(size=(2, 3, *lead)), dtype)
  own = KeyValues(keys=draw(GROUPS, 130, HEAD), values=draw(GROUPS, 130, HEAD))
  to = jnp.asarray(draw(GROUPS, PER_GROUP, 130, HEAD), jnp.float32)
  return 4 * draw(GROUPS, PER_GROUP, 130, HEAD), own, to


@pytest.mark.parametrize(
  'make_mask, soft_cap, dtype, atol',
  [
    (frame_mask, SOFT_CAP, 'float32', 1e-5),
    (frame_mask, SOFT_CAP, 'bfloat16', 2e-2),
    (clip_mask, SOFT_CAP, 'float32', 1e-5),
    (clip_mask, SOFT_CAP, 'bfloat16', 2e-2),
    (clip_mask, None, 'float32', 1e-5),
  ],
)
def test_splash_agrees_with_the_einsum(make_mask, soft_cap, dtype, atol):
  kernel = functools.partial(splash, interpret=True)
  mask = make_mask()
  queries, own, to = inputs(dtype)

  def results(attention):
    def pull(queries, own):
      y = attention(queries, own)
      return jnp.sum(y * to), y

    gradient = jax.grad(pull, argnums=(0, 1), has_aux=True)
    return jax.jit(gradient)(queries, own)

  got = results(lambda q, own: kernel(q, own, mask, soft_cap))
  expected = results(lambda q, own: attend(q, [(own, mask.dense)], soft_cap))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert np.abs(b).max() > 0.3
    np.testing.assert_allclose(a, b, rtol=0, atol=atol * np.abs(b).max())


def test_a_sequence_too_short_for_the_kernel_is_left_to_xla(caplog):
  mask = SequenceMask.make(np.tril(np.ones((5, 5), bool)))
  rng = np.random.default_rng(0)
  draw = lambda *lead: jnp.asarray(rng.normal(size=(*lead, 5, HEAD)))
  own = KeyValues(keys=draw(GROUPS), values=draw(GROUPS))
  queries = draw(GROUPS, PER_GROUP)
  with caplog.at_level('INFO'):
    for _ in range(2):
      got = attend_sequence('splash', queries, own, mask, SOFT_CAP)
  assert np.array_equal(got, attend(queries, [(own, mask.dense)], SOFT_CAP))
  lines = [r.message for r in caplog.records if 'attention' in r.message]
  assert lines == ['attention over 5 tokens: xla, too short for splash']


def test_splash_leaves_a_mask_that_is_known_too_late_to_xla(caplog):
  queries, own, _ = inputs('float32')

  @jax.jit
  def run(mask):
    mask = SequenceMask.make(mask)
    return attend_sequence('splash', queries, own, mask, SOFT_CAP)

  mask = frame_mask()
  with caplog.at_level('INFO'):
    got = run(mask.dense)
  expected = attend(queries, [(own, mask.dense)], SOFT_CAP)
  np.testing.assert_allclose(got, expected, atol=1e-5)
  assert 'xla, splash needs a mask that is known' in caplog.text


def test_a_platform_without_the_backend_is_named():
  assert (
    resolve_backend('auto', 'cpu', 'x')
    == resolve_backend('xla', 'cpu', 'x')
    == 'xla'
  )
  assert resolve_backend('splash', 'tpu', 'x') == 'splash'
  assert resolve_backend('auto', 'tpu', 'x') == 'xla'
  assert resolve_backend('auto', 'gpu', 'x') == 'triton'
  text = "dynamics.attention = 'splash'.*on tpu only, and this is cpu.*'auto'"
  with pytest.raises(ValueError, match=text):
    resolve_backend('splash', 'cpu', 'dynamics.attention')
  with pytest.raises(ValueError, match='on gpu only, and this is tpu'):
    resolve_backend('triton', 'tpu', 'dynamics.attention')
