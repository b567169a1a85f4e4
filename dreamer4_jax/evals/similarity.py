"""How alike two images, or two sets of videos, are.

PSNR is in `video`, LPIPS in `objectives.load_lpips`, the network of FVD in
`i3d`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import pathlib

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
from scipy import linalg

from dreamer4_jax.evals import i3d
from dreamer4_jax.types import Array

_WINDOW = 7
_STABLE = 0.01**2, 0.03**2
PROJECTED = 64
"""Features of a chunk in `latent_features`."""
CHUNK = 16
"""Frames of a chunk."""


def ssim(a: Array, b: Array) -> Array:
  """Structural similarity (Wang et al. 2004), as scikit-image computes it.

  Windows of 7x7 pixels count alike, variances are those of samples, channels
  are averaged, and windows that reach over the edge are left out.

  Args:
    a: `[..., H, W, C]` float, images in [0, 1], at least 7x7.
    b: same shape and range.

  Returns:
    `[...]` float32, 1 for equal images.

  Raises:
    ValueError: shapes differ, or images are too small.
  """
  if a.shape != b.shape or min(a.shape[-3:-1]) < _WINDOW:
    raise ValueError(
      f'SSIM needs two images of one shape, at least {_WINDOW}x{_WINDOW}; got '
      f'{a.shape} and {b.shape}'
    )
  lead = a.shape[:-3]
  x, y = (v.reshape(-1, *a.shape[-3:]).astype(jnp.float32) for v in (a, b))
  # Variances are small differences of large means: take those around 1/2.
  x, y = x - 0.5, y - 0.5
  mean = lambda v: (
    lax.reduce_window(
      v, 0.0, lax.add, (1, _WINDOW, _WINDOW, 1), (1, 1, 1, 1), 'VALID'
    )
    / (_WINDOW**2)
  )
  sample = _WINDOW**2 / (_WINDOW**2 - 1)
  mx, my = mean(x), mean(y)
  vx, vy = (sample * (mean(v * v) - m * m) for v, m in ((x, mx), (y, my)))
  both = sample * (mean(x * y) - mx * my)
  mx, my = mx + 0.5, my + 0.5
  first, second = _STABLE
  found = (2 * mx * my + first) * (2 * both + second)
  found /= (mx * mx + my * my + first) * (vx + vy + second)
  return found.mean(axis=(1, 2, 3)).reshape(lead)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
  """Fréchet distance of two Gaussians fitted to features.

  Source: Dowson and Landau (1982); as in FID and FVD.

  Args:
    a: `[n, D]` features, n >= 2.
    b: `[m, D]`.

  Returns:
    `|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^{1/2})` of the covariances of
    samples; 0 for equal sets.

  Raises:
    ValueError: the shapes do not fit.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  fits = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1]
  if not fits or min(len(a), len(b)) < 2:
    raise ValueError(
      f'needs features [n, D] of two sets, n at least 2; got {a.shape} and '
      f'{b.shape}'
    )
  first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
  # The eigenvalues of A B are those of A^{1/2} B A^{1/2}, which is symmetric.
  values, vectors = linalg.eigh(first)
  root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
  cross = linalg.eigvalsh(root @ second @ root)
  mean = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
  spread = np.trace(first) + np.trace(second)
  distance = mean + spread - 2 * np.sqrt(np.clip(cross, 0, None)).sum()
  return max(float(distance), 0.0)


def fvd(
  a: Iterable[np.ndarray],
  b: Iterable[np.ndarray],
  weights: str | pathlib.Path,
) -> float:
  """Fréchet video distance (arXiv 1812.01717).

  Args:
    a: batches of clips `[B, T, H, W, 3]` uint8, T >= 9; 16 is usual.
    b: likewise.
    weights: file with the weights of I3D, see `i3d.load_i3d`.
  """
  network = i3d.load_i3d(weights)
  features = lambda batches: np.concatenate(
    [np.asarray(network(jnp.asarray(x))) for x in batches]
  )
  return frechet_distance(features(a), features(b))


def latent_features(z: Array) -> np.ndarray:
  """Features of chunks of a tokenizer's latents, for a Fréchet distance.

  They are fixed random projections, so that the distance needs no network but
  the run's own tokenizer. It is no FVD, and only comparable between models of
  one tokenizer.

  Args:
    z: `[B, T, ...]` latents; T is cut to whole chunks of 16 frames.

  Returns:
    `[B * (T // 16), 64]` float32.

  Raises:
    ValueError: clips are shorter than a chunk.
  """
  chunks = z.shape[1] // CHUNK
  if not chunks:
    raise ValueError(f'z {z.shape}: needs clips of at least {CHUNK} frames')
  flat = np.asarray(z[:, : chunks * CHUNK], np.float32)
  flat = flat.reshape(z.shape[0] * chunks, -1)
  key = jax.random.key(0)
  matrix = jax.random.normal(key, (flat.shape[1], PROJECTED), jnp.float32)
  return flat @ np.asarray(matrix / np.sqrt(flat.shape[1]))


def per_image(
  distance: Callable[[Array, Array], Array], a: np.ndarray, b: np.ndarray
) -> np.ndarray:
  """Applies `ssim` or LPIPS to uint8 clips `[B, T, H, W, C]`; `[B, T]`."""
  images = lambda x: jnp.asarray(x, jnp.float32) / 255
  return np.asarray(distance(images(a), images(b)))
