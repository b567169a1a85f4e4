"""Reconstruction losses of the tokenizer: squared errors and LPIPS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import pathlib

import einops
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.objectives._shapes import same_shape
from dreamer4_jax.types import Array

# LPIPS' own input standardisation, for images in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
_NORM_EPS = 1e-10

# Per convolution: kernel side, stride, padding, (window, stride) of the
# max-pool before it or None, and whether its activation is compared.
_Layer = tuple[int, int, int, tuple[int, int] | None, bool]
_LAYERS: dict[str, tuple[_Layer, ...]] = {
  'vgg': (
    (3, 1, 1, None, False),
    (3, 1, 1, None, True),
    (3, 1, 1, (2, 2), False),
    (3, 1, 1, None, True),
    (3, 1, 1, (2, 2), False),
    (3, 1, 1, None, False),
    (3, 1, 1, None, True),
    (3, 1, 1, (2, 2), False),
    (3, 1, 1, None, False),
    (3, 1, 1, None, True),
    (3, 1, 1, (2, 2), False),
    (3, 1, 1, None, False),
    (3, 1, 1, None, True),
  ),
  'alex': (
    (11, 4, 2, None, True),
    (5, 1, 2, (3, 2), True),
    (3, 1, 1, (3, 2), True),
    (3, 1, 1, None, True),
    (3, 1, 1, None, True),
  ),
}


def mse(pred: Array, target: Array) -> Array:
  """Mean squared error per image, visible and masked patches alike.

  Args:
    pred: `[B, T, H, W, C]` float, images in [0, 1].
    target: same shape and range.

  Returns:
    `[B, T]` float32, the mean over H, W and C (equation 5 of the paper).

  Raises:
    ValueError: if the shapes differ.
  """
  same_shape(pred=pred, target=target)
  difference = pred.astype(jnp.float32) - target.astype(jnp.float32)
  return jnp.mean(jnp.square(difference), axis=(-3, -2, -1))


def vector_mse(
  pred: Mapping[str, Array],
  target: Mapping[str, Array],
  std: Mapping[str, Sequence[float]],
) -> Array:
  """Mean squared error of standardised vectors; each vector counts equally.

  Args:
    pred: components `[B, T, n]` float, in the data's units.
    target: same; components that are not in `std` are ignored.
    std: standard deviations by which each is divided, one or n of them.

  Returns:
    `[B, T]` float32, the mean over the values of each vector, and over vectors.

  Raises:
    ValueError: if the shapes differ.
  """
  errors = []
  for name, scale in std.items():
    same_shape(**{f'pred_{name}': pred[name], f'target_{name}': target[name]})
    x, y = (v[name].astype(jnp.float32) for v in (pred, target))
    scale = jnp.asarray(scale, jnp.float32)[None, None]
    errors.append(jnp.mean(jnp.square((x - y) / scale), axis=-1))
  return jnp.mean(jnp.stack(errors), axis=0)


def load_lpips(path: str) -> Callable[[Array, Array], Array]:
  """Loads a perceptual distance (LPIPS 0.1, arXiv 1801.03924) from a file.

  The `.npz` file holds `net`, either 'vgg' (VGG16, 13 convolutions) or 'alex'
  (5 convolutions); `conv{i}/kernel` HWIO and `conv{i}/bias` `[O]`, counted
  from 0 in forward order; and `lin{j}`, j = 0..4, the channel weights of the
  compared activations (any shape with as many entries as channels). Channel
  widths are those of the file.

  Args:
    path: the file.

  Returns:
    A function of `pred` and `target`, both `[B, T, H, W, 3]` in [0, 1], to
    the distance `[B, T]` float32. It raises `ValueError` for images that have
    another number of channels or are too small to reach the last layer.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if a field is missing or wrong; names file and field.
  """
  net, convs, lins = _read_weights(path)
  layers = _LAYERS[net]

  def features(images: Array) -> list[Array]:
    x = (2 * images - 1 - _row(_SHIFT)) / _row(_SCALE)
    kept = []
    for (kernel, bias), (_, stride, pad, pool, compare) in zip(
      convs, layers, strict=True
    ):
      if pool is not None:
        x = _max_pool(x, *pool)
      x = lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
      x = jax.nn.relu(x + _row(bias))
      if compare:
        kept.append(_unit_length(x))
    if 0 in kept[-1].shape:
      raise ValueError(
        f'images of {images.shape[1]}x{images.shape[2]} pixels are too small '
        f'for the LPIPS network {net!r} of {path}'
      )
    return kept

  def distance(pred: Array, target: Array) -> Array:
    same_shape(pred=pred, target=target)
    if pred.ndim != 5 or pred.shape[-1] != 3:
      raise ValueError(f'LPIPS needs [B, T, H, W, 3] images, got {pred.shape}')
    both = jnp.stack([pred, target]).astype(jnp.float32)
    flat = einops.rearrange(both, 's b t h w c -> (s b t) h w c')
    total = jnp.zeros(pred.shape[:2], jnp.float32)
    for activation, lin in zip(features(flat), lins, strict=True):
      first, second = jnp.split(activation, 2)
      per_image = jnp.einsum(
        'nhwc,c->n',
        jnp.square(first - second),
        lin,
        precision=lax.Precision.HIGHEST,
      ) / (activation.shape[1] * activation.shape[2])
      total += einops.rearrange(per_image, '(b t) -> b t', b=pred.shape[0])
    return total

  return distance


def _read_weights(
  path: str,
) -> tuple[str, Sequence[tuple[np.ndarray, np.ndarray]], Sequence[np.ndarray]]:
  """Reads and checks the file; returns net, convolutions, channel weights."""
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f'no LPIPS weights at {path}')
  with np.load(path) as archive:
    fields = {name: archive[name] for name in archive.files}

  def get(name: str) -> np.ndarray:
    if name not in fields:
      raise ValueError(f'{path}: the field {name!r} is missing')
    return fields[name]

  net = str(get('net'))
  if net not in _LAYERS:
    raise ValueError(f"{path}: net = {net!r}: must be 'vgg' or 'alex'")
  convs, lins = [], []
  channels = 3
  for i, (side, *_, compare) in enumerate(_LAYERS[net]):
    kernel = get(f'conv{i}/kernel').astype(np.float32)
    bias = get(f'conv{i}/bias').astype(np.float32)
    if kernel.ndim != 4 or kernel.shape[:3] != (side, side, channels):
      raise ValueError(
        f'{path}: conv{i}/kernel has shape {kernel.shape}: must be '
        f'[{side}, {side}, {channels}, out] (HWIO)'
      )
    channels = kernel.shape[3]
    if bias.shape != (channels,):
      raise ValueError(
        f'{path}: conv{i}/bias has shape {bias.shape}: must be ({channels},)'
      )
    convs.append((kernel, bias))
    if compare:
      name = f'lin{len(lins)}'
      lin = get(name).astype(np.float32)
      if lin.size != channels:
        raise ValueError(
          f'{path}: {name} has shape {lin.shape}: must hold {channels} entries'
        )
      lins.append(lin.ravel())
  return net, convs, lins


def _row(x: np.ndarray) -> np.ndarray:
  """Shapes `[C]` for broadcasting against `[N, H, W, C]`."""
  return x[None, None, None, :]


def _max_pool(x: Array, window: int, stride: int) -> Array:
  return lax.reduce_window(
    x,
    -jnp.inf,
    lax.max,
    window_dimensions=(1, window, window, 1),
    window_strides=(1, stride, stride, 1),
    padding='VALID',
  )


def _unit_length(x: Array) -> Array:
  """Scales each pixel's channels to length 1; a pixel of zeros stays 0.

  The root is taken of positive numbers only, so that pixels at which no
  channel is active give a finite gradient.
  """
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  active = square > 0
  length = jnp.sqrt(jnp.where(active, square, 1.0))
  return jnp.where(active, x / (length + _NORM_EPS), 0.0)
