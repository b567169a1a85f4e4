"""All phases with vectors beside the image."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.config import PHASES
from dreamer4_jax.objectives import patch_mask, vector_mse
from dreamer4_jax.training.phases import init_and_step
from dreamer4_jax.training.tokenizer_step import (
  init_tokenizer_state,
  latent_statistics,
  make_tokenizer_step,
)
from tests.models import tiny_world
from tests.models.tiny_world import world_and_params
from tests.models.vector_world import (
  CONFIG,
  PATCHES,
  VECTORS,
  make_batch,
  random_vectors,
)

ROWS, FRAMES = 4, 3
RUN = CONFIG.edit(
  {
    **{f'phases.{phase}.batch_size': ROWS for phase in PHASES},
    **{f'phases.{phase}.clip_lengths': (FRAMES,) for phase in PHASES},
    'phases.tokenizer.steps': 600,
    'phases.tokenizer.max_mask_ratio': 0.5,
    'phases.tokenizer.learning_rate': 3e-3,
    'phases.imagination.horizon': 2,
    'phases.imagination.sampling_steps': 2,
    'optimizer.ema_decay': 0.0,
  }
)
BATCH = jax.tree.map(jnp.asarray, make_batch(ROWS, FRAMES))


def test_the_error_is_that_of_a_loop():
  a, b = random_vectors(1, (2, 3)), random_vectors(2, (2, 3))
  got = vector_mse(a, b, {v.name: v.std for v in VECTORS})
  assert got.shape == (2, 3)
  for row, frame in np.ndindex(2, 3):
    terms = []
    for v in VECTORS:
      std = np.broadcast_to(v.std, (v.size,))
      off = [
        (a[v.name][row, frame, i] - b[v.name][row, frame, i]) / std[i]
        for i in range(v.size)
      ]
      terms.append(np.mean(np.square(off)))
    np.testing.assert_allclose(got[row, frame], np.mean(terms), rtol=1e-5)


def test_an_error_of_different_shapes_is_refused():
  a = {'arm': jnp.zeros((1, 2, 3))}
  b = {'arm': jnp.zeros((1, 2, 2))}
  with pytest.raises(ValueError, match=r'pred_arm \(1, 2, 3\), target_arm'):
    vector_mse(a, b, {'arm': (1.0,)})


def start(world, params, init):
  """A train state of given parameters, for those that it trains."""
  shapes = jax.eval_shape(lambda: nn.unbox(init(jax.random.key(0), params)))
  state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  own = {name: params[name] for name in shapes.params}
  frozen = {name: params[name] for name in shapes.frozen}
  return state.replace(params=own, ema=own, frozen=frozen)


@functools.cache
def tokenizer():
  """Start, train step and reconstruction, compiled once."""
  world, params = world_and_params(RUN)
  init, step = init_and_step(world, 'tokenizer')

  def reconstruct(params, batch, mask):
    _, decoded = world.tokenizer.apply(
      {'params': params['tokenizer']},
      batch.frames,
      vectors=batch.vectors,
      mask=mask,
      segment_ids=batch.segment_ids,
      method='reconstruct',
    )
    return decoded.vectors

  state = start(world, params, init)
  return state, jax.jit(step), jax.jit(reconstruct)


def errors(found, batch):
  """Mean square of each standardised vector."""
  return [
    np.mean(((found[v.name] - np.asarray(batch.vectors[v.name])) / v.std) ** 2)
    for v in VECTORS
  ]


def test_the_term_of_the_tokenizer_is_recomputed():
  state, step, reconstruct = tokenizer()
  assert set(state.rms) == {'mse', 'lpips', 'vectors'}
  key = jax.random.key(5)
  new, metrics = step(state, BATCH, key)
  # One p per image, by which both vectors are hidden, as the patches are.
  mask_key, _ = jax.random.split(key)  # The other one is for noise.
  mask = patch_mask(mask_key, BATCH.frames.shape[:2], PATCHES + 2, 0.5)
  assert mask[..., PATCHES:].any() and not mask[..., PATCHES:].all()
  found = jax.device_get(reconstruct(state.params, BATCH, mask))
  got = metrics['tokenizer/vectors']
  np.testing.assert_allclose(got, np.mean(errors(found, BATCH)), rtol=1e-4)
  # Each term is divided by itself at first: 1 + 1.
  np.testing.assert_allclose(metrics['loss'], 2.0, rtol=1e-5)
  square = new.rms['vectors'].mean_square
  np.testing.assert_allclose(square, 0.01 * got**2, rtol=1e-4)


def test_smooth_vectors_are_learned():
  state, step, reconstruct = tokenizer()
  rng = np.random.default_rng(0)
  time = 0.7 * np.arange(FRAMES)[None, :, None]
  wave = lambda n: np.sin(rng.uniform(0, 6, (ROWS, 1, n)) + time)
  vectors = {v.name: wave(v.size) * v.std + v.mean for v in VECTORS}
  batch = BATCH.replace(
    frames=jnp.full_like(BATCH.frames, 128),
    vectors={k: jnp.asarray(v, jnp.float32) for k, v in vectors.items()},
  )
  for i in range(RUN.phases.tokenizer.steps):
    state, _ = step(state, batch, jax.random.key(i))
  mask = jnp.zeros((ROWS, FRAMES, PATCHES + 2), bool)
  found = jax.device_get(reconstruct(state.params, batch, mask))
  # Of waves whose own root mean square is 0.7.
  assert np.sqrt(errors(found, batch)).max() < 0.15


def test_hidden_are_vectors_as_often_as_patches_of_the_same_image():
  mask = np.asarray(patch_mask(jax.random.key(0), (4000,), PATCHES + 2, 0.9))
  share, vectors = mask[:, :PATCHES].mean(1), mask[:, PATCHES:]
  np.testing.assert_allclose(vectors.mean(), mask.mean(), atol=0.015)
  # They share p: where all patches are seen, a vector mostly is as well.
  assert vectors[share == 0].mean() < 0.2 < 0.6 < vectors[share > 0.8].mean()


def test_without_vectors_there_is_no_term():
  world, _ = world_and_params()
  state = jax.eval_shape(lambda: init_tokenizer_state(world, jax.random.key(0)))
  assert set(state.rms) == {'mse', 'lpips'}
  step = make_tokenizer_step(world)
  batch = tiny_world.make_batch(4, 3)
  _, metrics = jax.eval_shape(step, nn.unbox(state), batch, jax.random.key(0))
  assert 'tokenizer/vectors' not in metrics


@pytest.mark.parametrize('phase', PHASES[1:])
def test_later_phases_train(phase):
  world, params = world_and_params(RUN)
  init, step = init_and_step(world, phase)
  state = start(world, params, init)
  step = jax.jit(step)
  for i in range(2):
    state, metrics = step(state, BATCH, jax.random.key(i))
    assert np.isfinite(list(jax.device_get(metrics).values())).all()
    assert metrics['skipped'] == 0
  assert state.step == 2
  # What is seen beside the image counts, in every phase.
  other = BATCH.replace(vectors=jax.tree.map(lambda x: x + 1, BATCH.vectors))
  _, a = step(state, BATCH, jax.random.key(9))
  _, b = step(state, other, jax.random.key(9))
  assert a['loss'] != b['loss']


def test_statistics_of_latents_see_vectors():
  world, params = world_and_params(CONFIG)
  got = latent_statistics(world, params, [BATCH])
  z, _ = jax.jit(world.latents)(
    params, BATCH.frames, vectors=BATCH.vectors, segment_ids=BATCH.segment_ids
  )
  np.testing.assert_allclose(got['mean'], z.mean((0, 1)), atol=1e-5)
