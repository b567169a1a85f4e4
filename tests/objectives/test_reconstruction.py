import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from dreamer4_jax.objectives import load_lpips, mse
from dreamer4_jax.objectives.reconstruction import _unit_length

# (kernel side, padding, stride, pool before) and the compared activations.
SPEC = {
  'vgg': (
    [(3, 1, 1, i in (2, 4, 7, 10)) for i in range(13)],
    (1, 3, 6, 9, 12),
    (2, 2),
  ),
  'alex': (
    [(11, 2, 4, False), (5, 2, 1, True), (3, 1, 1, True)]
    + [(3, 1, 1, False)] * 2,
    (0, 1, 2, 3, 4),
    (3, 2),
  ),
}
SIZE = {'vgg': (17, 20), 'alex': (37, 35)}


def weights(net, seed=0):
  """Random weights of the right layout, 2 to 4 channels wide."""
  rng = np.random.default_rng(seed)
  convs, compared, _ = SPEC[net]
  out, width = {'net': np.array(net)}, 3
  for i, (side, *_) in enumerate(convs):
    new = 2 + i % 3
    out[f'conv{i}/kernel'] = rng.normal(size=(side, side, width, new)) / side
    out[f'conv{i}/bias'] = 0.1 * rng.normal(size=new) + 0.1
    width = new
    if i in compared:
      out[f'lin{compared.index(i)}'] = rng.uniform(size=(1, new, 1, 1))
  return out


def slow_lpips(w, a, b):
  """LPIPS of two `[H, W, 3]` images by scipy and numpy, in float64."""
  convs, compared, (window, hop) = SPEC[str(w['net'])]
  shift = np.array([-0.030, -0.088, -0.188])
  scale = np.array([0.458, 0.448, 0.450])
  maps = [((2 * x - 1) - shift) / scale for x in (a, b)]
  total = 0.0
  for i, (_, pad, stride, pool) in enumerate(convs):
    kernel, bias = w[f'conv{i}/kernel'], w[f'conv{i}/bias']
    new = []
    for x in maps:
      if pool:
        rows = range(0, x.shape[0] - window + 1, hop)
        cols = range(0, x.shape[1] - window + 1, hop)
        x = np.array(
          [
            [x[r : r + window, c : c + window].max((0, 1)) for c in cols]
            for r in rows
          ]
        )
      x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
      planes = [
        sum(
          correlate2d(x[..., p], kernel[..., p, q], 'valid')
          for p in range(x.shape[-1])
        )
        for q in range(kernel.shape[-1])
      ]
      x = np.stack(planes, -1)[::stride, ::stride] + bias
      new.append(np.maximum(x, 0))
    maps = new
    if i in compared:
      unit = [
        x / (np.sqrt((x**2).sum(-1, keepdims=True)) + 1e-10) for x in maps
      ]
      lin = w[f'lin{compared.index(i)}'].ravel()
      total += (((unit[0] - unit[1]) ** 2) * lin).sum(-1).mean()
  return total


@pytest.fixture(scope='module', params=['vgg', 'alex'])
def case(request, tmp_path_factory):
  net = request.param
  path = str(tmp_path_factory.mktemp('lpips') / f'{net}.npz')
  w = weights(net)
  np.savez(path, **w)
  rng = np.random.default_rng(1)
  images = rng.uniform(size=(2, 2, 1, *SIZE[net], 3))
  a, b = jnp.asarray(images, jnp.float32)
  return w, jax.jit(load_lpips(path)), a, b


def test_lpips_matches_a_slow_implementation(case):
  w, lpips, a, b = case
  out = lpips(a, b)
  assert out.shape == (2, 1) and out.dtype == jnp.float32
  expected = [
    [slow_lpips(w, *(np.asarray(x[i, 0], float) for x in (a, b)))]
    for i in range(2)
  ]
  assert np.min(expected) > 0.01
  np.testing.assert_allclose(out, expected, rtol=1e-4)


def test_lpips_is_zero_for_equal_images_and_symmetric(case):
  _, lpips, a, b = case
  # Convolution may sum the two halves of a batch in another order.
  assert np.all(np.abs(lpips(a, a)) < 1e-12)
  np.testing.assert_allclose(lpips(a, b), lpips(b, a), rtol=1e-5)
  low = a.astype(jnp.bfloat16)
  assert np.array_equal(lpips(low, b), lpips(low.astype(jnp.float32), b))


def test_lpips_gradient_is_finite_where_activations_die(tmp_path):
  w = weights('alex')
  # All activations of one layer are zero at every pixel.
  w['conv2/bias'] = np.full_like(w['conv2/bias'], -1e3)
  np.savez(tmp_path / 'w.npz', **w)
  lpips = load_lpips(str(tmp_path / 'w.npz'))
  images = np.random.default_rng(0).uniform(size=(2, 1, 1, 31, 31, 3))
  a, b = jnp.asarray(images, jnp.float32)
  value, grad = jax.jit(jax.value_and_grad(lambda x: lpips(x, b).sum()))(a)
  assert np.isfinite(value) and np.all(np.isfinite(grad)) and np.any(grad)
  expected = slow_lpips(w, np.asarray(a[0, 0]), np.asarray(b[0, 0]))
  np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('net', None, "'net' is missing"),
    ('net', 'resnet', "net = 'resnet'"),
    ('conv3/kernel', None, "'conv3/kernel' is missing"),
    ('conv4/bias', None, "'conv4/bias' is missing"),
    ('lin2', None, "'lin2' is missing"),
    ('lin2', np.ones(7), 'lin2 has shape'),
    ('conv1/kernel', np.ones((2, 2, 5, 5)), 'conv1/kernel has shape'),
    ('conv1/bias', np.ones(9), 'conv1/bias has shape'),
  ],
)
def test_lpips_errors_name_file_and_field(tmp_path, field, value, message):
  w = weights('alex')
  del w[field]
  if value is not None:
    w[field] = value
  path = tmp_path / 'odd.npz'
  np.savez(path, **w)
  with pytest.raises(ValueError, match=message) as error:
    load_lpips(str(path))
  assert str(path) in str(error.value)


def test_lpips_rejects_absent_files_and_unfit_images(tmp_path):
  with pytest.raises(
    FileNotFoundError, match=r'no LPIPS weights at .*none\.npz'
  ):
    load_lpips(str(tmp_path / 'none.npz'))
  np.savez(tmp_path / 'w.npz', **weights('alex'))
  lpips = load_lpips(str(tmp_path / 'w.npz'))
  for shape, message in (
    ((1, 1, 30, 40, 3), '30x40 pixels are too small'),
    ((1, 1, 40, 40, 1), 'B, T, H, W, 3'),
  ):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(lpips, images, images)


def test_unit_length_by_hand_and_at_zero():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
  np.testing.assert_allclose(_unit_length(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
  # d(x0 / |x|) = (x1^2, -x0 x1) / |x|^3 = (16, -12) / 125; 0 at the origin.
  grad = jax.jit(jax.grad(lambda x: _unit_length(x)[:, 0].sum()))(x)
  np.testing.assert_allclose(grad, [[0.128, -0.096], [0, 0]], rtol=1e-5)


def test_mse_by_hand():
  # Image (0, 1): errors 0.5 in one of 12 entries: 0.25 / 12.
  target = jnp.zeros((1, 2, 2, 2, 3))
  pred = target.at[0, 1, 0, 1, 2].set(0.5)
  np.testing.assert_allclose(mse(pred, target), [[0, 0.25 / 12]], rtol=1e-6)
  with pytest.raises(ValueError, match='pred'):
    mse(pred, target[:, :1])


def test_mse_of_low_precision_is_computed_in_float32():
  images = np.random.default_rng(0).uniform(size=(2, 2, 3, 8, 8, 3))
  pred, target = jnp.asarray(images, jnp.bfloat16)
  out = mse(pred, target)
  assert out.dtype == jnp.float32
  exact = np.asarray(pred, float) - np.asarray(target, float)
  np.testing.assert_allclose(out, (exact**2).mean((2, 3, 4)), rtol=1e-5)
