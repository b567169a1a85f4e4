"""Vectors beside the image: tokens of their own, masked by modality."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.config import Config, VectorComponent
from dreamer4_jax.models import World, tokenizer_caches
from dreamer4_jax.models.patches import patchify
from dreamer4_jax.nn import SpaceTimeTransformer, append, rope, start_segment
from tests.models import tiny_world
from tests.models.tiny_world import world_and_params
from tests.models.vector_world import (
  CONFIG,
  LATENTS,
  PATCHES,
  VECTORS,
  make_batch,
)

FRAMES = 6
BATCH = make_batch(2, FRAMES, starts=[(1, 3)])
VALUES = {k: jnp.asarray(v) for k, v in BATCH.vectors.items()}
PIXELS = jnp.asarray(BATCH.frames)
WORLD, PARAMS = world_and_params(CONFIG)
OWN = PARAMS['tokenizer']
KINDS = ['latent'] * LATENTS + ['image'] * PATCHES + ['arm', 'grip']
TOKENS = len(KINDS)


@jax.jit
def encode(vectors, mask=None, params=OWN):
  return WORLD.tokenizer.apply(
    {'params': params},
    PIXELS,
    vectors=vectors,
    mask=mask,
    segment_ids=BATCH.segment_ids,
    method='encode',
  )


@jax.jit
def decode(z, params=OWN):
  return WORLD.tokenizer.apply(
    {'params': params},
    z,
    segment_ids=BATCH.segment_ids,
    method='decode_modalities',
  )


def sees(sides):
  """Who sees whom by section 3.1 of the paper, one token after another."""
  encoder = sides == 'encoder'
  mask = np.zeros((TOKENS, TOKENS), bool)
  for i, own in enumerate(KINDS):
    for j, other in enumerate(KINDS):
      if own == other:
        mask[i, j] = True
      elif own == 'latent':
        mask[i, j] = encoder
      elif other == 'latent':
        mask[i, j] = not encoder
  return mask


def run(side, tokens):
  """A transformer of the tokenizer, by the rule and with the rotations."""
  c = CONFIG.tokenizer
  pairs = c.width // c.num_heads // 2
  grid = rope.axial_angles(3, 2, pairs, c.rope_base)
  still = lambda n: np.zeros((n, pairs), np.float32)
  x, _ = SpaceTimeTransformer(c.transformer(CONFIG.compute)).apply(
    {'params': OWN[side]},
    jnp.asarray(tokens),
    space_mask=sees(side),
    space_angles=jnp.concatenate([still(LATENTS), grid, still(2)]),
    segment_ids=BATCH.segment_ids,
  )
  return np.asarray(x)


def spread(table):
  return np.broadcast_to(table, (2, FRAMES, *table.shape))


def test_the_encoder_equals_one_put_together_by_hand():
  mask = np.random.default_rng(0).random((2, FRAMES, PATCHES + 2)) < 0.5
  get = lambda name, kind='kernel': np.asarray(OWN[name][kind])
  patches = (patchify(PIXELS / 255.0, 8) - 0.5) @ get('patch_in')
  x = np.where(mask[..., :PATCHES, None], get('mask_token', 'table'), patches)
  tokens = [spread(get('latent_tokens', 'table'))]
  tokens.append(x + get('patch_slots', 'table'))
  for i, part in enumerate(VECTORS):
    value = (BATCH.vectors[part.name] - np.array(part.mean)) / part.std
    value = value @ get(f'vector_in_{part.name}')
    hidden = get('vector_mask', 'table')[i]
    value = np.where(mask[..., PATCHES + i, None], hidden, value)
    tokens.append((value + get('vector_slots', 'table')[i])[:, :, None])
  out = run('encoder', np.concatenate(tokens, axis=2).astype(np.float32))
  expected = np.tanh(out[:, :, :LATENTS] @ get('latent_out'))
  got, _ = encode(VALUES, jnp.asarray(mask))
  np.testing.assert_allclose(got, expected, atol=3e-5)
  # The mask matters: what is hidden or seen changes the result.
  other, _ = encode(VALUES)
  assert np.abs(got - other).max() > 0.01


def test_the_decoder_equals_one_put_together_by_hand():
  rng = np.random.default_rng(1)
  z = rng.uniform(-1, 1, (2, FRAMES, LATENTS, 4)).astype(np.float32)
  get = lambda name, kind='table': np.asarray(OWN[name][kind])
  tokens = [
    z @ get('latent_in', 'kernel') + get('decoder_slots'),
    spread(get('patch_queries')),
    spread(get('vector_queries')),
  ]
  out = run('decoder', np.concatenate(tokens, axis=2))
  decoded, _ = decode(jnp.asarray(z))
  assert decoded.images.shape == BATCH.frames.shape
  assert set(decoded.vectors) == {'arm', 'grip'}
  for i, part in enumerate(VECTORS):
    y = out[:, :, LATENTS + PATCHES + i]
    y = y @ get(f'vector_out_{part.name}', 'kernel') * part.std + part.mean
    got = decoded.vectors[part.name]
    assert got.dtype == jnp.float32 and got.shape == (2, FRAMES, part.size)
    np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-4)
  images, _ = WORLD.tokenizer.apply(
    {'params': OWN}, z, segment_ids=BATCH.segment_ids, method='decode'
  )
  np.testing.assert_allclose(images, decoded.images, atol=2e-5)


def values_of(new):
  """What the time layer stores of every token, `[B, N, G, T, h]`."""
  return np.asarray(new.values)[0]


def changed(a, b):
  """Which tokens differ anywhere, `[N]`."""
  return np.abs(values_of(a) - values_of(b)).max((0, 2, 3, 4)) > 1e-4


@pytest.mark.parametrize('name', ['arm', 'grip'])
def test_a_vector_reaches_the_latents_and_no_other_modality(name):
  moved = {**VALUES, name: VALUES[name] + 1}
  _, a = encode(VALUES)
  _, b = encode(moved)
  # After three space layers; time layers mix no tokens.
  reached = changed(a, b)
  expected = [kind in ('latent', name) for kind in KINDS]
  assert reached.tolist() == expected


def test_the_image_reaches_no_vector():
  _, a = encode(VALUES)
  other = {**OWN, 'patch_slots': jax.tree.map(jnp.negative, OWN['patch_slots'])}
  _, b = encode(VALUES, None, other)
  assert changed(a, b).tolist() == [k in ('latent', 'image') for k in KINDS]


def test_decoder_queries_reach_nobody_else():
  z = jnp.full((2, FRAMES, LATENTS, 4), 0.3)
  _, a = decode(z)
  table = OWN['vector_queries']['table']
  other = {**OWN, 'vector_queries': {'table': table.at[0].add(1.0)}}
  _, b = decode(z, other)
  assert changed(a, b).tolist() == [kind == 'arm' for kind in KINDS]
  _, c = decode(-z)
  assert changed(a, c).all()  # All see the latents.


@pytest.mark.parametrize(('hidden', 'name'), [(0, 'arm'), (1, 'grip')])
def test_a_hidden_vector_does_not_reach_the_latents(hidden, name):
  mask = jnp.zeros((2, FRAMES, PATCHES + 2), bool)
  mask = mask.at[:, :, PATCHES + hidden].set(True)
  moved = {**VALUES, name: VALUES[name] - 3}
  a, _ = encode(VALUES, mask)
  b, _ = encode(moved, mask)
  assert np.array_equal(a, b)
  c, _ = encode(moved)
  assert np.abs(a - c).max() > 0.01


def test_streaming_equals_the_whole_clip():
  z, _ = encode(VALUES)
  decoded, _ = decode(z)
  encoder, decoder = tokenizer_caches(WORLD.tokenizer, 2)

  @jax.jit
  def step(encoder, decoder, frame, vectors, latents, start):
    apply = lambda x, method, **kwargs: WORLD.tokenizer.apply(
      {'params': OWN}, x, method=method, **kwargs
    )
    encoder, decoder = (start_segment(c, start) for c in (encoder, decoder))
    z, new = apply(frame, 'encode', vectors=vectors, cache=encoder)
    encoder = append(encoder, new)
    # From the whole clip's latents, so that rounding does not add up.
    shown, new = apply(latents, 'decode_modalities', cache=decoder)
    return z, shown, encoder, append(decoder, new)

  for t in range(FRAMES):
    now = slice(t, t + 1)
    start = jnp.array([False, t == 3])
    vectors = {k: v[:, now] for k, v in VALUES.items()}
    one, shown, encoder, decoder = step(
      encoder, decoder, PIXELS[:, now], vectors, z[:, now], start
    )
    np.testing.assert_allclose(one, z[:, now], atol=2e-5)
    np.testing.assert_allclose(shown.images, decoded.images[:, now], atol=2e-5)
    for name, value in shown.vectors.items():
      expected = decoded.vectors[name][:, now]
      np.testing.assert_allclose(value, expected, atol=2e-4)


def test_the_world_hands_vectors_on():
  tokens, _ = WORLD.encode(
    PARAMS, PIXELS, vectors=VALUES, segment_ids=BATCH.segment_ids
  )
  z, _ = encode(VALUES)
  expected = WORLD.standardise(PARAMS, z)
  np.testing.assert_allclose(tokens, expected, atol=1e-4)
  shown, _ = WORLD.decode_modalities(
    PARAMS, tokens, segment_ids=BATCH.segment_ids
  )
  decoded, _ = decode(z)
  for name, value in decoded.vectors.items():
    np.testing.assert_allclose(shown.vectors[name], value, atol=1e-3)
  # Latents of a dataset hold them already.
  latents, _ = WORLD.latents(PARAMS, z.astype(jnp.float16), vectors={})
  np.testing.assert_allclose(latents, z, atol=1e-3)


def test_what_is_not_asked_for_is_ignored():
  more = {**VALUES, 'camera': jnp.zeros((1,))}
  assert np.array_equal(encode(more)[0], encode(VALUES)[0])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda v: {}, r"components \[\], expected \['arm', 'grip'\]"),
    (lambda v: {'grip': v['grip']}, r"components \['grip'\], expected"),
    (
      lambda v: {**v, 'arm': v['arm'][..., :2]},
      r"vectors\['arm'\] has shape \(2, 6, 2\), expected \(2, 6, 3\)",
    ),
    (
      lambda v: {**v, 'arm': v['arm'][:, 0]},
      r"'arm'\] has shape \(2, 3\), expected \(2, 6, 3\)",
    ),
    (
      lambda v: {**v, 'grip': v['grip'].astype(jnp.int32)},
      r"'grip'\] has dtype int32, expected float32",
    ),
  ],
)
def test_wrong_vectors_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    encode(change(VALUES))


def test_a_mask_of_the_patches_alone_is_refused():
  mask = jnp.zeros((2, FRAMES, PATCHES), bool)
  with pytest.raises(ValueError, match=r'\[B, T, 8\]: 6 patches and 2 vectors'):
    encode(VALUES, mask)


def test_without_vectors_nothing_is_added():
  def shapes(config):
    init = lambda key: World.from_config(config).init(key, ('tokenizer',))
    return nn.unbox(jax.eval_shape(init, jax.random.key(0)))['tokenizer']

  plain, more = shapes(tiny_world.CONFIG), shapes(CONFIG)
  assert set(plain) == {
    'patch_in', 'latent_in', 'mask_token', 'latent_tokens', 'patch_queries',
    'patch_slots', 'decoder_slots', 'encoder', 'decoder', 'latent_out',
    'patch_out',
  }  # fmt: skip
  assert set(more) - set(plain) == {
    'vector_mask', 'vector_slots', 'vector_queries', 'vector_in_arm',
    'vector_in_grip', 'vector_out_arm', 'vector_out_grip',
  }  # fmt: skip
  assert plain == {name: more[name] for name in plain}
  for name, width in (('arm', 3), ('grip', 1)):
    assert more[f'vector_in_{name}']['kernel'].shape == (width, 16)
    assert more[f'vector_out_{name}']['kernel'].shape == (16, width)
  assert tiny_world.make_batch(1, 1).vectors == {}


def test_the_fingerprint_names_the_vectors():
  config = tiny_world.CONFIG
  plain = World.from_config(config).fingerprint(PARAMS)
  # Of the rest of the config only the tokenizer's sizes count.
  alone = World.from_config(Config(tokenizer=config.tokenizer))
  assert plain == alone.fingerprint(PARAMS)
  low = config.edit({'compute.dtype': 'bfloat16', 'compute.remat': 'full'})
  assert plain == World.from_config(low).fingerprint(PARAMS)
  gain = config.edit({'tokenizer.bottleneck_gain': 0.5})
  assert plain != World.from_config(gain).fingerprint(PARAMS)
  own = WORLD.fingerprint(PARAMS)
  wide = dataclasses.replace(VECTORS[1], std=(0.2,))
  other = dataclasses.replace(CONFIG, vectors=(VECTORS[0], wide))
  assert len({plain, own, World.from_config(other).fingerprint(PARAMS)}) == 3


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'name': 'observation.state'}, r"vectors\.name = 'observation\.state'"),
    ({'size': 0}, r'vectors\[arm\]\.size = 0: must be at least 1'),
    ({'mean': (0.0, 1.0)}, r'\.mean = .*one finite number, or size = 3 of'),
    ({'std': (1.0, 0.0, 1.0)}, r'vectors\[arm\]\.std = .*must be positive'),
    ({'std': (float('nan'),)}, r'vectors\[arm\]\.std'),
  ],
)
def test_a_component_refuses_what_cannot_be(fields, message):
  with pytest.raises(ValueError, match=message):
    VectorComponent(**{'name': 'arm', 'size': 3, **fields})


def test_a_config_with_vectors_survives_json_and_refuses_equal_names():
  assert Config.from_json(CONFIG.to_json()) == CONFIG
  with pytest.raises(ValueError, match=r"vectors = \['grip', 'grip'\]"):
    Config(vectors=(VECTORS[1], VECTORS[1]))
