import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.nn import (
  NO_SEGMENT,
  append,
  fill,
  forget_last,
  init_cache,
  masks,
  splice,
  start_segment,
)

FRAMES, TOKENS = 20, 3
MASK = masks.hidden_token_mask(TOKENS, 1)
# The second stream starts an episode at frame 8, when its ring has wrapped.
START = 8
SEGMENTS = jnp.stack([jnp.zeros(FRAMES, int), jnp.arange(FRAMES) // START])
SEGMENTS = jnp.minimum(SEGMENTS, 1)


@pytest.fixture(scope='module', params=[3, 4], ids='ring={}'.format)
def stack(request, make_stack):
  """Returns (config, whole-clip pass, streaming pass) of one ring length."""
  config, module, params = make_stack(context_length=request.param)

  @jax.jit
  def whole(x, segment_ids):
    return module.apply(
      {'params': params}, x, space_mask=MASK, segment_ids=segment_ids
    )

  @jax.jit
  def one(cache, frame, start):
    cache = start_segment(cache, start)
    y, new = module.apply(
      {'params': params}, frame, space_mask=MASK, cache=cache
    )
    return append(cache, new), y

  def stream(cache, x, starts):
    outputs = []
    for t in range(x.shape[1]):
      cache, y = one(cache, x[:, t : t + 1], starts[:, t])
      outputs.append(y)
    return np.concatenate(outputs, axis=1), cache

  return config, whole, stream


def clip():
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.normal(size=(2, FRAMES, TOKENS, 16)), jnp.float32)


def starts():
  return jnp.diff(SEGMENTS, axis=1, prepend=0) > 0


def test_streaming_equals_the_whole_clip_long_after_the_ring_wrapped(stack):
  config, whole, stream = stack
  expected, _ = whole(clip(), SEGMENTS)
  got, cache = stream(init_cache(config, 2, TOKENS), clip(), starts())
  np.testing.assert_allclose(got, expected, atol=2e-5)
  assert cache.frame == FRAMES
  # The past, and where it ends, do matter.
  other, _ = whole(clip(), jnp.zeros_like(SEGMENTS))
  assert np.abs(other - expected)[1, START:].max() > 0.1


def test_the_ring_does_not_grow_and_forgets_all_but_its_length(stack):
  config, _, stream = stack
  empty = init_cache(config, 2, TOKENS)
  _, a = stream(empty, clip(), starts())
  moved = clip().at[:, : FRAMES - 2 * config.context_length].add(1.0)
  _, b = stream(empty, moved, starts())
  shapes = lambda c: jax.tree.map(lambda x: (x.shape, x.dtype), c)
  assert shapes(a) == shapes(empty)
  # Two time layers, each looking context_length - 1 back.
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert np.array_equal(x, y)


@pytest.mark.parametrize('prefill', [2, 11])
def test_prefill_then_streaming_equals_the_whole_clip(stack, prefill):
  config, whole, stream = stack
  expected, entries = whole(clip(), SEGMENTS)
  # No later frame influences the first entries: see information flow.
  new = jax.tree.map(lambda x: x[..., :prefill, :], entries)
  cache = fill(init_cache(config, 2, TOKENS), new, SEGMENTS[:, :prefill])
  assert cache.frame == prefill
  rest, _ = stream(cache, clip()[:, prefill:], starts()[:, prefill:])
  np.testing.assert_allclose(rest, expected[:, prefill:], atol=2e-5)


def test_frames_may_come_two_at_a_time(make_stack):
  config, module, params = make_stack(context_length=4)
  x, segments = clip(), np.asarray(SEGMENTS)
  expected, _ = jax.jit(
    lambda x: module.apply(
      {'params': params}, x, space_mask=MASK, segment_ids=SEGMENTS
    )
  )(x)

  @jax.jit
  def two(cache, frames, ids):
    y, new = module.apply(
      {'params': params}, frames, space_mask=MASK, segment_ids=ids, cache=cache
    )
    cache = append(cache, new, ids[:, 0])
    rest = jax.tree.map(lambda a: a[..., 1:, :], new)
    return append(cache, rest, ids[:, 1]), y

  cache, outputs = init_cache(config, 2, TOKENS), []
  for t in range(0, FRAMES, 2):
    ids = jnp.asarray(segments[:, t : t + 2])
    cache, y = two(cache, x[:, t : t + 2], ids)
    outputs.append(y)
  np.testing.assert_allclose(np.concatenate(outputs, 1), expected, atol=2e-5)


def test_the_last_frame_is_taken_back(stack):
  config, _, stream = stack
  x, none = clip(), jnp.zeros((2, FRAMES), bool)
  empty = init_cache(config, 2, TOKENS)
  _, cache = stream(empty, x[:, :6], none)
  again = forget_last(stream(cache, x[:, 6:7], none)[1])
  assert again.frame == cache.frame and again.slot == cache.slot
  a, _ = stream(cache, x[:, 7:], none)
  b, _ = stream(again, x[:, 7:], none)
  np.testing.assert_array_equal(a, b)


def test_frame_one_million_equals_frame_one_hundred(stack):
  # Both multiples of the ring, so that even the slots agree: what differs is
  # the rotation, exact in phase and rounded once, to 2^-24.
  config, _, stream = stack
  length = config.context_length
  results = []
  for frame in (0, 100 // length * length, 1_000_000 // length * length):
    cache = init_cache(config, 2, TOKENS)
    cache = cache.replace(frame=jnp.uint32(frame))
    y, cache = stream(cache, clip(), starts())
    assert cache.frame == frame + FRAMES
    results.append(y)
  np.testing.assert_allclose(results[1], results[0], atol=2e-5)
  np.testing.assert_allclose(results[2], results[1], atol=2e-5)


def test_overflow_of_the_frame_counter_changes_nothing(stack):
  # Also for a ring whose length does not divide 2**32.
  config, _, stream = stack
  cache = init_cache(config, 2, TOKENS)
  expected, _ = stream(cache, clip(), starts())
  near_the_end = cache.replace(frame=jnp.uint32(2**32 - 7))
  got, after = stream(near_the_end, clip(), starts())
  assert after.frame == FRAMES - 7
  np.testing.assert_allclose(got, expected, atol=2e-5)


def test_the_slot_about_to_be_overwritten_is_not_visible(stack):
  config, _, _ = stack
  length = config.context_length
  cache = init_cache(config, 1, TOKENS)
  assert not cache.visible().any()
  # Nor does a frame that is none see the slots that hold none.
  assert not cache.visible(jnp.full((1, 1), NO_SEGMENT)).any()
  new = jax.tree.map(lambda x: x[..., :1, :], cache.entries)
  for frame in range(3 * length):
    expected = min(frame, length - 1)
    assert cache.visible().sum() == expected
    assert not cache.visible()[0, 0, frame % length]
    cache = append(cache, new)
  cache = start_segment(cache, jnp.array([True]))
  assert not cache.visible().any()


def test_a_past_is_put_in_the_place_of_another(stack):
  config, _, stream = stack
  empty, still = init_cache(config, 2, TOKENS), jnp.zeros((2, FRAMES), bool)
  _, old = stream(empty, clip(), starts())
  _, new = stream(empty, clip()[:, 3:10] + 1, still)
  assert old.frame != new.frame
  where = jnp.asarray([False, True])
  both = splice(old, new, where, rope_base=config.rope_base)
  rest = -clip()[:, :6]  # The ring is written all over again.
  got, after = stream(both, rest, still)
  np.testing.assert_allclose(got[0], stream(old, rest, still)[0][0], atol=2e-5)
  np.testing.assert_allclose(got[1], stream(new, rest, still)[0][1], atol=2e-5)
  assert after.frame == FRAMES + 6
  # On the same clock nothing is computed.
  same = splice(old, old, where, rope_base=config.rope_base)
  jax.tree.map(np.testing.assert_array_equal, same, old)
