from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.models import World
from dreamer4_jax.objectives import TwoHot
from tests.models.tiny_world import CONFIG, MODULES, world_and_params

H = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16)), jnp.float32)


def init(world, *modules):
  made = jax.jit(lambda key: world.init(key, modules))(jax.random.key(0))
  return nn.unbox(made)


def test_reward_and_value_are_exactly_zero_at_initialisation():
  world = World.from_config(CONFIG)
  twohot = TwoHot(CONFIG.agent.bins, CONFIG.agent.bin_limit)
  params = init(world, 'reward', 'value')
  for module, distances in (('reward', 3), ('value', 1)):
    logits = world.head(params, module, H)
    assert logits.shape == (2, 3, distances, 31)
    assert not np.any(twohot.mean(logits))
  _, noisy = world_and_params()
  assert np.all(twohot.mean(world.head(noisy, 'reward', H)) != 0)


def test_heads_predict_every_distance_in_float32():
  world, params = world_and_params()
  low = H.astype(jnp.bfloat16)
  logits = world.head(params, 'policy', low)
  shapes = {k: v.shape for k, v in logits.items()}
  assert shapes == {
    'move': (2, 3, 3, 3),
    'keys': (2, 3, 3, 2),
    'look': (2, 3, 3, 2, 3),
  }
  outputs = [*logits.values(), world.head(params, 'reward', low)]
  cont = world.head(params, 'continuation', low)
  assert cont.shape == (2, 3, 3)
  assert all(x.dtype == jnp.float32 for x in [*outputs, cont])
  # One output layer per distance.
  assert np.all(np.abs(np.diff(logits['move'], axis=2)).max((0, 1, 3)) > 0.01)


def test_the_prior_is_the_policy_module_with_its_own_parameters():
  world, params = world_and_params()
  a = world.head(params, 'policy', H)
  b = world.head(params, 'prior', H)
  assert all(np.array_equal(a[k], b[k]) for k in a)
  moved = {**params, 'policy': jax.tree.map(lambda x: x + 1, params['policy'])}
  c = world.head(moved, 'prior', H)
  assert all(np.array_equal(c[k], b[k]) for k in b)


def test_task_embedding_looks_up_rows():
  world, params = world_and_params()
  task = jnp.array([[0, 1, 1]])
  table = params['task']['task']['table']
  assert np.array_equal(world.agent_token(params, task)[0], table[task[0]])


def test_tasks_given_as_vectors_are_projected():
  config = CONFIG.edit(
    {'agent.task_vector_size': 5, 'data.task_vectors': 'some.npy'}
  )
  world = World.from_config(config)
  rng = np.random.default_rng(0)
  own = jax.eval_shape(lambda: init(world, 'task')['task'])
  own = jax.tree.map(lambda x: rng.normal(size=x.shape).astype('f4'), own)
  table = rng.normal(size=(2, 5)).astype(np.float32)
  params = {'task': own, 'task_vectors': jnp.asarray(table)}
  task = jnp.array([[0, 1, 1], [1, 0, 1]])
  found = world.agent_token(params, task)
  assert found.shape == (2, 3, 16)
  for b in range(2):
    for t in range(3):
      v = table[task[b, t]]
      v = v / np.sqrt((v**2).mean()) * own['norm']['scale']
      expected = sum(v[i] * own['task']['kernel'][i] for i in range(5))
      np.testing.assert_allclose(found[b, t], expected, rtol=2e-5, atol=1e-5)
  # Vectors themselves will do, of any scale.
  given = world.agent_token({'task': own}, jnp.asarray(3 * table)[task])
  np.testing.assert_allclose(given, found, rtol=1e-4, atol=1e-5)


def test_every_parameter_of_every_module_has_logical_axes_and_is_float32():
  world = World.from_config(CONFIG)
  modules = tuple(m for m in MODULES if m != 'prior')
  shapes = jax.eval_shape(lambda k: world.init(k, modules), jax.random.key(0))
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  flat = jax.tree.leaves_with_path(shapes, is_leaf=is_box)
  assert len(flat) > 100
  for path, box in flat:
    assert is_box(box) and len(box.names) == box.value.ndim, path
    assert box.value.dtype == jnp.float32, path
