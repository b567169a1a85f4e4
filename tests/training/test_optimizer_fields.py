"""Fields of the optimizer, changed alone: how parameters move."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.config import PHASES, OptimizerConfig, PhaseConfig
from dreamer4_jax.objectives import Mean
from dreamer4_jax.training import imagination_step
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.state import make_state
from dreamer4_jax.training.update import Objective, update
from tests.training.captured import BASE, captured

OPTIMIZER = {
  'learning_rate': 3e-3,
  'warmup_steps': 2,
  'decay_share': 0.5,
  'final_scale': 0.5,
  'weight_decay': 0.3,
  'clip_norm': 0.2,
  'b1': 0.5,
  'b2': 0.7,
  'eps': 0.1,
}
RATES = dict.fromkeys(('dynamics', 'task', 'policy', 'prior', 'value'), 1.0)
MOVES = 12
PLAIN = OptimizerConfig(warmup_steps=6, decay_share=0.3)


def gradients():
  """Gradients of some steps, and parameters; a kernel and a bias a room."""
  rng = np.random.default_rng(0)

  def draw(size=1.0):
    room = lambda: {'kernel': rng.normal(size=3), 'bias': rng.normal(size=2)}
    return {name: jax.tree.map(lambda x: x * size, room()) for name in RATES}

  # Some are clipped, and some are not.
  return draw(), [draw(0.03 * 5 ** (n % 3)) for n in range(MOVES)]


def moved(optimizer):
  """Parameters after some steps of an optimizer."""
  start, steps = jax.tree.map(jnp.float32, gradients())

  @jax.jit
  def run(params, steps):
    def move(carry, grads):
      params, opt = carry
      updates, opt = optimizer.update(grads, opt, params)
      return (jax.tree.map(jnp.add, params, updates), opt), None

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *steps)
    return jax.lax.scan(move, (params, optimizer.init(params)), stacked)[0][0]

  return run(start, steps)


def adamw(config, steps, rates):
  """The same by hand, in float64 (Loshchilov & Hutter, 2019)."""
  params, all_grads = gradients()
  m = jax.tree.map(np.zeros_like, params)
  v = jax.tree.map(np.zeros_like, params)
  warmup, decay = config.warmup_steps, round(config.decay_share * steps)
  for n, grads in enumerate(all_grads):
    # Up from a fraction of the peak, and down to another over the last steps.
    up = 1 / warmup + (1 - 1 / warmup) * min(n / warmup, 1)
    gone = max(n - (steps - decay), 0) / decay
    rate = config.learning_rate * (up - gone * (1 - config.final_scale))
    leaves = [g for room in grads.values() for g in room.values()]
    norm = np.sqrt(sum((g**2).sum() for g in leaves))
    clip = min(1, config.clip_norm / norm)
    for room in params:
      for name in ('kernel', 'bias'):
        g = grads[room][name] * clip
        m[room][name] = config.b1 * m[room][name] + (1 - config.b1) * g
        v[room][name] = config.b2 * v[room][name] + (1 - config.b2) * g**2
        mean = m[room][name] / (1 - config.b1 ** (n + 1))
        square = v[room][name] / (1 - config.b2 ** (n + 1))
        move = mean / (np.sqrt(square) + config.eps)
        if name == 'kernel':
          move = move + config.weight_decay * params[room][name]
        params[room][name] = params[room][name] - rate * rates[room] * move
  return params


def close(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.allclose(x, y, rtol=2e-5, atol=2e-6) for x, y in pairs)


@pytest.mark.parametrize(
  'phase, field',
  [*((p, None) for p in PHASES), *(('dynamics', f) for f in OPTIMIZER)],
)
def test_the_optimizer(phase, field, monkeypatch):
  # Each field alone in one phase, and all together in the others.
  changes = {field: OPTIMIZER[field]} if field else OPTIMIZER
  config = dataclasses.replace(PLAIN, **changes)
  settings = dataclasses.replace(BASE[phase], steps=MOVES, optimizer=config)
  found = moved(captured(phase, settings, monkeypatch).optimizer)
  assert close(found, adamw(config, MOVES, RATES))
  assert not close(found, adamw(PLAIN, MOVES, RATES))


SLOW = [
  ('finetune', 'dynamics_rate', 0.25, ('dynamics',)),
  ('imagination', 'world_rate', 0.5, imagination_step.WORLD_MODULES),
]


@pytest.mark.parametrize('phase, field, value, rooms', SLOW)
def test_rates_of_rooms(phase, field, value, rooms, monkeypatch):
  settings = dataclasses.replace(
    BASE[phase], steps=MOVES, optimizer=PLAIN, **{field: value}
  )
  found = moved(captured(phase, settings, monkeypatch).optimizer)
  rates = {r: value if r in rooms else 1.0 for r in RATES}
  assert close(found, adamw(PLAIN, MOVES, rates))


def updated(accumulate=1, ema_decay=0.5):
  """Twenty steps of a toy: rows seen at a time, and how far the average is."""
  config = OptimizerConfig(warmup_steps=0, decay_share=0, ema_decay=ema_decay)
  phase = PhaseConfig(batch_size=8, accumulate=accumulate, optimizer=config)
  optimizer = make_optimizer(config, 100)
  seen = set()

  def terms(params, state, rows):
    seen.add(len(rows))
    return {'a': Mean.of(rows * params['x'])}, {}

  objective = Objective(
    prepare=lambda state, batch, key: batch, terms=terms, weights={'a': 1.0},
    report=dict, plain=('a',),
  )  # fmt: skip
  step = jax.jit(
    lambda state: update(
      state, jnp.ones(8), jax.random.key(0), objective, optimizer, phase
    )[0]
  )
  state = make_state({'x': jnp.float32(0)}, {}, optimizer, ('a',))
  for _ in range(20):
    state = step(state)
  # Every step goes down by the learning rate; the average lags behind.
  return {
    'rows': seen,
    'moved': round(float(state.params['x']), 4),
    'lag': round(float(state.ema['x'] - state.params['x']), 4),
  }


def test_accumulation_and_average():
  base = {'rows': {8}, 'moved': -0.02, 'lag': 0.001}
  assert updated() == base
  assert updated(accumulate=2) == {**base, 'rows': {4}}
  assert updated(ema_decay=0.0) == {**base, 'lag': 0.0}
