"""Masked-autoencoder masks of the tokenizer."""

from __future__ import annotations

import jax

from dreamer4_jax.types import Array


def patch_mask(
  key: Array, batch_shape: tuple[int, ...], num_patches: int, max_ratio: float
) -> Array:
  """Chooses the patches that the encoder does not see.

  Each image draws its own p ~ U(0, `max_ratio`) and each of its patches is
  masked with probability p, independently (section 3.1 of the paper).

  Args:
    key: PRNG key, used here only.
    batch_shape: shape of the images, usually `(B, T)`.
    num_patches: patches of one image.
    max_ratio: largest masking probability, in [0, 1]; 0 masks nothing.

  Returns:
    `[*batch_shape, num_patches]` bool, true where the patch is masked.
  """
  ratio_key, patch_key = jax.random.split(key)
  ratio = max_ratio * jax.random.uniform(ratio_key, batch_shape)
  draw = jax.random.uniform(patch_key, (*batch_shape, num_patches))
  return draw < ratio[..., None]
