import dataclasses
import functools
import types

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax import sharding
from dreamer4_jax.config import MeshConfig
from dreamer4_jax.models import World
from dreamer4_jax.objectives import (
  ShortcutLosses,
  draw_levels,
  shortcut_loss,
)
from dreamer4_jax.training.dynamics_step import (
  corrupt_batch,
  dynamics_objective,
  frame_loss,
  frame_means,
  init_dynamics_state,
  make_dynamics_step,
)
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.state import make_state
from dreamer4_jax.types import Levels
from tests.models.tiny_world import (
  CONFIG,
  changed,
  make_batch,
  world_and_params,
)

START = 3
RUN = CONFIG.edit(
  {
    'phases.dynamics.batch_size': 8,
    'phases.dynamics.bootstrap_start': START,
    'phases.dynamics.learning_rate': 1e-2,
    'optimizer.warmup_steps': 1,
    'optimizer.decay_share': 0.0,
  }
)
LABELS = np.ones((8, 5), bool)
LABELS[::3] = False  # unlabeled clips among labeled ones
# Episodes begin within rows that bootstrap, 0 and 4, and within others.
STARTS = [(0, 2), (2, 3), (4, 1), (4, 3), (5, 2), (7, 4)]
BATCH = make_batch(8, 5, starts=STARTS)
BATCH = jax.tree.map(
  jnp.asarray,
  BATCH.replace(
    prev_action_mask=BATCH.prev_action_mask & LABELS, action_mask=LABELS
  ),
)


@dataclasses.dataclass(frozen=True)
class CountingWorld(World):
  """Counts the passes of the dynamics that are really executed."""

  calls: list = dataclasses.field(default_factory=list, compare=False)
  # A function that compiles in no time, for tests of which rows are drawn.
  stand_in: bool = False

  def denoise(self, params, z, *args, **kwargs):
    jax.debug.callback(lambda _: self.calls.append(z.shape[0]), z[0, 0, 0, 0])
    if self.stand_in:
      return types.SimpleNamespace(prediction=jnp.cos(z))
    return super().denoise(params, z, *args, **kwargs)


def counting_world(fields=(), *, stand_in=False):
  world = World.from_config(RUN.edit(dict(fields)))
  names = [f.name for f in dataclasses.fields(World)]
  modules = {n: getattr(world, n) for n in names}
  return CountingWorld(**modules, stand_in=stand_in)


@functools.cache
def corrupted():
  world, params = counting_world(), world_and_params(RUN)[1]

  @jax.jit
  def run(step):
    return corrupt_batch(world, params, BATCH, step, jax.random.key(0))

  def counted(step):
    world.calls.clear()
    data = jax.device_get(run(jnp.int32(step)))
    jax.effects_barrier()
    return data, list(world.calls)

  return counted


@pytest.mark.parametrize('step, runs', [(0, 0), (2, 0), (3, 1), (4, 1)])
def test_extra_passes_run_on_their_steps_and_rows_only(step, runs):
  # From step 3 on, on a quarter of 8 rows.
  data, calls = corrupted()(step)
  assert calls == [2, 2] * runs
  coarse = data.levels.step_index < 3
  rows = np.flatnonzero(coarse.any(axis=1))
  assert rows.tolist() == ([0, 4] if runs else [])
  moving = np.abs(data.velocity).max((2, 3)) > 0
  assert np.array_equal(moving, coarse)


def test_levels_are_of_the_noise_that_was_added():
  data, _ = corrupted()(4)
  tau = data.levels.signal_index[..., None, None] / 8
  # Undo the mixture: what is left is standard normal, 640 numbers.
  noise = (data.z_tau - tau * data.z1) / (1 - tau)
  assert abs(noise.mean()) < 0.15 and abs(noise.std() - 1) < 0.1
  world, params = world_and_params(RUN)
  z1, _ = jax.jit(world.encode)(
    params, BATCH.frames, segment_ids=BATCH.segment_ids
  )
  np.testing.assert_allclose(data.z1, z1, atol=5e-5)


@functools.cache
def _coarse(bootstrap):
  """Compiles: which frames of rows that train drew a coarse step."""
  params = world_and_params(RUN)[1]
  world = counting_world({'forcing.bootstrap_share': bootstrap}, stand_in=True)

  def run(trains, share, key):
    # Latents in the place of frames: nothing is encoded.
    batch = BATCH.replace(frames=jnp.zeros((8, 5, 4, 4)))
    data = corrupt_batch(
      world, params, batch, jnp.int32(4), key, trains=trains, share=share
    )
    return data.levels, data.velocity

  return jax.jit(run, static_argnums=1)


@pytest.mark.parametrize('bootstrap', [0.25, 0.5, 1.0])
@pytest.mark.parametrize(
  'trains', ['11111111', '10101010', '00100010', '01110100', '00000001']
)
def test_the_share_that_bootstraps_is_what_the_field_says(bootstrap, trains):
  rows = jnp.array([c == '1' for c in trains])
  share = 0.5 if trains == '10101010' else 1.0
  coarse, frames = 0, 0
  for seed in range(40):
    levels, velocity = _coarse(bootstrap)(rows, share, jax.random.key(seed))
    step, signal = (
      np.asarray(levels.step_index),
      np.asarray(levels.signal_index),
    )
    # The others stand at the context level: 7 of 8, the finest step.
    assert np.all(step[~rows] == 3) and np.all(signal[~rows] == 7)
    coarse += (step < 3)[rows].sum()
    frames += step[rows].size
    moves = np.abs(velocity).max((2, 3)) > 0
    assert np.array_equal(moves, step < 3)
  # A row that bootstraps draws one of four sizes, one of them the finest.
  expected = bootstrap * 3 / 4
  sd = np.sqrt(expected * (1 - expected) / frames)
  assert abs(coarse / frames - expected) < 5 * sd + 1e-6


FEW = [
  # Rows that train, devices, share of the frames; one step in how many.
  ('1', 1, 1 / 2, 2),
  ('11', 1, 1 / 3, 3),
  ('111', 1, 1 / 4, 4),
  ('11111111', 4, 1 / 4, 4),
  ('01', 1, 1 / 4, 4),
  # As many rows as are needed: some of them, on every step.
  ('1111', 1, 1 / 4, 1),
  ('11111111', 4, 1 / 2, 1),
]


@pytest.mark.parametrize('rows, devices, bootstrap, every', FEW)
def test_few_rows_of_a_device_all_bootstrap_now_and_then(
  rows, devices, bootstrap, every
):
  rows = np.array([c == '1' for c in rows])
  share = float(rows.mean())
  world = counting_world({'forcing.bootstrap_share': bootstrap}, stand_in=True)
  params = world_and_params(RUN)[1]
  # Latents in the place of frames: nothing is encoded.
  batch = make_batch(len(rows), 5)
  batch = batch.replace(frames=np.zeros((len(rows), 5, 4, 4), np.float32))

  @jax.jit
  def run(batch, trains, step, key):
    data = corrupt_batch(
      world, params, batch, step, key, trains=trains, share=share
    )
    return data.levels.step_index < 3, data.velocity

  mesh = sharding.make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
  steps, seeds = range(START + 2 * every), 20
  # Of each step: frames with a coarse step, and rows of the extra passes.
  drawn, passes = {}, {}
  with sharding.use_mesh(mesh):
    given = sharding.place_batch(mesh, (batch, rows))
    for step in steps:
      world.calls.clear()
      keys = jax.random.split(jax.random.key(step), seeds)
      found = [jax.device_get(run(*given, jnp.int32(step), k)) for k in keys]
      jax.effects_barrier()
      drawn[step] = sum(coarse.astype(int) for coarse, _ in found)
      passes[step] = set(world.calls)
      for coarse, velocity in found:
        assert np.array_equal(np.abs(velocity).max((2, 3)) > 0, coarse)
  on = [step for step in steps if step >= START and step % every == 0]
  taking = rows.sum() if every > 1 else len(rows) * bootstrap
  for step in steps:
    assert passes[step] == ({taking} if step in on else set())
    found = drawn[step].any(axis=1)
    assert found.sum() == (taking if step in on else 0)
    assert not found[~rows].any()
  # Over all steps, the share of frames is what the field says, less the quarter
  # of them that draws the finest step.
  frames = 2 * every * seeds * rows.sum() * 5
  expected = bootstrap * 3 / 4
  sd = np.sqrt(expected / 4 / frames)
  found = sum(count.sum() for count in drawn.values()) / frames
  assert abs(found - expected) < 5 * sd


def test_each_frame_counts_once_with_its_own_term():
  # Rows 0 and 1; frame (0, 0) bootstraps.
  is_flow = jnp.array([[False, True], [True, True]])
  losses = ShortcutLosses(
    flow=jnp.array([[100.0, 2.0], [4.0, 6.0]]),
    bootstrap=jnp.array([[5.0, 100.0], [100.0, 100.0]]),
    is_flow=is_flow,
  )
  total, parts = frame_means(losses, jnp.array([True, True]))
  np.testing.assert_allclose(total.value(), (5 + 2 + 4 + 6) / 4, rtol=1e-6)
  np.testing.assert_allclose(parts['flow'].value(), 4, rtol=1e-6)
  np.testing.assert_allclose(parts['bootstrap'].value(), 5, rtol=1e-6)
  total, parts = frame_means(losses, jnp.array([False, True]))
  np.testing.assert_allclose(total.value(), 5, rtol=1e-6)
  assert parts['bootstrap'].value() == 0 == parts['bootstrap'].weight
  weights = jnp.array([[3.0, 1.0], [1.0, 1.0]])  # Of the loss alone.
  total, parts = frame_means(losses, jnp.array([True, True]), weights)
  np.testing.assert_allclose(total.value(), (15 + 2 + 4 + 6) / 6, rtol=1e-6)
  np.testing.assert_allclose(parts['bootstrap'].value(), 5, rtol=1e-6)


def test_frames_with_events_have_their_weight():
  world, params = world_and_params(RUN)
  reward = jnp.zeros(BATCH.reward.shape).at[0, 2, 1].set(1.0).at[1, 1].set(-2.0)
  batch = BATCH.replace(reward=reward)
  data = jax.jit(
    lambda params: corrupt_batch(
      world, params, batch, jnp.int32(0), jax.random.key(0)
    )
  )(params)
  loss = lambda weight: frame_loss(
    jnp.zeros_like(data.z1), data,
    dataclasses.replace(RUN.forcing, event_weight=weight, low_weight=1.0),
  )[0].value()  # fmt: skip
  each = np.square(np.asarray(data.z1, float)).mean(axis=(2, 3))
  weights = np.ones(each.shape)
  weights[0, 2] = weights[1, 1] = 5.0
  np.testing.assert_allclose(loss(1.0), each.mean(), rtol=1e-5)
  expected = (weights * each).sum() / weights.sum()
  np.testing.assert_allclose(loss(5.0), expected, rtol=1e-5)
  assert abs(loss(5.0) - loss(1.0)) > 1e-4


def test_the_loss_matches_a_loop():
  # Everything from the modules and the keys, frame by frame (equation 7).
  world, params = world_and_params(RUN)
  objective, key = dynamics_objective(world), jax.random.key(0)
  level_key, noise_key, row_key = jax.random.split(key, 3)

  @jax.jit
  def compute(batch):
    frozen = {k: params[k] for k in ('tokenizer', 'latents')}
    own = {'dynamics': params['dynamics']}
    optimizer = make_optimizer(RUN, 'dynamics')
    state = make_state(own, frozen, optimizer, ('dynamics',))
    data = objective.prepare(state.replace(step=jnp.int32(4)), batch, key)
    return objective.terms(own, state, data)

  terms, others = jax.device_get(compute(BATCH))
  assert set(terms) == {'dynamics'} and objective.weights == {'dynamics': 1.0}

  @jax.jit
  def denoise(z, signal, step):
    # Every row with its own actions, flags and segments.
    return world.denoise(
      params, z, Levels(signal, step, 8), BATCH.prev_action,
      BATCH.prev_action_mask, segment_ids=BATCH.segment_ids,
    ).prediction.astype(jnp.float32)  # fmt: skip

  z1, _ = jax.jit(world.encode)(
    params, BATCH.frames, segment_ids=BATCH.segment_ids
  )
  noise = jax.random.normal(noise_key, z1.shape)
  # Of the 8 rows the 1st and the 5th bootstrap, all of their frames.
  rows = np.isin(np.arange(8), (0, 4))[:, None]
  rows = rows & np.asarray(jax.random.bernoulli(row_key, 1.0, (8, 5)))
  levels = draw_levels(level_key, (8, 5), jnp.asarray(rows), 8)
  signal, step = np.asarray(levels.signal_index), np.asarray(levels.step_index)
  tau = signal[..., None, None] / 8.0
  z_tau = (1 - tau) * noise + tau * z1
  prediction = np.asarray(denoise(z_tau, signal, step))
  # Two half steps, for the frames whose step can be halved.
  half = np.minimum(step + 1, 3)
  move = np.where(step < 3, 8 >> half, 0)
  a = np.asarray(denoise(z_tau, signal, half))
  b1 = (a - z_tau) / (1 - tau)
  moved = z_tau + b1 * (move[..., None, None] / 8.0)
  b = np.asarray(denoise(moved, signal + move, half))
  b2 = (b - moved) / (1 - tau - move[..., None, None] / 8.0)
  flow, bootstrap = [], []
  for row in range(8):
    for t in range(5):
      x, at = prediction[row, t].astype(float), signal[row, t] / 8
      weight = 0.9 * at + 0.1
      if step[row, t] == 3:
        flow.append(weight * np.mean((x - z1[row, t]) ** 2))
        continue
      target = (b1[row, t] + b2[row, t]) / 2
      v = (x - z_tau[row, t]) / (1 - at)
      bootstrap.append(weight * (1 - at) ** 2 * np.mean((v - target) ** 2))
  assert len(flow) > 30 and len(bootstrap) >= 4
  for mean, values in (
    (terms['dynamics'], flow + bootstrap),
    (others['flow'], flow),
    (others['bootstrap'], bootstrap),
  ):
    np.testing.assert_allclose(mean.value(), np.mean(values), rtol=2e-4)
    assert mean.weight == len(values)


def test_the_phase_trains_on_the_loss_of_one_call():
  world, params = world_and_params(RUN)
  # Latents in the place of frames: nothing is encoded.
  z = np.random.default_rng(0).normal(size=(8, 5, 4, 4)).astype(np.float32)
  batch, key = BATCH.replace(frames=jnp.asarray(z)), jax.random.key(2)
  objective = dynamics_objective(world)

  def denoise(z, levels, action, known, ids):
    return world.denoise(
      params, z, levels, action, known, segment_ids=ids
    ).prediction

  @jax.jit
  def compute(step):
    data = corrupt_batch(world, params, batch, step, key)
    losses = shortcut_loss(
      denoise, data.z1, key,
      batch.prev_action, batch.prev_action_mask, batch.segment_ids,
      max_steps=8, lead_axes=2, bootstraps=step >= START,
    )  # fmt: skip
    phase, _ = objective.terms(params, None, data)
    return phase['dynamics'].value(), losses

  for step in (START - 1, START):
    loss, losses = compute(jnp.int32(step))
    assert losses.bootstrap.any() == (step == START)
    np.testing.assert_allclose(loss, losses.loss.mean(), rtol=1e-6)


@functools.cache
def trained():
  world, params = world_and_params(RUN)
  frozen = {k: params[k] for k in ('tokenizer', 'latents')}
  state = jax.jit(
    lambda key: nn.unbox(init_dynamics_state(world, key, frozen))
  )(jax.random.key(0))
  step = jax.jit(make_dynamics_step(world))
  states, metrics = [state], []
  for _ in range(40):
    state, m = step(state, BATCH, jax.random.key(7))
    states.append(state)
    metrics.append(jax.device_get(m))
  return states, metrics


def test_overfitting_one_batch_lowers_the_flow_loss():
  _, metrics = trained()
  flow = [m['dynamics/flow'] for m in metrics]
  assert np.isfinite([list(m.values()) for m in metrics]).all()
  # The same key: the same levels and noise on steps of the same kind.
  assert flow[39] < 0.7 * flow[START]


def test_the_bootstrap_term_counts_on_its_steps_alone():
  states, metrics = trained()
  for i, m in enumerate(metrics):
    assert (m['dynamics/bootstrap'] > 0) == (i >= START)
    np.testing.assert_allclose(
      states[i + 1].rms['dynamics'].weight, 1 - 0.99 ** (i + 1), atol=1e-6
    )
  np.testing.assert_allclose(metrics[0]['loss'], 1, rtol=1e-5)


def test_the_two_terms_keep_their_common_scale():
  # Both terms are divided by one number, and flow is most of it: a collapse
  # that trades flow for bootstrap raises the loss.
  states, metrics = trained()
  i = START  # The first step that bootstraps.
  rms = states[i + 1].rms['dynamics']
  scale = np.sqrt(rms.mean_square / rms.weight)
  m = metrics[i]
  low, high = sorted([m['dynamics/flow'], m['dynamics/bootstrap']])
  assert low < m['loss'] * scale < high


def test_only_the_dynamics_moves_and_every_parameter_does():
  states, _ = trained()
  first, last = states[0], states[-1]
  for a, b in zip(
    jax.tree.leaves(first.frozen), jax.tree.leaves(last.frozen), strict=True
  ):
    assert np.array_equal(a, b)
  assert set(last.params) == {'dynamics'}
  assert all(
    np.any(a != b)
    for a, b in zip(
      jax.tree.leaves(first.params), jax.tree.leaves(last.params), strict=True
    )
  )


@pytest.mark.parametrize('low', [0.1, 0.6])
def test_frames_of_noise_have_their_weight(low):
  world, params = world_and_params(RUN)
  world = changed(world, {'forcing.low_weight': low})
  # Before bootstrapping begins: all frames have the finest step.
  data = jax.jit(
    lambda params: corrupt_batch(
      world, params, BATCH, jnp.int32(0), jax.random.key(0)
    )
  )(params)
  loss, _ = frame_loss(jnp.zeros_like(data.z1), data, world.config.forcing)
  z1, index = np.asarray(data.z1, float), np.asarray(data.levels.signal_index)
  tau = index / CONFIG.dynamics.max_steps
  expected = (low + (1 - low) * tau) * np.square(z1).mean(axis=(2, 3))
  np.testing.assert_allclose(loss.value(), expected.mean(), rtol=1e-5)
