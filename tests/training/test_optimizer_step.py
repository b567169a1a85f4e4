import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamer4_jax.config import Config, DynamicsPhase, OptimizerConfig, Phases
from dreamer4_jax.objectives import Mean, rms_init
from dreamer4_jax.training.optimizer import make_optimizer, make_schedule
from dreamer4_jax.training.state import make_state
from dreamer4_jax.training.update import Objective, combine, update
from tests.models.tiny_world import world_and_params

PLAIN = Config(
  phases=Phases(dynamics=DynamicsPhase(learning_rate=0.1)),
  optimizer=OptimizerConfig(warmup_steps=0, decay_share=0.0, weight_decay=0.5),
)
MUON = {'optimizer.muon': ('dynamics',)}
NAMES = {'adamw': {}, 'muon': MUON}


def optimizer_of(fields, rates=None):
  return make_optimizer(PLAIN.edit(fields), 'dynamics', rates)


def draw(seed, shape):
  x = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(x, jnp.float32)


def test_schedule_by_hand():
  # Warm-up over 4 steps from a quarter of the peak, decay over the last 10.
  config = OptimizerConfig(warmup_steps=4, decay_share=0.5)
  schedule = make_schedule(config, 2.0, 20)
  expected = {0: 0.5, 2: 1.25, 4: 2, 7: 2, 10: 2, 15: 1.1, 20: 0.2, 99: 0.2}
  for step, value in expected.items():
    np.testing.assert_allclose(schedule(step), value, rtol=1e-6)


def test_a_short_phase_warms_up_for_half_of_it():
  config = OptimizerConfig(warmup_steps=50, decay_share=1.0)
  schedule = make_schedule(config, 1.0, 8)
  np.testing.assert_allclose(schedule(0), 0.25, rtol=1e-6)
  np.testing.assert_allclose(schedule(4), 1.0, rtol=1e-6)
  np.testing.assert_allclose(schedule(8), 0.1, rtol=1e-6)


def paths(tree):
  flat = jax.tree.leaves_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in flat}


@pytest.mark.parametrize('name', NAMES)
def test_weight_decay_shrinks_kernels_and_nothing_else(name):
  params = world_and_params()[1]['dynamics']
  optimizer = optimizer_of(NAMES[name])
  zeros = jax.tree.map(jnp.zeros_like, params)
  run = jax.jit(lambda p: optimizer.update(zeros, optimizer.init(p), p)[0])
  updates, before = paths(run(params)), paths(params)
  decayed = 0
  for path, x in updates.items():
    scanned = 'periods' in path
    if 'kernel' in path and (scanned or name == 'adamw'):
      np.testing.assert_allclose(x, -0.05 * before[path], rtol=1e-4, atol=1e-8)
      decayed += 1
    else:
      assert not np.any(x), path
  assert decayed >= 14


def test_muon_moves_matrices_as_much_as_adam_moves_numbers():
  # Orthogonalised: singular values near 1, scaled so that the root mean
  # square is 0.2 of the learning rate. The first step of Adam with Nesterov
  # momentum is 1 + 0.9 * 0.1 / (1 - 0.81) times the learning rate.
  params = world_and_params()[1]['dynamics']
  optimizer = optimizer_of({**MUON, 'optimizer.weight_decay': 0.0})
  rng = np.random.default_rng(0)
  grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
  run = jax.jit(lambda g: optimizer.update(g, optimizer.init(params), params))
  for path, x in paths(run(grads)[0]).items():
    size = np.sqrt((x**2).mean())
    if 'periods' in path and 'kernel' in path:
      assert 0.012 < size < 0.026, path
    else:
      np.testing.assert_allclose(np.abs(x), 0.147368, rtol=1e-2)


def test_one_muon_matrix_against_its_singular_vectors():
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(rng.normal(size=(2, 6, 2, 3)), jnp.float32)
  params = {'periods': {'query': {'kernel': kernel}}}
  grad = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
  optimizer = optimizer_of({**MUON, 'optimizer.weight_decay': 0.0})
  updates, _ = optimizer.update(grad, optimizer.init(params), params)
  for period in range(2):
    g = np.asarray(grad['periods']['query']['kernel'][period]).reshape(6, 6)
    got = np.asarray(updates['periods']['query']['kernel'][period])
    u, _, v = np.linalg.svd(g)
    # In the basis of the gradient the update is diagonal and negative.
    inner = u.T @ -got.reshape(6, 6) @ v.T / (0.1 * 0.2 * np.sqrt(6))
    np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=2e-3)
    assert np.all((0.5 < np.diag(inner)) & (np.diag(inner) < 1.4))


def test_matrices_of_one_shape_are_optaxs_muon_each():
  # Of two shapes, and one kernel that is too large to be joined with another.
  shapes = {
    'query': (2, 6, 2, 3), 'key': (2, 6, 2, 3), 'gate': (2, 6, 8),
    'wide': (1, 1, 2**20 + 1),
  }  # fmt: skip
  params = {
    'periods': {
      n: {'kernel': draw(i, s)} for i, (n, s) in enumerate(shapes.items())
    },
    'slots': {'table': draw(9, (5, 6))},
  }
  dimensions = jax.tree.map(
    lambda x: (
      optax.contrib.MuonDimensionNumbers(1, tuple(range(2, x.ndim)))
      if x.ndim > 2
      else None
    ),
    params,
  )
  config = PLAIN.edit({**MUON, 'optimizer.weight_decay': 0.1})
  settings = config.optimizer
  ours = make_optimizer(config, 'dynamics')
  theirs = optax.chain(
    optax.clip_by_global_norm(settings.clip_norm),
    optax.contrib.muon(
      make_schedule(
        settings,
        config.phases.dynamics.learning_rate,
        config.phases.dynamics.steps,
      ),
      weight_decay=0.1,
      adam_b1=settings.betas[0],
      adam_b2=settings.betas[1],
      muon_weight_dimension_numbers=dimensions,
      consistent_rms=0.2,
    ),
  )
  states = [x.init(params) for x in (ours, theirs)]
  for step in range(3):
    grads = jax.tree.map(lambda x, s=step: draw(20 + s, x.shape), params)
    got, states[0] = jax.jit(ours.update)(grads, states[0], params)
    expected, states[1] = jax.jit(theirs.update)(grads, states[1], params)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      got,
      expected,
    )
  # Checkpoints of either are read by the other.
  a, b = map(jax.tree.structure, states)
  assert a == b


def quadratic(fields, steps):
  """Descends x^2 from 1; returns all states and metrics."""
  config = PLAIN.edit(fields)
  optimizer = make_optimizer(config, 'dynamics')
  state = make_state({'x': jnp.float32(1)}, {}, optimizer, ('a',))

  objective = Objective(
    prepare=lambda state, batch, key: batch,
    terms=lambda params, state, data: (
      {'a': Mean.of(100 * params['x'] ** 2)},
      {},
    ),
    weights={'a': 1.0},
    report=lambda means: {},
    plain=('a',),
  )
  key = jax.random.key(0)
  step = jax.jit(lambda s: update(s, (), key, objective, optimizer, config))
  states, metrics = [state], []
  for _ in range(steps):
    state, m = step(state)
    states.append(state)
    metrics.append(m)
  return states, metrics


@pytest.mark.parametrize('decay', [0.0, 0.15])
def test_average_of_the_parameters_by_hand(decay):
  fields = {'optimizer.weight_decay': 0.0, 'optimizer.ema_decay': decay}
  states, metrics = quadratic(fields, 4)
  average = 1.0
  for n in range(4):
    share = min(decay, (1 + n) / (10 + n))  # 1/10, 2/11, 3/12, 4/13
    average = share * average + (1 - share) * float(states[n + 1].params['x'])
    np.testing.assert_allclose(states[n + 1].ema['x'], average, rtol=1e-6)
    assert states[n + 1].step == n + 1
  # Adam's first step is the learning rate; the gradient was 200.
  np.testing.assert_allclose(states[1].params['x'], 0.9, rtol=1e-5)
  np.testing.assert_allclose(metrics[0]['grad_norm'], 200, rtol=1e-6)
  np.testing.assert_allclose(metrics[0]['update_norm'], 0.1, rtol=1e-5)
  np.testing.assert_allclose(metrics[0]['loss'], 100, rtol=1e-6)


def test_terms_without_data_stay_still():
  rms = {'a': rms_init(), 'b': rms_init(), 'c': rms_init()}
  terms = {
    'a': Mean.of(jnp.float32(4)),
    'b': Mean.of(jnp.float32(5), 0.0),
    'c': Mean.of(jnp.float32(6)),
  }
  objective = Objective(
    prepare=None, terms=None, report=None,
    weights={'a': 2.0, 'b': 3.0, 'c': -0.5}, plain=('c',),
  )  # fmt: skip
  loss, new = combine(terms, rms, objective)
  np.testing.assert_allclose(loss, 2 - 3, rtol=1e-6)
  assert new['b'].weight == 0 and new['c'].weight == 0
  np.testing.assert_allclose(new['a'].mean_square, 0.16, rtol=1e-5)


def test_weighted_means_by_hand_and_in_parts():
  x = jnp.array([[1.0, 2.0], [3.0, np.nan]])
  weight = jnp.array([[1.0, 0.5], [0.5, 0.0]])
  np.testing.assert_allclose(Mean.of(x, weight).value(), 1.75, rtol=1e-6)
  assert Mean.of(x, jnp.zeros((2, 2))).value() == 0
  parts = [Mean.of(x[i], weight[i]) for i in range(2)]
  whole = jax.tree.map(jnp.add, *parts)
  np.testing.assert_allclose(whole.value(), 1.75, rtol=1e-6)
  slope = jax.grad(lambda x: Mean.of(x, weight).value())(x)
  np.testing.assert_allclose(slope, weight / 2, rtol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_a_module_can_have_a_rate_of_its_own(name):
  dynamics = world_and_params()[1]['dynamics']
  params = {'dynamics': dynamics, 'policy': {'kernel': jnp.ones((3, 4))}}
  grads = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape),
                       params)  # fmt: skip

  def updates(rates):
    optimizer = optimizer_of(NAMES[name], rates)
    run = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])
    return run(grads, params)

  plain, slow = updates(None), updates({'dynamics': 0.25})
  np.testing.assert_allclose(
    slow['policy']['kernel'], plain['policy']['kernel'], rtol=1e-6
  )
  for a, b in zip(
    jax.tree.leaves(slow['dynamics']),
    jax.tree.leaves(plain['dynamics']),
    strict=True,
  ):
    np.testing.assert_allclose(a, 0.25 * b, rtol=1e-5, atol=1e-8)
