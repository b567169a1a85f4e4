"""Rotary position embeddings by exact integer phase.

A rotation of pair i at position p has the phase `p * f_i` turns. Here the
frequency is an integer `m_i = round(2**32 f_i)` and the phase `p * m_i` is
taken in uint32 arithmetic, which wraps exactly at whole turns (the numerically
controlled oscillator of signal processing). A position of any size is thus
rotated with the same precision, and the attention logit of two frames depends
on their distance alone: frame 1,000,000 of a rollout is computed as frame 100
is, and even the overflow of the frame counter changes nothing.

Source of the embedding: Su et al., RoFormer, 2021. The axial form rotates one
half of the pairs by the row and the other by the column.
"""

from __future__ import annotations

from flax import struct
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.types import Array


def frequencies(pairs: int, base: float) -> np.ndarray:
  """Returns `[pairs]` uint32 frequencies in turns per position times 2**32.

  Pair i turns by `base ** (-i / pairs)` radians per position.
  """
  radians = base ** (-np.arange(pairs, dtype=np.float64) / pairs)
  return np.round(radians / (2 * np.pi) * 2.0**32).astype(np.uint32)


def angles(positions: Array, pairs: int, base: float) -> Array:
  """Returns the rotation of every pair.

  Args:
    positions: `[...]` unsigned or signed integers; only differences matter.
    pairs: number of rotated pairs, half the head dimension.
    base: longest wavelength base.

  Returns:
    `[..., pairs]` float32 radians in [-pi, pi).
  """
  step = jnp.asarray(frequencies(pairs, base))
  step = jnp.expand_dims(step, tuple(range(jnp.ndim(positions))))
  phase = positions.astype(jnp.uint32)[..., None] * step
  return phase.astype(jnp.int32).astype(jnp.float32) * (np.pi / 2.0**31)


def axial_angles(rows: int, cols: int, pairs: int, base: float) -> Array:
  """Returns the rotations of a patch grid, `[rows * cols, pairs]`.

  The first half of the pairs turns with the row, the second with the column.
  """
  row, col = np.divmod(np.arange(rows * cols, dtype=np.uint32), np.uint32(cols))
  half = pairs // 2
  return jnp.concatenate(
    [
      angles(jnp.asarray(row), half, base),
      angles(jnp.asarray(col), pairs - half, base),
    ],
    axis=-1,
  )


@struct.dataclass
class Rotation:
  """What rotates vectors, computed once for all layers.

  Attributes:
    cos: `[..., 2 * pairs]` cosines, twice over.
    sin: `[..., 2 * pairs]` sines, negated in the first half.
  """

  cos: Array
  sin: Array


def rotation(angle: Array) -> Rotation:
  """Returns the rotation by `angle [..., pairs]`, in radians."""
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return Rotation(
    cos=jnp.concatenate([cos, cos], axis=-1),
    sin=jnp.concatenate([-sin, sin], axis=-1),
  )


def rotate(x: Array, by: Rotation) -> Array:
  """Rotates the pairs `(x[i], x[i + pairs])` of the last axis.

  Args:
    x: `[..., 2 * pairs]`.
    by: rotation that broadcasts to `x`.

  Returns:
    The rotated array, in the dtype of `x`; computed in float32.
  """
  wide = x.astype(jnp.float32)
  first, second = jnp.split(wide, 2, axis=-1)
  turned = jnp.concatenate([second, first], axis=-1)
  return (wide * by.cos + turned * by.sin).astype(x.dtype)
