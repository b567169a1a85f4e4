"""Images to patches and back, with black padding."""

from __future__ import annotations

from einops import rearrange
import jax.numpy as jnp

from dreamer4_jax.types import Array


def patchify(
  images: Array, patch_size: int, grid: tuple[int, int] | None = None
) -> Array:
  """Zero-pads below and to the right, and cuts patches in row order.

  Args:
    images: `[B, T, H, W, C]`, in which 0 is black.
    patch_size: P.
    grid: rows R and columns S of patches; by default as many as are needed.

  Returns:
    `[B, T, R * S, P * P * C]`.
  """
  sides = images.shape[2:4]
  counts = grid or [-(-n // patch_size) for n in sides]
  pad = [(0, m * patch_size - n) for m, n in zip(counts, sides, strict=True)]
  padded = jnp.pad(images, [(0, 0), (0, 0), *pad, (0, 0)])
  return rearrange(
    padded,
    'b t (r p) (s q) c -> b t (r s) (p q c)',
    p=patch_size,
    q=patch_size,
  )


def unpatchify(
  patches: Array,
  height: int,
  width: int,
  patch: int,
  grid: tuple[int, int] | None = None,
) -> Array:
  """Inverts `patchify` and removes the padding.

  Args:
    patches: `[B, T, R * S, P * P * C]`.
    height: H of the unpadded image.
    width: W of the unpadded image.
    patch: P.
    grid: rows R and columns S of patches; by default as many as are needed.

  Returns:
    `[B, T, H, W, C]`.
  """
  rows, columns = grid or (-(-height // patch), -(-width // patch))
  images = rearrange(
    patches,
    'b t (r s) (p q c) -> b t (r p) (s q) c',
    r=rows,
    s=columns,
    p=patch,
    q=patch,
  )
  return images[:, :, :height, :width]
