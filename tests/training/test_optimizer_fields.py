"""Fields of the optimizer, changed alone: how parameters move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.config import PHASES, Config, OptimizerConfig
from dreamer4_jax.objectives import Mean
from dreamer4_jax.training import imagination_step
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.state import make_state
from dreamer4_jax.training.update import Objective, update
from tests.training.captured import BASE, captured

OPTIMIZER = {
  'optimizer.warmup_steps': 2,
  'optimizer.decay_share': 0.5,
  'optimizer.weight_decay': 0.3,
  'optimizer.clip_norm': 0.2,
  'optimizer.betas': (0.5, 0.7),
}
"""Another value of each field; `learning_rate` and `muon` have tests below."""
MODULES = ('dynamics', 'task', 'policy', 'prior', 'value')
RATES = dict.fromkeys(MODULES, 1.0)
MOVES = 12
PLAIN = BASE.edit(
  {
    **{f'phases.{phase}.steps': MOVES for phase in PHASES},
    'optimizer.warmup_steps': 6,
    'optimizer.decay_share': 0.3,
  }
)


def gradients():
  """Gradients of some steps, and parameters: of each module two."""
  rng = np.random.default_rng(0)

  def draw(size=1.0):
    pair = lambda: {'kernel': rng.normal(size=3), 'bias': rng.normal(size=2)}
    return {name: jax.tree.map(lambda x: x * size, pair()) for name in MODULES}

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


def adamw(config, peak=1e-3, rates=RATES):
  """The same by hand, in float64 (Loshchilov & Hutter, 2019)."""
  params, all_grads = gradients()
  m = jax.tree.map(np.zeros_like, params)
  v = jax.tree.map(np.zeros_like, params)
  warmup, decay = config.warmup_steps, round(config.decay_share * MOVES)
  b1, b2 = config.betas
  for n, grads in enumerate(all_grads):
    # Up from a fraction of the peak, and down to a tenth over the last steps.
    up = 1 / warmup + (1 - 1 / warmup) * min(n / warmup, 1)
    gone = max(n - (MOVES - decay), 0) / decay
    rate = peak * (up - gone * 0.9)
    leaves = [g for module in grads.values() for g in module.values()]
    norm = np.sqrt(sum((g**2).sum() for g in leaves))
    clip = min(1, config.clip_norm / norm)
    for module in params:
      for name in ('kernel', 'bias'):
        g = grads[module][name] * clip
        m[module][name] = b1 * m[module][name] + (1 - b1) * g
        v[module][name] = b2 * v[module][name] + (1 - b2) * g**2
        mean = m[module][name] / (1 - b1 ** (n + 1))
        square = v[module][name] / (1 - b2 ** (n + 1))
        move = mean / (np.sqrt(square) + 1e-8)
        if name == 'kernel':
          move = move + config.weight_decay * params[module][name]
        params[module][name] = params[module][name] - rate * (
          rates[module] * move
        )
  return params


def close(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.allclose(x, y, rtol=2e-5, atol=2e-6) for x, y in pairs)


@pytest.mark.parametrize('field', [None, *OPTIMIZER])
def test_the_optimizer(field, monkeypatch):
  # Each field alone in one phase.
  config = PLAIN.edit({field: OPTIMIZER[field]} if field else {})
  found = moved(captured('dynamics', monkeypatch, config).optimizer)
  assert close(found, adamw(config.optimizer))
  assert close(found, adamw(PLAIN.optimizer)) == (field is None)


@pytest.mark.parametrize('phase', PHASES)
def test_each_phase_has_the_optimizer_and_a_rate_of_its_own(phase, monkeypatch):
  # All fields together; in every phase another rate.
  rates = {f'phases.{p}.learning_rate': 3e-3 + i for i, p in enumerate(PHASES)}
  config = PLAIN.edit({**OPTIMIZER, **rates})
  found = moved(captured(phase, monkeypatch, config).optimizer)
  peak = rates[f'phases.{phase}.learning_rate']
  assert close(found, adamw(config.optimizer, peak))


@pytest.mark.parametrize('phase', PHASES)
def test_muon_is_for_the_phases_that_are_named(phase, monkeypatch):
  def is_adamw(muon):
    config = PLAIN.edit({'optimizer.muon': muon})
    found = moved(captured(phase, monkeypatch, config).optimizer)
    return close(found, adamw(PLAIN.optimizer))

  assert is_adamw(tuple(p for p in PHASES if p != phase))
  assert not is_adamw((phase,))


SLOW = [
  ('finetune', 'dynamics_rate', 0.25, ('dynamics',)),
  ('imagination', 'world_rate', 0.5, imagination_step.WORLD_MODULES),
]


@pytest.mark.parametrize('phase, field, value, modules', SLOW)
def test_rates_of_modules(phase, field, value, modules, monkeypatch):
  config = PLAIN.edit({f'phases.{phase}.{field}': value})
  found = moved(captured(phase, monkeypatch, config).optimizer)
  rates = {m: value if m in modules else 1.0 for m in MODULES}
  assert close(found, adamw(PLAIN.optimizer, rates=rates))


def updated(accumulate=1, ema_decay=0.5):
  """Twenty steps of a toy: rows seen at a time, and how far the average is."""
  config = Config(
    optimizer=OptimizerConfig(
      warmup_steps=0, decay_share=0, ema_decay=ema_decay
    ),
    accumulate=accumulate,
  )
  optimizer = make_optimizer(config, 'dynamics')
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
      state, jnp.ones(8), jax.random.key(0), objective, optimizer, config
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
