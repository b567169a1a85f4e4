"""One device or eight: every phase takes the same steps.

The suite has the dynamics phase on every mesh. All phases:

    MESHES=all python -m pytest tests/training/test_many_devices.py
"""

import functools
import os

from flax import linen as nn
import jax
import numpy as np
import pytest

from dreamer4_jax import sharding
from dreamer4_jax.aot.hlo import Program
from dreamer4_jax.config import PHASES, MeshConfig
from dreamer4_jax.models import World
from dreamer4_jax.training import phases
from dreamer4_jax.training.loop import jit_step
from tests.models.tiny_world import (
  CONFIG,
  make_batch,
  with_dynamics,
  world_and_params,
)

STEPS, ROWS, FRAMES = 5, 8, 4
SAME = {'steps': 100, 'batch_size': ROWS, 'clip_lengths': (FRAMES,)}
SMALL = with_dynamics(CONFIG, num_kv_heads=2, depth=2)
TINY = SMALL.edit(
  {
    **{
      f'phases.{phase}.{name}': value
      for phase in PHASES
      for name, value in (*SAME.items(), ('learning_rate', 1e-2))
    },
    # With eight devices each has one row, which bootstraps as all do on one.
    'forcing.bootstrap_share': 1.0,
    'phases.dynamics.bootstrap_start': 2,
    'phases.imagination.horizon': 2,
    'phases.imagination.sampling_steps': 2,
    'optimizer.warmup_steps': 1,
    # So small that Adam's epsilon is above the rounding of a gradient: else
    # parameters with hardly any move by the whole learning rate, either way.
    'optimizer.clip_norm': 1e-5,
  }
)
MESHES = {
  '8,1,1': MeshConfig(data=8),
  '1,8,1': MeshConfig(data=1, fsdp=8),
  '2,2,2': MeshConfig(data=2, fsdp=2, tensor=2),
}


@functools.cache
def train(phase, name=''):
  """Returns losses and parameters of a few steps on a mesh, or one device."""
  mesh = sharding.make_mesh(MESHES.get(name, MeshConfig(data=1)), jax.devices())
  world = World.from_config(TINY)
  params = world_and_params(SMALL)[1]
  given = {k: v for k, v in params.items() if k != 'prior'}
  given = phases.boxed(world, given)
  init, step = phases.init_and_step(world, phase)
  init = functools.partial(init, jax.random.key(0))
  with sharding.use_mesh(mesh):
    abstract = sharding.place_abstract(mesh, jax.eval_shape(init, given))
    where = jax.tree.map(lambda x: x.sharding, abstract)
    state = jax.jit(lambda given: nn.unbox(init(given)), out_shardings=where)(
      sharding.place_whole(mesh, given)
    )
    out = where, sharding.replicated(mesh)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=out)
    losses = []
    for i in range(STEPS):
      batch = sharding.place_batch(mesh, make_batch(ROWS, FRAMES, seed=i))
      state, metrics = compiled(state, batch, jax.random.key(i))
      losses.append(float(metrics['loss']))
    cut = [x for x in jax.tree.leaves(state) if not x.is_fully_replicated]
  return losses, jax.device_get(state.params), len(cut)


ALL_AT_ONCE = '2,2,2'
GRID = [
  pytest.param(
    phase, name, marks=() if name == ALL_AT_ONCE else pytest.mark.slow
  )
  for phase in PHASES
  for name in MESHES
  if phase == 'dynamics' or os.environ.get('MESHES') == 'all'
]


@pytest.mark.parametrize(('phase', 'name'), GRID)
def test_eight_devices_are_one(phase, name):
  losses, params, _ = train(phase)
  many_losses, many, cut = train(phase, name)
  # Losses are sums of terms of the order of 1, some of them negative.
  np.testing.assert_allclose(many_losses, losses, rtol=2e-5, atol=5e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), many, params
  )
  assert (cut > 20) == (name != '8,1,1')
  assert len(set(losses)) == STEPS


def test_bootstrap_rows_stay_on_their_devices():
  # Four rows a device, of which one bootstraps. What travels are weights and
  # sums: nothing as large as a part of the batch.
  frames, rows = 16, 32
  config = TINY.edit(
    {'phases.dynamics.batch_size': rows, 'forcing.bootstrap_share': 0.25}
  )
  mesh = sharding.make_mesh(MESHES['1,8,1'])
  world = World.from_config(config)
  init, step = phases.init_and_step(world, 'dynamics')
  latents = world_and_params(SMALL)[1]['latents']
  given = phases.boxed(world, {'latents': latents})
  given['tokenizer'] = {}
  batch = make_batch(rows, frames)
  # Latents for frames, as from a pre-tokenised dataset.
  batch = batch.replace(frames=np.zeros((rows, frames, 4, 4), np.float16))
  with sharding.use_mesh(mesh):
    boxed = jax.eval_shape(init, jax.random.key(0), given)
    state = sharding.place_abstract(mesh, boxed)
    jitted = jit_step(step, 'dynamics', 0, mesh, state)
    placed = sharding.place_batch(mesh, batch)
    text = jitted.lower(state, placed, np.uint32(0)).compile().as_text()
  moved = [
    x
    for x in Program(text)
    if x.opcode.startswith(('all-', 'reduce-scatter', 'collective-permute'))
  ]
  weights = max(x.size for x in jax.tree.leaves(state.params))
  tokens = rows * frames * 2 * 8
  assert weights < tokens / 4
  assert any(x.opcode == 'all-gather' for x in moved)
  for x in moved:
    # Sums of two gradients may travel together.
    limit = 2 if x.opcode == 'all-reduce' else 1
    assert x.bytes <= limit * 4 * weights, x.line
