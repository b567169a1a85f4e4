"""The tiny world with two vectors beside the image."""

import dataclasses

import numpy as np

from dreamer4_jax.config import VectorComponent
from tests.models import tiny_world

VECTORS = (
  VectorComponent(name='arm', size=3, mean=(1.0, -2.0, 0.0), std=(0.5, 2, 4)),
  VectorComponent(name='grip', size=1, mean=(5.0,), std=(0.1,)),
)
CONFIG = dataclasses.replace(tiny_world.CONFIG, vectors=VECTORS)
LATENTS, PATCHES = 4, 6


def random_vectors(seed, lead):
  """Returns vectors `[*lead, n]` of the mean and spread that they have."""
  rng = np.random.default_rng(seed)
  return {
    v.name: (rng.normal(size=(*lead, v.size)) * v.std + v.mean).astype(
      np.float32
    )
    for v in VECTORS
  }


def make_batch(b, t, seed=0, starts=()):
  """Returns clips as those of the tiny world, with vectors."""
  batch = tiny_world.make_batch(b, t, seed, starts)
  return batch.replace(vectors=random_vectors(seed + 100, (b, t)))
