"""Action spaces: embedding, checks and "no action".

An action space is a tuple of named components (`config.ActionComponent`);
actions travel as dictionaries of arrays (see `types.Actions`).
"""

from __future__ import annotations

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import ActionComponent
from dreamer4_jax.nn import Embedding, Linear
from dreamer4_jax.types import Actions, Array

ActionSpace = tuple[ActionComponent, ...]


class ActionEmbedding(nn.Module):
  """Embeds actions, `[B, T, D]`.

  Each component is embedded on its own, known components are summed, and one
  learned embedding is always added. An unknown action is that embedding alone.
  """

  space: ActionSpace
  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, actions: Actions, known: Array) -> Array:
    """Embeds `actions`, components `[B, T, ...]`, where `known [B, T]`."""
    width = self.width
    total = jnp.zeros((*known.shape, width), self.dtype)
    for part in self.space:
      x = actions[part.name]
      if part.kind == 'categorical':
        table = Embedding(part.size, width, self.dtype, name=part.name)
        total += table(x)
      elif part.kind == 'binary':
        # A lookup per bit: row 2 i + bit.
        table = Embedding(2 * part.size, width, self.dtype, name=part.name)
        row = 2 * jnp.arange(part.size)
        row = jnp.expand_dims(row, tuple(range(x.ndim - 1)))
        total += table(row + x).sum(axis=-2)
      else:
        middle, half = (part.high + part.low) / 2, (part.high - part.low) / 2
        linear = Linear((width,), (None, 'embed'), self.dtype, name=part.name)
        total += linear((x - middle) / half)
    always = Embedding(1, width, self.dtype, name='always').table()
    return jnp.where(known[..., None], total, 0) + always[None]


def no_action(space: ActionSpace, lead: tuple[int, ...]) -> Actions:
  """Returns the zeros that are stored where an action is unknown."""
  result = {}
  for part in space:
    shape = lead if part.kind == 'categorical' else (*lead, part.size)
    dtype = jnp.float32 if part.kind == 'continuous' else jnp.int32
    result[part.name] = jnp.zeros(shape, dtype)
  return result


def check_actions(
  actions: Actions, space: ActionSpace, lead: tuple[int, ...], field: str
) -> None:
  """Checks names, shapes and dtypes; and ranges of concrete NumPy arrays.

  Args:
    actions: components by name.
    space: what is expected.
    lead: expected leading axes, `(B, T)`.
    field: name used in the error.

  Raises:
    ValueError: naming the component, what was found and what was expected.
  """
  names = {part.name for part in space}
  if set(actions) != names:
    raise ValueError(
      f'{field} has components {sorted(actions)}, expected {sorted(names)} '
      'from the action space'
    )
  for part in space:
    x = actions[part.name]
    label = f'{field}[{part.name!r}]'
    shape = lead if part.kind == 'categorical' else (*lead, part.size)
    if tuple(x.shape) != shape:
      raise ValueError(f'{label} has shape {x.shape}, expected {shape}')
    wanted = np.floating if part.kind == 'continuous' else np.integer
    if not jnp.issubdtype(x.dtype, wanted):
      raise ValueError(
        f'{label} has dtype {x.dtype}, expected {wanted.__name__} values for a '
        f'{part.kind} component'
      )
    if isinstance(x, np.ndarray) and part.kind != 'continuous' and x.size:
      top = part.size - 1 if part.kind == 'categorical' else 1
      if x.min() < 0 or x.max() > top:
        raise ValueError(
          f'{label} has values in {x.min()}..{x.max()}, expected 0..{top}'
        )
    if isinstance(x, np.ndarray) and not np.isfinite(x).all():
      raise ValueError(f'{label} has values that are not finite')
