import jax.numpy as jnp
import numpy as np

from dreamer4_jax.models.patches import patchify, unpatchify


def test_padding_is_zero_below_and_right_and_round_trips():
  # 48x44 with P = 16: 3x3 patches, the last column has 4 empty pixels.
  images = np.random.default_rng(0).uniform(1, 2, (2, 3, 48, 44, 3))
  images = images.astype(np.float32)
  patches = np.asarray(patchify(jnp.asarray(images), 16))
  assert patches.shape == (2, 3, 9, 16 * 16 * 3)
  assert np.array_equal(unpatchify(jnp.asarray(patches), 48, 44, 16), images)
  for row in range(3):
    for col in range(3):
      patch = patches[1, 2, 3 * row + col].reshape(16, 16, 3)
      for p in range(16):
        for q in range(16):
          y, x = 16 * row + p, 16 * col + q
          expected = images[1, 2, y, x] if x < 44 else np.zeros(3)
          assert np.array_equal(patch[p, q], expected)


def test_padding_to_a_larger_grid():
  images = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 2, 5, 7, 2)))
  patches = patchify(images, 4, (3, 2))
  assert patches.shape == (1, 2, 6, 32)
  assert np.array_equal(patches[:, :, :4], patchify(images, 4))
  assert not patches[:, :, 4:].any()
  assert np.array_equal(unpatchify(patches, 5, 7, 4, (3, 2)), images)


def test_padding_of_the_height():
  images = jnp.ones((1, 1, 5, 4, 1))
  patches = np.asarray(patchify(images, 4))
  assert patches.shape == (1, 1, 2, 16)
  assert patches[0, 0, 1].tolist() == [1] * 4 + [0] * 12
  assert np.array_equal(unpatchify(jnp.asarray(patches), 5, 4, 4), images)
