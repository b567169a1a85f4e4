"""Causal tokenizer: a frame to a few continuous tokens, and back.

Source: section 3.1 of arXiv 2509.24527.
"""

from __future__ import annotations

from flax import linen as nn
import jax.numpy as jnp

from dreamer4_jax.config import TokenizerConfig
from dreamer4_jax.models.patches import patchify, unpatchify
from dreamer4_jax.nn import (
  Embedding,
  KeyValues,
  Linear,
  SpaceTimeTransformer,
  TimeCache,
  init_cache,
  masks,
  rope,
)
from dreamer4_jax.types import Array

_IMAGE = 1  # modality id of the patches


class Tokenizer(nn.Module):
  """Encoder and decoder over `[L latent tokens | patches]`.

  Every method works on whole clips and, given a cache, on the next frame of a
  stream; the two agree.
  """

  config: TokenizerConfig

  def setup(self):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    patches = c.grid[0] * c.grid[1]
    pixels = c.patch_size**2 * c.channels
    project = lambda n, axes: Linear((n,), axes, dtype)
    self.patch_in = project(c.width, (None, 'embed'))
    self.latent_in = project(c.width, (None, 'embed'))
    self.mask_token = Embedding(1, c.width, dtype)
    self.latent_tokens = Embedding(c.num_latents, c.width, dtype)
    self.patch_queries = Embedding(patches, c.width, dtype)
    self.patch_slots = Embedding(patches, c.width, dtype, scale=0.5)
    self.decoder_slots = Embedding(c.num_latents, c.width, dtype)
    self.encoder = SpaceTimeTransformer(c.stack(c.encoder_depth))
    self.decoder = SpaceTimeTransformer(c.stack(c.decoder_depth))
    self.latent_out = project(c.bottleneck_dim, ('embed', None))
    self.patch_out = project(pixels, ('embed', None))

  def encode(
    self,
    frames: Array,
    *,
    mask: Array | None = None,
    segment_ids: Array | None = None,
    cache: TimeCache | None = None,
  ) -> tuple[Array, KeyValues]:
    """Returns the representation of frames.

    Args:
      frames: `[B, T, H, W, C]` uint8.
      mask: `[B, T, patches]` bool, patches hidden by MAE; None off training.
      segment_ids: `[B, T]` int32.
      cache: encoder cache of a stream; then T = 1.

    Returns:
      `[B, T, L, bottleneck_dim]` float32 in (-1, 1), and the new keys and
      values of the encoder.

    Raises:
      ValueError: `frames` are not uint8 of the configured shape.
    """
    c = self.config
    check_frames(frames, c)
    # Padding is black: centred after it, not before.
    pixels = patchify(frames.astype(jnp.float32) / 255.0, c.patch_size, c.grid)
    x = self.patch_in(pixels - 0.5)
    if mask is not None:
      hidden = self.mask_token.table()[None, None]
      x = jnp.where(mask[..., None], hidden, x)
    # Beside the rotations, which tell a latent almost nothing of where a patch
    # is: on small grids the tokenizer else never learns to encode small things
    # that move (docs/notes.md).
    x = x + self.patch_slots.table()[None, None]
    latents = _spread(self.latent_tokens.table(), frames.shape[:2])
    x, new = self.encoder(
      jnp.concatenate([latents, x], axis=2),
      space_mask=masks.encoder_mask(self._modalities()),
      space_angles=self._angles(),
      segment_ids=segment_ids,
      cache=cache,
    )
    z = self.latent_out(x[:, :, : c.num_latents]).astype(jnp.float32)
    return jnp.tanh(c.bottleneck_gain * z), new

  def decode(
    self,
    z: Array,
    *,
    segment_ids: Array | None = None,
    cache: TimeCache | None = None,
  ) -> tuple[Array, KeyValues]:
    """Returns the images of a representation.

    Args:
      z: `[B, T, L, bottleneck_dim]`.
      segment_ids: `[B, T]` int32.
      cache: decoder cache of a stream; then T = 1.

    Returns:
      `[B, T, H, W, C]` float32, nominally in [0, 1] but not clipped, and the
      new keys and values of the decoder.
    """
    c = self.config
    latents = self.latent_in(z)
    latents = latents + self.decoder_slots.table()[None, None]
    queries = _spread(self.patch_queries.table(), z.shape[:2])
    x, new = self.decoder(
      jnp.concatenate([latents, queries], axis=2),
      space_mask=masks.decoder_mask(self._modalities()),
      space_angles=self._angles(),
      segment_ids=segment_ids,
      cache=cache,
    )
    patches = self.patch_out(x[:, :, c.num_latents :]).astype(jnp.float32)
    images = unpatchify(
      patches, c.image_height, c.image_width, c.patch_size, c.grid
    )
    return images + 0.5, new

  def __call__(self, frames, *, mask=None, segment_ids=None):
    """Returns `(z, images)` of whole clips; arguments as in `encode`."""
    z, _ = self.encode(frames, mask=mask, segment_ids=segment_ids)
    images, _ = self.decode(z, segment_ids=segment_ids)
    return z, images

  def _modalities(self) -> list[int]:
    c = self.config
    patches = c.grid[0] * c.grid[1]
    return [masks.LATENT] * c.num_latents + [_IMAGE] * patches

  def _angles(self) -> Array:
    """2-D rotations for patches, none for latents; `[N, h/2]`."""
    c = self.config
    pairs = c.width // c.num_heads // 2
    grid = rope.axial_angles(*c.grid, pairs, c.rope_base)
    return jnp.concatenate([jnp.zeros((c.num_latents, pairs)), grid])


def tokenizer_caches(
  config: TokenizerConfig, batch: int
) -> tuple[TimeCache, TimeCache]:
  """Returns empty encoder and decoder caches for `batch` streams."""
  tokens = config.num_latents + config.grid[0] * config.grid[1]
  return (
    init_cache(config.stack(config.encoder_depth), batch, tokens),
    init_cache(config.stack(config.decoder_depth), batch, tokens),
  )


def check_frames(frames: Array, config: TokenizerConfig) -> None:
  """Raises `ValueError` unless frames are `[B, T, H, W, C]` uint8."""
  c = config
  expected = (c.image_height, c.image_width, c.channels)
  if frames.ndim != 5 or frames.shape[2:] != expected:
    raise ValueError(
      f'frames has shape {frames.shape}, expected [B, T, H, W, C] with '
      f'(H, W, C) = {expected} from the tokenizer config'
    )
  if frames.dtype != jnp.uint8:
    raise ValueError(
      f'frames has dtype {frames.dtype}, expected uint8 in 0..255'
    )


def _spread(table: Array, lead: tuple[int, int]) -> Array:
  """Repeats `[N, D]` to `[B, T, N, D]`."""
  return jnp.broadcast_to(table[None, None], (*lead, *table.shape))
