"""Images to patches and back, with zero padding."""

from __future__ import annotations

from einops import rearrange
import jax.numpy as jnp

from dreamer4_jax.types import Array


def patchify(images: Array, patch_size: int) -> Array:
  """Zero-pads below and to the right, and cuts patches in row order.

  Args:
    images: `[B, T, H, W, C]`.
    patch_size: P.

  Returns:
    `[B, T, ceil(H / P) * ceil(W / P), P * P * C]`.
  """
  pad = [(0, -n % patch_size) for n in images.shape[2:4]]
  padded = jnp.pad(images, [(0, 0), (0, 0), *pad, (0, 0)])
  return rearrange(
    padded,
    'b t (r p) (s q) c -> b t (r s) (p q c)',
    p=patch_size,
    q=patch_size,
  )


def unpatchify(patches: Array, height: int, width: int, patch: int) -> Array:
  """Inverts `patchify` and removes the padding.

  Args:
    patches: `[B, T, N, P * P * C]`.
    height: H of the unpadded image.
    width: W of the unpadded image.
    patch: P.

  Returns:
    `[B, T, H, W, C]`.
  """
  images = rearrange(
    patches,
    'b t (r s) (p q c) -> b t (r p) (s q) c',
    r=-(-height // patch),
    p=patch,
    q=patch,
  )
  return images[:, :, :height, :width]
