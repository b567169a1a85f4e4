"""Datasets on disk, and the loader that makes batches of them."""

from dreamer4_jax.data.format import Description, SplitIndex
from dreamer4_jax.data.held_out import expected, held_out_clips, read_clips
from dreamer4_jax.data.pipeline import make_loader
from dreamer4_jax.data.planning import Draws
from dreamer4_jax.data.sources import EpisodeSource

__all__ = [
  'Description',
  'Draws',
  'EpisodeSource',
  'SplitIndex',
  'expected',
  'held_out_clips',
  'make_loader',
  'read_clips',
]
