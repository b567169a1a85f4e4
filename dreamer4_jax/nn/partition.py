"""Where activations and gathered weights lie on the mesh, by logical names.

Left alone, XLA's partitioner keeps weights that are sharded over `fsdp` where
they are and moves activations instead, many times their size. So activations
are pinned to their own devices at every layer, and a weight is gathered where
it is used, in the compute dtype; its gradient goes back to the weight's own
layout, which is a reduce-scatter.

Parameters are plain arrays unless they are made under `logical_axes`, which is
for code that shards them over a mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import math
from typing import Any

from flax import linen as nn
import jax
from jax.sharding import PartitionSpec

from dreamer4_jax.types import Array

Axes = tuple[str | None, ...]
GATHERED = 'embed'
"""Logical axis along which weights are stored in pieces and used whole."""
_BOXED = contextvars.ContextVar('boxed', default=False)


@contextlib.contextmanager
def logical_axes() -> Iterator[None]:
  """Gives parameters that are made within it the logical names of their axes.

  `init` then returns `nn.LogicallyPartitioned` boxes, from which
  `nn.get_partition_spec` or `sharding.state_sharding` read how to shard a
  parameter. Enter it inside the jitted function, not around it: a function that
  was traced before is not traced again.
  """
  token = _BOXED.set(True)
  try:
    yield
  finally:
    _BOXED.reset(token)


def named(init: Callable[..., Array], axes: Axes) -> Callable[..., Any]:
  """Returns an initializer that boxes its result under `logical_axes`."""
  return nn.with_logical_partitioning(init, axes) if _BOXED.get() else init


def constrain(x: Array, axes: Sequence[str | None]) -> Array:
  """Lays an array out on the mesh; does nothing if there is none.

  Args:
    x: the array.
    axes: logical name of each of its first dimensions; the others stay whole,
      as do those that their mesh axes do not divide.
  """
  if _alone():
    return x
  return jax.lax.with_sharding_constraint(x, _spec(x, axes))


def per_device(
  fn: Callable[..., Array],
  args: Sequence[Array],
  axes: Sequence[Sequence[str | None]],
  rank: int | None = None,
) -> Array:
  """Calls a function that the partitioner cannot shard, such as a kernel.

  Args:
    fn: computes each row and head independently.
    args: arrays; the result is laid out like the first of them.
    axes: for each array the logical names of its first dimensions, as in
      `constrain`.
    rank: dimensions of the result; None is those of the first array.
  """
  if _alone():
    return fn(*args)
  specs = tuple(_spec(x, a) for x, a in zip(args, axes, strict=True))
  out = PartitionSpec(*specs[0][:rank])
  mapped = jax.shard_map(fn, in_specs=specs, out_specs=out, check_vma=False)
  return mapped(*args)


def _alone() -> bool:
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or mesh.size == 1 or not nn.get_logical_axis_rules()


def _spec(x: Array, axes: Sequence[str | None]) -> PartitionSpec:
  """Returns the mesh axes of each dimension, None if they do not divide it."""
  mesh = jax.sharding.get_abstract_mesh()

  def fits(dimension: int, where: str | tuple[str, ...] | None) -> bool:
    names = (where,) if isinstance(where, str) else where or ()
    return dimension % math.prod(mesh.shape[name] for name in names) == 0

  found = nn.logical_to_mesh_axes(tuple(axes))
  return PartitionSpec(
    *(
      where if fits(x.shape[i], where) else None
      for i, where in enumerate(found)
    )
  )


def gather(weight: Array, axes: Axes) -> Array:
  """Makes a weight whole along `GATHERED`, for one use.

  Args:
    weight: as it is stored, already in the compute dtype.
    axes: logical names of its dimensions.
  """
  # The gradient goes the same way back: first whole, then sharded. It is the
  # sum of what all devices have found, of which each keeps its piece. Sharded
  # at once, the gradient of a table is made from the rows of all devices.
  return constrain(constrain(weight, axes), _whole(axes))


def _whole(axes: Axes) -> Axes:
  return tuple(None if a == GATHERED else a for a in axes)
