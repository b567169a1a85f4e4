import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.models import Tokenizer, tokenizer_caches
from dreamer4_jax.nn import append, start_segment
from tests.models.tiny_world import CONFIG, make_batch, world_and_params

FRAMES = 9
BATCH = make_batch(2, FRAMES, starts=[(1, 5)])
WORLD, PARAMS = world_and_params()


def method(name, **kwargs):
  def call(x, **more):
    return WORLD.tokenizer.apply(
      {'params': PARAMS['tokenizer']}, x, method=name, **kwargs, **more
    )

  return call


encode, decode = jax.jit(method('encode')), jax.jit(method('decode'))


def stream(name, cache, x):
  """Runs a method frame by frame, with an episode start in stream 1."""
  one = jax.jit(method(name))
  outputs = []
  for t in range(FRAMES):
    start = (t > 0) & (np.diff(BATCH.segment_ids, axis=1)[:, t - 1] > 0)
    cache = start_segment(cache, jnp.asarray(start))
    y, new = one(x[:, t : t + 1], cache=cache)
    cache = append(cache, new)
    outputs.append(y)
  return jnp.concatenate(outputs, axis=1)


@pytest.fixture(scope='module')
def latents():
  return encode(jnp.asarray(BATCH.frames), segment_ids=BATCH.segment_ids)[0]


def test_latents_lie_strictly_between_minus_one_and_one(latents):
  assert latents.shape == (2, FRAMES, 4, 4) and latents.dtype == jnp.float32
  assert np.abs(latents).max() < 1
  # The range is used, so it is tanh that bounds it.
  assert np.abs(np.arctanh(np.asarray(latents, np.float64))).max() > 1


def test_the_gain_scales_what_the_tanh_bounds(latents):
  config = dataclasses.replace(WORLD.config.tokenizer, bottleneck_gain=0.25)
  scaled = jax.jit(functools.partial(Tokenizer(config).apply, method='encode'))
  small, _ = scaled(
    {'params': PARAMS['tokenizer']},
    jnp.asarray(BATCH.frames),
    segment_ids=BATCH.segment_ids,
  )
  before, after = (
    np.arctanh(np.asarray(z, np.float64)) for z in (latents, small)
  )
  np.testing.assert_allclose(after, 0.25 * before, atol=1e-4)


def test_streaming_encoder_equals_the_whole_clip(latents):
  cache, _ = tokenizer_caches(WORLD.tokenizer, 2)
  got = stream('encode', cache, jnp.asarray(BATCH.frames))
  np.testing.assert_allclose(got, latents, atol=2e-5)


def test_streaming_decoder_equals_the_whole_clip(latents):
  images, _ = decode(latents, segment_ids=BATCH.segment_ids)
  assert images.shape == BATCH.frames.shape and images.dtype == jnp.float32
  _, cache = tokenizer_caches(WORLD.tokenizer, 2)
  got = stream('decode', cache, latents)
  np.testing.assert_allclose(got, images, atol=2e-5)


def test_padding_is_as_black_as_a_black_image():
  # 20 rows in patches of 8: the last row of patches is half padding. Frames
  # that have the same black rows themselves are the same to the encoder.
  black = dataclasses.replace(WORLD.config.tokenizer, frame_shape=(24, 12, 3))
  frames = jnp.asarray(BATCH.frames)
  padded = jnp.pad(frames, [(0, 0), (0, 0), (0, 4), (0, 0), (0, 0)])
  apply = jax.jit(functools.partial(Tokenizer(black).apply, method='encode'))
  found, _ = apply({'params': PARAMS['tokenizer']}, padded)
  np.testing.assert_allclose(encode(frames)[0], found, atol=1e-6)


def test_a_larger_grid_is_padding_that_no_image_shows(latents):
  config = dataclasses.replace(
    WORLD.config.tokenizer, patch_grid=(5, 2), frame_shape=(20, 10, 3)
  )
  assert config.grid == (5, 2)
  tokenizer, frames = Tokenizer(config), jnp.asarray(BATCH.frames)[..., :10, :]
  params = jax.eval_shape(tokenizer.init, jax.random.key(0), frames[:1, :1])
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
  z, images = jax.jit(tokenizer.apply)(zeros, frames)
  assert z.shape == latents.shape and images.shape == frames.shape
  for small in ((2, 2), (5, 1)):
    text = rf'patch_grid = \({small[0]}, {small[1]}\): .* none, or .*\(3, 2\)'
    with pytest.raises(ValueError, match=text):
      dataclasses.replace(config, patch_grid=small)


def test_masked_patches_do_not_reach_the_latents():
  frames = jnp.asarray(BATCH.frames)
  mask = np.zeros((2, FRAMES, 6), bool)
  mask[:, :, 4] = True  # row 2, column 0 of 3x2: pixels 16.. and ..8
  moved = frames.at[:, :, 16:, :8].set(99)
  a, _ = encode(frames, mask=jnp.asarray(mask))
  b, _ = encode(moved, mask=jnp.asarray(mask))
  assert np.array_equal(a, b)
  c, _ = encode(moved, mask=jnp.zeros_like(mask))
  assert np.abs(a - c).max() > 0.01


def test_init_makes_the_mask_token_too():
  tokenizer, frames = WORLD.tokenizer, jnp.asarray(BATCH.frames)
  params = jax.eval_shape(tokenizer.init, jax.random.key(0), frames)
  mask = jnp.ones((2, FRAMES, 6), bool)
  masked = lambda params: tokenizer.apply(params, frames, mask=mask)
  z, images = jax.eval_shape(masked, params)
  assert z.shape == (2, FRAMES, 4, 4) and images.shape == frames.shape


@functools.partial(jax.jit, static_argnums=0)
def apply_method(name, params, x):
  return WORLD.tokenizer.apply({'params': params}, x, method=name)


def time_entries(name, params, x):
  """What the time layer stores of every token, `[B, N, G, T, h]`."""
  _, new = apply_method(name, {**PARAMS['tokenizer'], **params}, x)
  return np.asarray(new.values)[0]


def test_decoder_latents_do_not_see_patches_but_patches_see_latents(latents):
  queries = PARAMS['tokenizer']['patch_queries']
  other = jax.tree.map(lambda x: x + 1.0, queries)
  a = time_entries('decode', {}, latents)
  b = time_entries('decode', {'patch_queries': other}, latents)
  assert np.array_equal(a[:, :4], b[:, :4])
  assert np.abs(a - b)[:, 4:].max() > 0.01
  c = time_entries('decode', {}, latents * 0.5)
  assert np.all(np.abs(a - c)[:, 4:].max((0, 2, 3, 4)) > 1e-3)


def test_encoder_patches_do_not_see_latents_but_latents_see_patches():
  frames = jnp.asarray(BATCH.frames)
  tokens = PARAMS['tokenizer']['latent_tokens']
  other = jax.tree.map(lambda x: x + 1.0, tokens)
  a = time_entries('encode', {}, frames)
  b = time_entries('encode', {'latent_tokens': other}, frames)
  assert np.array_equal(a[:, 4:], b[:, 4:])
  assert np.abs(a - b)[:, :4].max() > 0.01
  c = time_entries('encode', {}, 255 - frames)
  assert np.all(np.abs(a - c)[:, :4].max((0, 2, 3, 4)) > 1e-3)


def test_wrong_frames_are_refused_with_shape_dtype_and_expectation():
  frames = jnp.asarray(BATCH.frames)
  with pytest.raises(ValueError, match=r'\(2, 9, 20, 11, 3\), expected .*12'):
    encode(frames[:, :, :, :11])
  with pytest.raises(ValueError, match=r'\(9, 20, 12, 3\), expected \[B, T'):
    encode(frames[0])
  with pytest.raises(ValueError, match='dtype float32, expected uint8'):
    encode(frames.astype(jnp.float32))


def test_standardised_tokens_decode_to_the_same_images(latents):
  tokens = WORLD.standardise(PARAMS, latents)
  mean, std = np.asarray(PARAMS['latents']['mean']), PARAMS['latents']['std']
  z = (np.asarray(latents) - mean) / np.asarray(std)
  np.testing.assert_allclose(tokens, z.reshape(2, FRAMES, 2, 8), rtol=1e-5)
  a, _ = jax.jit(WORLD.decode)(PARAMS, tokens)
  b, _ = decode(latents)
  np.testing.assert_allclose(a, b, atol=2e-5)


def six_latents():
  """The config of a tokenizer with as many latents as patches; parameters."""
  world, params = world_and_params(CONFIG.edit({'tokenizer.num_latents': 6}))
  return world.config.tokenizer, params['tokenizer']


def test_aligned_latents_start_from_their_patches():
  # Six patches. With the outputs of all blocks at 0 nothing is mixed: latent i
  # is made of patch i alone, and patch i of latent i.
  sizes, params = six_latents()
  frames = jnp.asarray(BATCH.frames)
  still = lambda path, x: x * (path[-2].key not in ('out', 'down'))
  params = jax.tree_util.tree_map_with_path(still, params)

  def touched(aligned):
    config = dataclasses.replace(sizes, aligned_latents=aligned)
    model = functools.partial(Tokenizer(config).apply, {'params': params})
    apply = jax.jit(model)
    draw = jax.jit(functools.partial(model, method='decode'))
    z, images = apply(frames)
    # Another first patch, of 8 pixels, or another first latent.
    other, _ = apply(frames.at[:, :, :8, :8].add(1))
    moved, _ = draw(z.at[:, :, 0].add(0.1))
    pixels = np.abs(moved - images).max((0, 1, 4)) > 1e-4
    return np.abs(other - z).max((0, 1, 3)) > 1e-5, pixels

  latents, pixels = touched(aligned=True)
  np.testing.assert_array_equal(latents, np.arange(6) == 0)
  corner = np.zeros((20, 12), bool)
  corner[:8, :8] = True
  np.testing.assert_array_equal(pixels, corner)
  assert not any(x.any() for x in touched(aligned=False))


def test_an_aligned_latent_sees_nothing_of_a_patch_that_is_hidden():
  sizes, params = six_latents()
  model = Tokenizer(dataclasses.replace(sizes, aligned_latents=True))
  frames = jnp.asarray(BATCH.frames)
  mask = np.arange(6) == np.zeros((2, FRAMES, 1))

  @jax.jit
  def encode(x):
    return model.apply({'params': params}, x, mask=mask, method='encode')[0]

  a = encode(frames)
  np.testing.assert_array_equal(a, encode(frames.at[:, :, :8, :8].add(1)))
  assert np.abs(a - encode(frames.at[:, :, 8:, 8:].add(1))).max() > 1e-4


def test_noise_on_the_latents_is_in_units_of_their_spread(latents):
  frames = jnp.asarray(BATCH.frames)
  noise = jax.random.normal(jax.random.key(2), latents.shape)
  ids = jnp.asarray(BATCH.segment_ids)
  z, decoded = jax.jit(method('reconstruct', noise=noise, segment_ids=ids))(
    frames
  )
  # The z without noise is returned.
  np.testing.assert_allclose(z, latents, atol=1e-6)
  spread = np.asarray(latents, np.float64).std((0, 1))
  images, _ = decode(latents + np.asarray(noise) * spread, segment_ids=ids)
  np.testing.assert_allclose(decoded.images, images, atol=1e-4)
  # Where nothing varies, there is no noise and no NaN gradient.
  still = jnp.zeros_like(frames)
  slope = jax.jit(
    jax.grad(
      lambda params: WORLD.tokenizer.apply(
        {'params': params}, still, noise=noise, method='reconstruct'
      )[1].images.sum()
    )
  )(PARAMS['tokenizer'])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
