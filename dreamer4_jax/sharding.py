"""Mesh, logical-axis rules, and the placing of batches and states.

The only file that names mesh axes. Modules annotate parameters and
activations with the logical names of `LOGICAL_RULES`; the rules say on which
mesh axis a name lies. The mesh has three axes: `data` (copies of the
parameters), `fsdp` (parameters are cut along their `embed` dimension) and
`tensor` (heads and hidden units are cut). A batch is cut over `data` and
`fsdp` together.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import math

from flax import linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from dreamer4_jax.config import MeshConfig
from dreamer4_jax.types import PyTree

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')

LOGICAL_RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
  ('batch', BATCH_AXES),
  ('embed', 'fsdp'),
  ('mlp', 'tensor'),
  ('heads', 'tensor'),
  ('kv_heads', 'tensor'),
  ('head_dim', None),
  ('layers', None),
  ('vocab', None),
)
"""Mesh axis of each logical axis. A name that is not listed stays whole."""


def make_mesh(config: MeshConfig) -> Mesh:
  """Arranges all devices in a mesh with axes `data`, `fsdp`, `tensor`.

  Args:
    config: sizes of the axes; one of them may be -1 and takes the devices
      that the others leave.

  Returns:
    The mesh. Its axes are `Auto`: Linen's constraints fail on the `Explicit`
    axes that `jax.make_mesh` gives by default.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  sizes = {axis: getattr(config, axis) for axis in AXES}
  num_devices = jax.device_count()
  fixed = math.prod(s for s in sizes.values() if s != -1)
  filled = {a: num_devices // fixed if s == -1 else s for a, s in sizes.items()}
  if math.prod(filled.values()) != num_devices:
    raise ValueError(
      f'mesh = {sizes}: the sizes must multiply to the number of devices, '
      f'{num_devices}; the fixed ones multiply to {fixed}. Set one of them '
      'to -1 to take all devices that are left.'
    )
  return jax.make_mesh(
    tuple(filled.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES)
  )


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[Mesh]:
  """Enters the mesh together with `LOGICAL_RULES`."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_RULES):
    yield mesh


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array with a leading batch axis."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch_size: int) -> None:
  """Raises `ValueError` unless every device gets as many rows of a batch."""
  shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  if batch_size % shards:
    sizes = ' * '.join(f'{a} = {mesh.shape[a]}' for a in BATCH_AXES)
    raise ValueError(
      f'batch_size = {batch_size}: must be divisible by the mesh sizes '
      f'{sizes}, that is by {shards}'
    )


def place_batch(mesh: Mesh, batch: PyTree) -> PyTree:
  """Puts a host's share of a batch on its devices.

  Args:
    mesh: the mesh.
    batch: tree of arrays `[B_host, ...]`, where `B_host` is the global batch
      divided by the number of processes.

  Returns:
    The tree of global arrays `[B, ...]`, cut along the leading axis.
  """
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    batch,
  )


def state_sharding(mesh: Mesh, abstract_state: PyTree) -> PyTree:
  """Returns the sharding of every array of a train state.

  Args:
    mesh: the mesh.
    abstract_state: result of `jax.eval_shape`, with the boxes of
      `nn.with_logical_partitioning` still around the parameters (and so
      around the optimizer's moments).

  Returns:
    A tree like the *unboxed* state, with a `NamedSharding` at each array.
    What carries no logical axes is replicated.
  """
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  rules = LOGICAL_RULES

  def place(x):
    if not is_box(x):
      return NamedSharding(mesh, PartitionSpec())
    spec = nn.logical_to_mesh_sharding(x.get_partition_spec(), mesh, rules)
    # Optimizers that treat some parameters apart leave empty boxes behind.
    return jax.tree.map(lambda _: spec, x.unbox(apply_constraint=False))

  return jax.tree.map(place, abstract_state, is_leaf=is_box)
