"""Mesh, logical-axis rules, and the placing of batches and states.

The only file that names mesh axes. Modules annotate parameters and
activations with the logical names of `LOGICAL_RULES`; the rules say on which
mesh axis a name lies. The mesh has three axes: `data` (copies of the
parameters), `fsdp` (parameters are sharded along their `embed` dimension) and
`tensor` (heads and hidden units are sharded). A batch is sharded over `data`
and `fsdp` together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import functools
import math
from typing import Any

from flax import linen as nn
import jax
from jax.experimental import mesh_utils
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


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
  """Arranges devices in a mesh with axes `data`, `fsdp`, `tensor`.

  Args:
    config: sizes of the axes; one of them may be -1 and takes the devices
      that the others leave.
    devices: by default all there are. If they are given, a mesh of fixed sizes
      may use only the first of them.

  Returns:
    The mesh. Its axes are `Auto`: Linen's constraints fail on `Explicit` axes.
    With several TPU slices, each holds whole copies of the parameters.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or `data`
      does not divide over the TPU slices.
  """
  sizes = {axis: getattr(config, axis) for axis in AXES}
  given = devices is not None
  devices = list(devices) if given else jax.devices()
  num_devices = len(devices)
  fixed = math.prod(s for s in sizes.values() if s != -1)
  if given and -1 not in sizes.values() and fixed < num_devices:
    first = np.array(devices[:fixed]).reshape([*sizes.values()])
    return Mesh(first, AXES, axis_types=(AxisType.Auto,) * len(AXES))
  filled = {a: num_devices // fixed if s == -1 else s for a, s in sizes.items()}
  if math.prod(filled.values()) != num_devices:
    raise ValueError(
      f'mesh = {sizes}: the sizes must multiply to the number of devices, '
      f'{num_devices}; the fixed ones multiply to {fixed}. Set one of them '
      'to -1 to take all devices that are left.'
    )
  return Mesh(
    _arrange(filled, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES)
  )


def _arrange(sizes: dict[str, int], devices: Sequence[Any]) -> np.ndarray:
  """Lays the axes along the links between the devices."""
  # An axis need not be a side of the torus: pieces of sides will do.
  arrange = functools.partial(
    mesh_utils.create_device_mesh,
    devices=devices,
    allow_split_physical_axes=True,
  )
  slices = 1
  if devices[0].platform == 'tpu':
    slices = len({getattr(d, 'slice_index', 0) for d in devices})
  if slices == 1:
    return arrange([*sizes.values()])
  # Between slices the links are slow; only copies of the parameters cross them.
  if sizes['data'] % slices:
    raise ValueError(
      f'mesh.data = {sizes["data"]}: must be divisible by the number of TPU '
      f'slices, {slices}'
    )
  inside = {**sizes, 'data': sizes['data'] // slices}
  return mesh_utils.create_hybrid_device_mesh(
    [*inside.values()],
    [slices if axis == 'data' else 1 for axis in sizes],
    devices,
    allow_split_physical_axes=True,
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


def batch_shards(mesh: Mesh | None = None) -> int:
  """Returns the number of pieces a batch is cut into; 1 without a mesh.

  Args:
    mesh: the mesh, by default that of `use_mesh`, also while tracing.
  """
  sizes = (mesh or jax.sharding.get_abstract_mesh()).shape
  return math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
  """Raises `ValueError` unless all devices get equally many rows of a batch.

  Args:
    mesh: the mesh.
    batch_size: rows of a global batch.
    accumulate: parts of the batch that are processed one after another.
  """
  shards = batch_shards(mesh)
  if batch_size % (shards * accumulate):
    sizes = ' * '.join(f'{a} = {mesh.shape[a]}' for a in BATCH_AXES)
    parts = f' and accumulate = {accumulate}' if accumulate > 1 else ''
    raise ValueError(
      f'batch_size = {batch_size}: must be divisible by the mesh sizes '
      f'{sizes}{parts}, that is by {shards * accumulate}'
    )


def place_abstract(mesh: Mesh, boxed: PyTree) -> PyTree:
  """Returns the arrays of a train state as shapes that know their sharding.

  Args:
    mesh: the mesh.
    boxed: as `state_sharding` takes it.

  Returns:
    A tree of `jax.ShapeDtypeStruct`, without boxes.

  Raises:
    ValueError: the mesh does not divide an array that it shards.
  """

  def place(
    path: tuple, x: jax.ShapeDtypeStruct, where: NamedSharding
  ) -> jax.ShapeDtypeStruct:
    for size, axes in zip(x.shape, where.spec, strict=False):
      names = (axes,) if isinstance(axes, str) else axes or ()
      pieces = math.prod(mesh.shape[name] for name in names)
      if size % pieces:
        field = ' and '.join(f'mesh.{n} = {mesh.shape[n]}' for n in names)
        raise ValueError(
          f'{field}: must divide {size}, a dimension of {list(x.shape)} of '
          f'{jax.tree_util.keystr(path, simple=True, separator=".")}; take a '
          'smaller size for this axis, or change the width, the heads or '
          'mlp_hidden of the model'
        )
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  return jax.tree_util.tree_map_with_path(
    place, jax.eval_shape(nn.meta.unbox, boxed), state_sharding(mesh, boxed)
  )


def place_batch(mesh: Mesh, batch: PyTree) -> PyTree:
  """Puts a host's share of a batch on its devices.

  Args:
    mesh: the mesh.
    batch: tree of arrays `[B_host, ...]`, where `B_host` is the global batch
      divided by the number of processes.

  Returns:
    The tree of global arrays `[B, ...]`, sharded along the leading axis.
  """
  sharding = batch_sharding(mesh)

  def place(x: np.ndarray) -> jax.Array:
    x = np.asarray(x)
    # Without the global shape, processes that hold copies of the same rows
    # would each give rows of their own.
    whole = (len(x) * jax.process_count(), *x.shape[1:])
    return jax.make_array_from_process_local_data(sharding, x, whole)

  return jax.tree.map(place, batch)


def place_whole(mesh: Mesh, tree: PyTree) -> PyTree:
  """Shards arrays that every process holds whole over the devices.

  Args:
    mesh: the mesh.
    tree: arrays; boxes with logical axes say how they are sharded, and stay.

  Returns:
    The tree of global arrays. A process copies only its own pieces.
  """

  def place(x: PyTree, where: NamedSharding) -> jax.Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda i: x[i])

  flat = jax.tree.leaves(state_sharding(mesh, tree))
  arrays, structure = jax.tree.flatten(tree)  # Boxes are nodes of the tree.
  return jax.tree.unflatten(structure, map(place, arrays, flat))


def state_sharding(mesh: Mesh, abstract_state: PyTree) -> PyTree:
  """Returns the sharding of every array of a train state.

  Args:
    mesh: the mesh.
    abstract_state: result of `jax.eval_shape`, with the boxes of
      `nn.with_logical_partitioning` still around the parameters (and so
      around the optimizer's moments).

  Returns:
    A tree like the *unboxed* state, with a `NamedSharding` at each array.
    Arrays without logical axes are replicated.
  """
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  rules = LOGICAL_RULES

  def place(x):
    if not is_box(x):
      return NamedSharding(mesh, PartitionSpec())
    spec = nn.logical_to_mesh_sharding(x.get_partition_spec(), mesh, rules)
    # Optimizers that treat some parameters separately leave empty boxes behind.
    return jax.tree.map(lambda _: spec, x.unbox(apply_constraint=False))

  return jax.tree.map(place, abstract_state, is_leaf=is_box)
