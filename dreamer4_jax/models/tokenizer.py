"""Causal tokenizer: a frame to a few continuous tokens, and back.

Source: section 3.1 of arXiv 2509.24527.
"""

from __future__ import annotations

from collections.abc import Sequence

from flax import linen as nn
from flax import struct
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import (
  ComputeConfig,
  TokenizerConfig,
  VectorComponent,
)
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
from dreamer4_jax.types import Array, Vectors

_IMAGE = 1  # modality id of the patches; vectors have those after it


@struct.dataclass
class Decoded:
  """What the decoder makes of a representation.

  Attributes:
    images: `[B, T, H, W, C]` float32, nominally in [0, 1] but not clipped.
    vectors: components `[B, T, n]` float32, in the data's units.
  """

  images: Array
  vectors: Vectors


class Tokenizer(nn.Module):
  """Encoder and decoder over `[L latent tokens | patches | vectors]`.

  Each vector is one token and a modality of its own. Every method works on
  whole clips and, given a cache, on the next frame of a stream; the two agree.
  `init(key, frames)` makes all parameters, including that of masked patches; it
  needs `vectors` too, if the tokenizer has any.
  """

  config: TokenizerConfig
  vectors: tuple[VectorComponent, ...] = ()
  compute: ComputeConfig = ComputeConfig()

  def setup(self):
    c = self.config
    dtype = jnp.dtype(self.compute.dtype)
    patches = c.grid[0] * c.grid[1]
    pixels = c.patch_size**2 * c.frame_shape[2]
    project = lambda n, axes: Linear((n,), axes, dtype)
    self.patch_in = project(c.width, (None, 'embed'))
    self.latent_in = project(c.width, (None, 'embed'))
    self.mask_token = Embedding(1, c.width, dtype)
    self.latent_tokens = Embedding(c.num_latents, c.width, dtype)
    self.patch_queries = Embedding(patches, c.width, dtype)
    self.patch_slots = Embedding(patches, c.width, dtype, scale=0.5)
    self.decoder_slots = Embedding(c.num_latents, c.width, dtype)
    layers = c.transformer(self.compute)
    self.encoder = SpaceTimeTransformer(layers)
    self.decoder = SpaceTimeTransformer(layers)
    self.latent_out = project(c.bottleneck_dim, ('embed', None))
    self.patch_out = project(pixels, ('embed', None))
    if self.vectors:
      table = lambda: Embedding(len(self.vectors), c.width, dtype)
      self.vector_mask = table()
      self.vector_slots = table()
      self.vector_queries = table()
      self.vector_in = {
        v.name: project(c.width, (None, 'embed')) for v in self.vectors
      }
      self.vector_out = {
        v.name: project(v.size, ('embed', None)) for v in self.vectors
      }

  def encode(
    self,
    frames: Array,
    *,
    vectors: Vectors | None = None,
    mask: Array | None = None,
    segment_ids: Array | None = None,
    cache: TimeCache | None = None,
  ) -> tuple[Array, KeyValues]:
    """Returns the representation of frames.

    Args:
      frames: `[B, T, H, W, C]` uint8.
      vectors: what is observed along with them, components `[B, T, n]` float32;
        those that the tokenizer does not know are ignored.
      mask: `[B, T, patches + vectors]` bool, tokens hidden by MAE, in this
        order; None outside of training.
      segment_ids: `[B, T]` int32.
      cache: encoder cache of a stream, whose next frames these are.

    Returns:
      `[B, T, L, bottleneck_dim]` float32 in (-1, 1), and the new keys and
      values of the encoder.

    Raises:
      ValueError: `frames` are not uint8 of the configured shape, a vector is
        missing or of another shape or dtype, or the mask of another shape.
    """
    c = self.config
    check_frames(frames, c)
    check_vectors(vectors or {}, self.vectors, frames.shape[:2])
    # Padding is black, so pixels are centred after it, not before.
    pixels = patchify(frames.astype(jnp.float32) / 255.0, c.patch_size, c.grid)
    x = self.patch_in(pixels - 0.5)
    vector_mask = None
    if mask is None and self.is_initializing():
      # So that all parameters are made, whatever the arguments.
      tokens = c.grid[0] * c.grid[1] + len(self.vectors)
      mask = jnp.zeros((*frames.shape[:2], tokens), bool)
    if mask is not None:
      mask, vector_mask = self._split_mask(mask)
      hidden = self.mask_token.table()[None, None]
      x = jnp.where(mask[..., None], hidden, x)
    # In addition to the rotations, which tell a latent almost nothing about
    # where a patch is: without this, on small grids the tokenizer never learns
    # to encode small moving objects (docs/notes.md).
    x = x + self.patch_slots.table()[None, None]
    latents = _spread(self.latent_tokens.table(), frames.shape[:2])
    if c.aligned_latents:
      latents += x
    x, new = self.encoder(
      jnp.concatenate([latents, x, *self._embed(vectors, vector_mask)], axis=2),
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
    """Returns the images of a representation, without its vectors.

    Args:
      z: `[B, T, L, bottleneck_dim]`.
      segment_ids: `[B, T]` int32.
      cache: decoder cache of a stream, whose next frames these are.

    Returns:
      `[B, T, H, W, C]` float32, nominally in [0, 1] but not clipped, and the
      new keys and values of the decoder.
    """
    decoded, new = self.decode_modalities(
      z, segment_ids=segment_ids, cache=cache
    )
    return decoded.images, new

  def decode_modalities(
    self,
    z: Array,
    *,
    segment_ids: Array | None = None,
    cache: TimeCache | None = None,
  ) -> tuple[Decoded, KeyValues]:
    """Returns all that a representation shows.

    Args:
      z: `[B, T, L, bottleneck_dim]`.
      segment_ids: `[B, T]` int32.
      cache: decoder cache of a stream, whose next frames these are.

    Returns:
      Images and vectors, and the new keys and values of the decoder.
    """
    c = self.config
    latents = self.latent_in(z)
    latents = latents + self.decoder_slots.table()[None, None]
    queries = [_spread(self.patch_queries.table(), z.shape[:2])]
    if c.aligned_latents:
      queries[0] += latents
    if self.vectors:
      queries.append(_spread(self.vector_queries.table(), z.shape[:2]))
    x, new = self.decoder(
      jnp.concatenate([latents, *queries], axis=2),
      space_mask=masks.decoder_mask(self._modalities()),
      space_angles=self._angles(),
      segment_ids=segment_ids,
      cache=cache,
    )
    end = c.num_latents + c.grid[0] * c.grid[1]
    patches = self.patch_out(x[:, :, c.num_latents : end]).astype(jnp.float32)
    images = unpatchify(patches, *c.frame_shape[:2], c.patch_size, c.grid)
    vectors = {}
    for i, part in enumerate(self.vectors):
      y = self.vector_out[part.name](x[:, :, end + i]).astype(jnp.float32)
      vectors[part.name] = _unstandardise(y, part)
    return Decoded(images=images + 0.5, vectors=vectors), new

  def __call__(self, frames, **kwargs):
    """Returns `(z, images)` of whole clips; arguments as in `encode`."""
    z, decoded = self.reconstruct(frames, **kwargs)
    return z, decoded.images

  def reconstruct(
    self, frames, *, vectors=None, mask=None, segment_ids=None, noise=None
  ) -> tuple[Array, Decoded]:
    """Returns z and what it decodes to, of whole clips; see `encode`.

    The decoder is given z plus `noise`, of the same shape and in units of the
    standard deviation that each value of a frame has over the batch, so that a
    larger z cannot escape it. None gives it z alone.
    """
    z, _ = self.encode(
      frames, vectors=vectors, mask=mask, segment_ids=segment_ids
    )
    shown = z
    if noise is not None:
      # The root has no finite slope at 0, where a constant value would lie.
      shown += noise * jnp.sqrt(z.var((0, 1), keepdims=True) + 1e-8)
    decoded, _ = self.decode_modalities(shown, segment_ids=segment_ids)
    return z, decoded

  def _split_mask(self, mask: Array) -> tuple[Array, Array | None]:
    """Splits a mask into that of the patches and that of the vectors."""
    patches = self.config.grid[0] * self.config.grid[1]
    tokens = patches + len(self.vectors)
    if mask.shape[2] != tokens:
      raise ValueError(
        f'mask has shape {mask.shape}, expected [B, T, {tokens}]: {patches} '
        f'patches and {len(self.vectors)} vectors'
      )
    if not self.vectors:
      return mask, None
    return mask[:, :, :patches], mask[:, :, patches:]

  def _embed(self, vectors: Vectors | None, mask: Array | None) -> list[Array]:
    """The vectors' tokens `[B, T, vectors, D]`; nothing without vectors."""
    if not self.vectors:
      return []
    tokens = [
      self.vector_in[part.name](_standardise(vectors[part.name], part))
      for part in self.vectors
    ]
    x = jnp.stack(tokens, axis=2)
    if mask is not None:
      hidden = self.vector_mask.table()[None, None]
      x = jnp.where(mask[..., None], hidden, x)
    return [x + self.vector_slots.table()[None, None]]

  def _modalities(self) -> list[int]:
    c = self.config
    patches = c.grid[0] * c.grid[1]
    own = range(_IMAGE + 1, _IMAGE + 1 + len(self.vectors))
    return [masks.LATENT] * c.num_latents + [_IMAGE] * patches + [*own]

  def _angles(self) -> Array:
    """2-D rotations for patches, none for other tokens; `[N, h/2]`."""
    c = self.config
    pairs = c.width // c.num_heads // 2
    grid = rope.axial_angles(*c.grid, pairs, c.rope_base)
    parts = [jnp.zeros((c.num_latents, pairs)), grid]
    if self.vectors:
      parts.append(jnp.zeros((len(self.vectors), pairs)))
    return jnp.concatenate(parts)


def tokenizer_caches(
  tokenizer: Tokenizer, batch: int
) -> tuple[TimeCache, TimeCache]:
  """Returns empty encoder and decoder caches for `batch` streams."""
  c = tokenizer.config
  tokens = c.num_latents + c.grid[0] * c.grid[1] + len(tokenizer.vectors)
  empty = init_cache(c.transformer(tokenizer.compute), batch, tokens)
  return empty, empty


def check_frames(frames: Array, config: TokenizerConfig) -> None:
  """Raises `ValueError` unless frames are `[B, T, H, W, C]` uint8."""
  c = config
  expected = c.frame_shape
  if frames.ndim != 5 or frames.shape[2:] != expected:
    raise ValueError(
      f'frames has shape {frames.shape}, expected [B, T, H, W, C] with '
      f'(H, W, C) = {expected} from the tokenizer config'
    )
  if frames.dtype != jnp.uint8:
    raise ValueError(
      f'frames has dtype {frames.dtype}, expected uint8 in 0..255'
    )


def check_vectors(
  vectors: Vectors, space: Sequence[VectorComponent], lead: tuple[int, ...]
) -> None:
  """Raises `ValueError` unless each vector of the space is there.

  Args:
    vectors: components by name.
    space: what is expected.
    lead: expected leading axes, `(B, T)`.
  """
  for part in space:
    if part.name not in vectors:
      raise ValueError(
        f'vectors has components {sorted(vectors)}, expected '
        f'{[p.name for p in space]} from the config'
      )
    x, label = vectors[part.name], f'vectors[{part.name!r}]'
    if tuple(x.shape) != (*lead, part.size):
      raise ValueError(
        f'{label} has shape {x.shape}, expected {(*lead, part.size)}'
      )
    if not jnp.issubdtype(x.dtype, np.floating):
      raise ValueError(f'{label} has dtype {x.dtype}, expected float32')


def _standardise(x: Array, part: VectorComponent) -> Array:
  """A vector `[..., n]` in the data's units to `(x - mean) / std`, float32."""
  mean, std = _moments(part, x.ndim)
  return (x.astype(jnp.float32) - mean) / std


def _unstandardise(x: Array, part: VectorComponent) -> Array:
  """Inverts `_standardise`."""
  mean, std = _moments(part, x.ndim)
  return x * std + mean


def _moments(part: VectorComponent, ndim: int) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation, `[1, ..., n]` float32."""
  lead = (1,) * (ndim - 1)
  spread = lambda x: np.broadcast_to(np.float32(x), (*lead, part.size))
  return spread(part.mean), spread(part.std)


def _spread(table: Array, lead: tuple[int, int]) -> Array:
  """Repeats `[N, D]` to `[B, T, N, D]`."""
  return jnp.broadcast_to(table[None, None], (*lead, *table.shape))
