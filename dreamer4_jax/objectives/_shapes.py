"""Shape checks at the door of every objective."""

from __future__ import annotations

from dreamer4_jax.types import Array


def same_shape(**arrays: Array) -> None:
  """Raises `ValueError` naming the arguments unless all shapes are equal."""
  shapes = {name: tuple(array.shape) for name, array in arrays.items()}
  if len(set(shapes.values())) > 1:
    listed = ', '.join(f'{name} {shape}' for name, shape in shapes.items())
    raise ValueError(f'these shapes must be equal: {listed}')
