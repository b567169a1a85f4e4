"""Shapes of arrays and of their levels, checked and brought together."""

from __future__ import annotations

import jax.numpy as jnp

from dreamer4_jax.types import Array, Levels


def same_shape(**arrays: Array) -> None:
  """Raises `ValueError` naming the arguments unless all shapes are equal."""
  shapes = {name: tuple(array.shape) for name, array in arrays.items()}
  if len(set(shapes.values())) > 1:
    listed = ', '.join(f'{name} {shape}' for name, shape in shapes.items())
    raise ValueError(f'these shapes must be equal: {listed}')


def lead_shape(lead_axes: int, **array: Array) -> tuple[int, ...]:
  """Returns the leading axes of the one array, or raises `ValueError`."""
  ((name, x),) = array.items()
  if not 1 <= lead_axes <= x.ndim:
    raise ValueError(
      f'lead_axes = {lead_axes}: must lie in 1..{x.ndim}, for {name} has the '
      f'shape {tuple(x.shape)}; 1 gives each row a level, 2 each frame'
    )
  return tuple(x.shape[:lead_axes])


def check_lead(levels: Levels, **array: Array) -> None:
  """Raises `ValueError` unless the one array leads with the levels' axes."""
  ((name, x),) = array.items()
  shape = jnp.shape(levels.signal_index)
  if tuple(x.shape[: len(shape)]) != shape:
    raise ValueError(
      f'levels of shape {shape}: must be the leading axes of {name}, whose '
      f'shape is {tuple(x.shape)}'
    )


def like(level: Array, x: Array) -> Array:
  """Appends axes to a level up to the rank of `x`; a scalar stays one."""
  missing = x.ndim - level.ndim if level.ndim else 0
  return jnp.expand_dims(level, tuple(range(level.ndim, level.ndim + missing)))


def f32(x: Array) -> Array:
  """Returns `x` in float32."""
  return jnp.asarray(x).astype(jnp.float32)
