from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from dreamer4_jax import sharding
from dreamer4_jax.config import MeshConfig


def make_mesh(config):
  return sharding.make_mesh(config, jax.devices()[:4])


def test_the_axis_with_minus_one_takes_the_devices_that_are_left():
  assert jax.device_count() == 8
  for config, shape in (
    (MeshConfig(), (4, 1, 1)),
    (MeshConfig(data=2, fsdp=-1), (2, 2, 1)),
    (MeshConfig(data=1, fsdp=2, tensor=2), (1, 2, 2)),
  ):
    mesh = make_mesh(config)
    assert mesh.shape_tuple == tuple(zip(sharding.AXES, shape, strict=True))
    assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize(
  'config', [MeshConfig(data=3), MeshConfig(data=16), MeshConfig(tensor=16)]
)
def test_sizes_that_do_not_fit_the_devices_are_refused(config):
  with pytest.raises(ValueError, match='number of devices, 8'):
    sharding.make_mesh(config)


def test_a_mesh_of_fixed_sizes_may_take_the_first_devices_only():
  assert sharding.make_mesh(MeshConfig(data=2, fsdp=-1)).size == 8
  mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2), jax.devices())
  assert list(mesh.devices.flat) == jax.devices()[:2]
  with pytest.raises(ValueError, match='number of devices, 8'):
    sharding.make_mesh(MeshConfig(data=1, fsdp=2))


class Chip:
  """What a mesh asks of a chip."""

  platform, device_kind, process_index, core_on_chip = 'tpu', 'TPU v5', 0, 0

  def __init__(self, number, slice_index, coords):
    self.id, self.slice_index, self.coords = number, slice_index, coords


def test_parameters_stay_within_a_slice():
  # In whatever order the runtime lists them.
  chips = [Chip(i, i % 2, (i // 2 % 2, i // 4, 0)) for i in range(8)]
  mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=2), chips)
  assert mesh.shape_tuple == (('data', 4), ('fsdp', 2), ('tensor', 1))
  slices = [[d.slice_index for d in row.flat] for row in mesh.devices]
  assert slices == [[0, 0], [0, 0], [1, 1], [1, 1]]
  with pytest.raises(ValueError, match=r'mesh\.data = 1: .* slices, 2'):
    sharding.make_mesh(MeshConfig(data=1, fsdp=-1), chips)


def test_an_axis_may_be_a_piece_of_a_side_of_the_torus():
  torus = np.ndindex(8, 8, 16)
  chips = [Chip(i, 0, coords) for i, coords in enumerate(torus)]
  mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=32), chips)
  assert mesh.shape_tuple == (('data', 32), ('fsdp', 32), ('tensor', 1))
  assert len(set(mesh.devices.flat)) == 1024


def test_a_batch_is_cut_over_data_and_fsdp_in_order():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2))
  batch = {'x': np.arange(24).reshape(8, 3), 'y': np.arange(8)}
  placed = sharding.place_batch(mesh, batch)
  for name, value in batch.items():
    np.testing.assert_array_equal(placed[name], value)
    shards = [s.data for s in placed[name].addressable_shards]
    assert [s.shape[0] for s in shards] == [2, 2, 2, 2]
  first_rows = sorted(int(s.data[0]) for s in placed['y'].addressable_shards)
  assert first_rows == [0, 2, 4, 6]


def test_a_batch_over_data_only_is_copied_along_tensor():
  mesh = make_mesh(MeshConfig(data=2, tensor=2))
  placed = sharding.place_batch(mesh, np.zeros((4, 5)))
  assert {s.data.shape for s in placed.addressable_shards} == {(2, 5)}


def test_a_batch_that_does_not_divide_is_refused():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2))
  sharding.check_batch(mesh, 8)
  with pytest.raises(ValueError, match=r'batch_size = 6.*divisible.* 4'):
    sharding.check_batch(mesh, 6)
  sharding.check_batch(make_mesh(MeshConfig(data=2, tensor=2)), 6)


class _Layer(nn.Module):
  """One matrix with logical axes, one vector without."""

  @nn.compact
  def __call__(self, x):
    init = nn.with_logical_partitioning(
      nn.initializers.lecun_normal(), ('embed', 'mlp')
    )
    kernel = self.param('kernel', init, (8, 6))
    scale = self.param('scale', nn.initializers.ones, (6,))
    y = nn.with_logical_constraint(x @ kernel, ('batch', 'mlp'))
    return y * scale[None]


def _init():
  params = _Layer().init(jax.random.key(0), jnp.ones((4, 8)))['params']
  return {'params': params, 'opt': optax.adam(1e-3).init(params), 'n': 0}


def test_logical_axes_decide_where_parameters_and_moments_lie():
  mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
  found = sharding.state_sharding(mesh, jax.eval_shape(_init))
  assert found['params']['kernel'].spec == P('fsdp', 'tensor')
  assert found['opt'][0].mu['kernel'].spec == P('fsdp', 'tensor')
  for whole in (found['params']['scale'], found['opt'][0].count, found['n']):
    assert whole.spec == P()
  state = jax.jit(lambda: nn.meta.unbox(_init()), out_shardings=found)()
  kernel = state['opt'][0].mu['kernel']
  assert {s.data.shape for s in kernel.addressable_shards} == {(4, 3)}


def test_constraints_act_inside_use_mesh_and_change_no_value():
  mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
  params = nn.meta.unbox(_init()['params'])
  x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)
  alone = _Layer().apply({'params': params}, x)
  with sharding.use_mesh(mesh):
    apply = jax.jit(lambda p, x: _Layer().apply({'params': p}, x))
    together = apply(params, sharding.place_batch(mesh, x))
  assert {s.data.shape for s in together.addressable_shards} == {(2, 3)}
  # Float32 sums over 8 terms, in another order.
  np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_mesh_that_does_not_divide_the_model_is_refused():
  mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
  boxed = jax.eval_shape(_init)
  with pytest.raises(
    ValueError,
    match=r'mesh\.tensor = 4: must divide 6, .* \[8, 6\] of .*kernel;',
  ):
    sharding.place_abstract(mesh, boxed)
  fits = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
  placed = jax.tree.leaves(sharding.place_abstract(fits, boxed))
  assert {x.sharding.shard_shape(x.shape) for x in placed if x.ndim == 2} == {
    (2, 3)
  }
