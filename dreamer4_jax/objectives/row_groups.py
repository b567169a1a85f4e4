"""One row of each group of neighbours: work on part of a batch.

Rows are taken from and put back into a reshaped leading axis. With groups that
divide the rows of a device, each device keeps its own and nothing is resharded.
"""

from __future__ import annotations

from einops import rearrange
from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.types import Array, PyTree


def group_size(rows: int, share: float) -> int:
  """Returns the size of the groups of which one row is taken.

  Args:
    rows: rows to divide, of a batch or of its part on one device.
    share: share of them that is wanted.

  Returns:
    The largest divisor of `rows` that is at most `1 / share`; all of them if
    none is wanted.
  """
  most = rows if share <= 0 else 1 / share + 1e-6
  return max(
    n for n in range(1, rows + 1) if rows % n == 0 and n <= max(most, 1)
  )


@struct.dataclass
class RowGroups:
  """A batch in groups of neighbouring rows; one row of each is taken.

  Attributes:
    place: `[G]` int32, which row of its group.
    size: rows of a group.
  """

  place: Array
  size: int = struct.field(pytree_node=False)

  @classmethod
  def of(cls, wanted: Array, size: int) -> RowGroups:
    """Takes the first wanted row of each group, or its first if none is wanted.

    Args:
      wanted: `[B]` bool.
      size: of the groups.

    Raises:
      ValueError: the size does not divide the rows.
    """
    if size < 1 or len(wanted) % size:
      raise ValueError(
        f'rows_per_group = {size}: must divide the {len(wanted)} rows of a '
        'batch; group_size finds one'
      )
    groups = rearrange(wanted, '(g e) -> g e', e=size)
    return cls(place=jnp.argmax(groups, axis=1), size=size)

  def take(self, rows: PyTree) -> PyTree:
    """Takes a row of each group, of arrays `[B, ...] -> [G, ...]`."""

    def take(x: Array) -> Array:
      groups = rearrange(x, '(g e) ... -> g e ...', e=self.size)
      index = self.place.reshape(-1, *(1,) * (groups.ndim - 1))
      return jnp.take_along_axis(groups, index, axis=1)[:, 0]

    return jax.tree.map(take, rows)

  def put(self, x: Array) -> Array:
    """Inverts `take`, `[G, ...] -> [B, ...]`, with zeros in the other rows."""
    own = jnp.arange(self.size)[None] == self.place[:, None]
    own = own.reshape(*own.shape, *(1,) * (x.ndim - 1))
    whole = jnp.where(own, x[:, None], jnp.zeros((), x.dtype))
    return rearrange(whole, 'g e ... -> (g e) ...')
