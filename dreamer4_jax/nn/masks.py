"""Space masks between the modalities of a frame (sections 3.1 and 3.3).

A modality id is a small integer per token; `LATENT` marks the tokenizer's
latent tokens. Masks are `[N, N]` bool, true where row may attend to column.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

LATENT = 0


def encoder_mask(modality: Sequence[int]) -> np.ndarray:
  """Latents attend to everything, every other modality to itself."""
  ids = np.asarray(modality)
  return (ids[:, None] == LATENT) | (ids[:, None] == ids[None])


def decoder_mask(modality: Sequence[int]) -> np.ndarray:
  """Latents attend to themselves, others to themselves and the latents."""
  ids = np.asarray(modality)
  return (ids[None] == LATENT) | (ids[:, None] == ids[None])


def hidden_token_mask(tokens: int, hidden: int | None) -> np.ndarray:
  """All attend to all, but only token `hidden` attends to token `hidden`."""
  mask = np.ones((tokens, tokens), bool)
  if hidden is not None:
    mask[:, hidden] = np.arange(tokens) == hidden
  return mask


def padded_mask(mask: ArrayLike, padding: int) -> ArrayLike:
  """Adds tokens that no token sees.

  They see what the last token sees, so that kernels find whole blocks alike.

  Args:
    mask: `[N, N]` bool, of NumPy or JAX.
    padding: how many are added.

  Returns:
    `[N + padding, N + padding]`, likewise.
  """
  pad = (np if isinstance(mask, np.ndarray) else jnp).pad
  return pad(pad(mask, ((0, padding), (0, 0)), 'edge'), ((0, 0), (0, padding)))
