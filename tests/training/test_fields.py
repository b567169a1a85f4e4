"""Every numeric field of the four phases, changed alone.

A table says, for each field, what should be seen of a phase when it has another
value. All that can be seen is compared: what the table does not name must be as
it was.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.cli import loaders
from dreamer4_jax.config import (
  PHASES,
  DynamicsPhase,
  FinetunePhase,
  ImaginationPhase,
  OptimizerConfig,
  PhaseConfig,
  Phases,
  TokenizerPhase,
  VectorComponent,
)
from dreamer4_jax.models import World
from dreamer4_jax.objectives import Mean, patch_mask
from dreamer4_jax.rollout.imagine import Rollout
from dreamer4_jax.training import (
  dynamics_step,
  finetune_step,
  imagination_step,
  phases,
  tokenizer_step,
)
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.state import make_state
from dreamer4_jax.training.update import Objective, update
from dreamer4_jax.types import DreamBatch
from tests.models.tiny_world import CONFIG, make_batch, random_tokens
from tests.rollout.fakes import make_fake
from tests.training import toy

STEPS = {
  'tokenizer': tokenizer_step,
  'dynamics': dynamics_step,
  'finetune': finetune_step,
  'imagination': imagination_step,
}
COMMON = dict(batch_size=8, clip_length=5, best_metric='toy/loss')
BASE = {
  'tokenizer': TokenizerPhase(**COMMON),
  'dynamics': DynamicsPhase(**COMMON),
  'finetune': FinetunePhase(**COMMON),
  'imagination': ImaginationPhase(**COMMON),
}


def numeric(cls):
  """Names of the fields that hold a number."""
  kinds = typing.get_type_hints(cls)
  return {
    f.name for f in dataclasses.fields(cls) if kinds[f.name] in (int, float)
  }


# What the loop of every phase does.

LOOP = {
  'steps': (9, {'batches': {2: 6, 4: 3}, 'lines': [2, 4, 6, 8, 9],
                'kept': [5, 9]}),
  'clip_length': (3, {'batches': {3: 10, 4: 4}}),
  'long_clip_length': (5, {'batches': {2: 10, 5: 4}}),
  'long_every': (7, {'batches': {2: 12, 4: 2}}),
  'long_only_share': (0.5, {'batches': {2: 5, 4: 9}}),
  'log_every': (5, {'lines': [5, 10, 14]}),
  'checkpoint_every': (6, {'kept': [12, 14]}),
  'keep_last': (1, {'kept': [14]}),
  'keep_best': (1, {'kept': [5, 10, 14]}),
}  # fmt: skip


def loop_of(directory, **changes):
  """Trains a toy; returns what can be seen of the loop."""
  iterators = {n: toy.Clips(n) for n in (2, 3, 4, 5)}

  def step_fn(state, batch, key):
    state, metrics = toy.step_fn(state, batch, key)
    count = state.opt[0].count.astype(jnp.float32)
    return state, {**metrics, 'toy/loss': count}  # Best at first.

  toy.run(
    directory,
    iterators,
    step_fn=step_fn,
    **{'best_metric': 'toy/loss', **changes},
  )
  served = {n: len(it.served) for n, it in iterators.items() if it.served}
  checkpoints = (directory / 'tokenizer/checkpoints').iterdir()
  return {
    'batches': served,
    'lines': [line['step'] for line in toy.lines(directory)],
    'kept': sorted(int(p.name) for p in checkpoints if p.name.isdigit()),
  }


LOOP_BASE = {
  'batches': {2: 10, 4: 4},
  'lines': [2, 4, 6, 8, 10, 12, 14],
  'kept': [10, 14],
}


@pytest.mark.parametrize('field', [None, *LOOP])
def test_the_loop(field, tmp_path):
  value, expected = LOOP.get(field, (None, {}))
  found = loop_of(tmp_path, **({field: value} if field else {}))
  assert found == {**LOOP_BASE, **expected}


@pytest.fixture
def hand_over(monkeypatch):
  """Returns a function of phase and settings to what the loop is given."""

  def hand_over(phase, settings):
    config = dataclasses.replace(CONFIG, phases=Phases(**settings))
    seen = {'asked': []}
    monkeypatch.setattr(phases, 'run_phase', lambda **given: seen.update(given))

    def clips(config, name, length, tokenizer):
      seen['asked'].append((name, length))
      return iter(range(1000))

    world = make_fake(None, config)
    phases._train_phase(world, 'run', phase, None, clips, False, None)
    return seen

  monkeypatch.setattr(phases, 'load_rooms', lambda *_: ({}, None))
  monkeypatch.setattr(phases, 'Clock', lambda *_: None)
  monkeypatch.setattr(phases, 'boxed', lambda world, rooms: rooms)
  monkeypatch.setattr(
    tokenizer_step, 'latent_statistics', lambda *_: {'mean': 0}
  )
  return hand_over


@pytest.mark.parametrize('phase', PHASES)
def test_each_phase_gives_the_loop_its_own_fields(phase, hand_over):
  settings = {
    p: dataclasses.replace(BASE[p], clip_length=4 + i, long_clip_length=9 + i)
    for i, p in enumerate(PHASES)
  }
  seen, own = hand_over(phase, settings), settings[phase]
  assert seen['phase_config'] is own
  assert set(seen['iterators']) == {own.clip_length, own.long_clip_length}
  assert set(seen['asked']) == {(phase, n) for n in seen['iterators']}


def test_each_phase_begins_with_a_key_of_its_own(hand_over):
  keys = [jax.random.key(CONFIG.seed)]
  # Those from which the loop makes the keys of its steps.
  keys += [jax.random.fold_in(keys[0], i) for i in range(len(PHASES))]
  keys += [hand_over(p, BASE)['init_state'].args[-1] for p in PHASES]
  found = {tuple(jax.random.key_data(key).tolist()) for key in keys}
  assert len(found) == len(keys)


# How parameters move.

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
  ('imagination', 'world_rate', 0.5, imagination_step.WORLD_ROOMS),
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


# What a step of each phase is made of.


@dataclasses.dataclass
class Captured:
  objective: Objective
  optimizer: object
  world: World


def captured(phase, settings, monkeypatch, config=CONFIG):
  """The parts that a phase's train step hands to `update`."""
  config = dataclasses.replace(config, phases=Phases(**{phase: settings}))
  world = world_of(config)
  monkeypatch.setattr(STEPS[phase], 'update', lambda *args: args)
  _, step = phases.make(world, phase)
  _, _, _, objective, optimizer, given = step(None, None, None)
  assert given is settings
  return Captured(objective, optimizer, world)


def world_of(config):
  """A world that predicts what it is given, with heads without opinion."""
  world = make_fake(lambda z, *_: z, config)
  agent = config.agent

  def head(params, room, h):
    del params
    lead = (*h.shape[:2], agent.distances if room != 'value' else 1)
    if room in ('policy', 'prior'):
      return {
        'move': jnp.zeros((*lead, 3)),
        'keys': jnp.zeros((*lead, 2)),
        'look': jnp.zeros((*lead, 2, 3)),
      }
    width = () if room == 'continuation' else (agent.bins,)
    return jnp.zeros((*lead, *width))

  object.__setattr__(world, 'head', head)
  object.__setattr__(
    world, 'agent_token', lambda params, task: jnp.zeros((*task.shape, 1, 16))
  )
  return world


def loader_of(phase, settings, monkeypatch):
  """What a phase asks of its data."""
  asked = []
  monkeypatch.setattr(
    loaders, 'make_loader', lambda *_, **kwargs: asked.append(kwargs)
  )
  config = dataclasses.replace(CONFIG, phases=Phases(**{phase: settings}))
  loaders.training_loader(config, phase, settings.clip_length, '')
  names = ('batch_size', 'length', 'separate_images', 'relevant_share')
  return [tuple(kwargs[name] for name in names) for kwargs in asked]


def observe(phase, settings, monkeypatch):
  """All that can be seen of a phase beside its loop and its optimizer."""
  made = captured(phase, settings, monkeypatch, WITH_VECTOR)
  found = {
    'data': loader_of(phase, settings, monkeypatch),
    'weights': dict(made.objective.weights),
  }
  return {**found, **LOOK[phase](made, settings, monkeypatch)}


WITH_VECTOR = dataclasses.replace(
  CONFIG, vectors=(VectorComponent(name='arm', size=2),)
)
BATCH = make_batch(8, 5)
KEY = jax.random.key(0)


class State:
  frozen: typing.ClassVar = {'dynamics': {}}

  def __init__(self, step=0):
    self.step = step

  def rooms(self):
    return self.frozen


def look_at_tokenizer(made, settings, monkeypatch):
  del monkeypatch
  *_, mask, _ = made.objective.prepare(None, BATCH, KEY)
  for ratio in (0.9, 0.4):
    if np.array_equal(mask, patch_mask(KEY, (8, 5), 7, ratio)):
      return {'mask ratio': ratio}
  raise AssertionError(mask.mean())


@dataclasses.dataclass
class Drawn:
  """A share, equal to others about as large."""

  share: float

  def __eq__(self, other):
    return abs(self.share - other.share) < 0.05


def look_at_dynamics(made, settings, monkeypatch, prepared=lambda data: data):
  del monkeypatch
  world = made.world
  world.record.clear()

  @jax.jit
  def run(step, key):
    state = State(step)
    data = prepared(made.objective.prepare(state, BATCH, key))
    return data.levels, data.trains

  coarse, ends, steps = [], [], []
  for step in range(12):
    active = False
    for seed in range(8):
      levels, trains = jax.device_get(run(step, jax.random.key(seed)))
      own = levels.step_index[trains] < 3
      fine = levels.signal_index[trains][~own]
      ends.append(np.isin(fine, (0, 7)))
      if own.any():
        active = True
        coarse.append(own)
    steps += [step] if active else []
  rows = {call['z'].shape[0] for call in world.record}
  return {
    'rows of extra passes': rows,
    'steps that bootstrap': steps,
    'share that bootstraps': Drawn(np.concatenate(coarse).mean()),
    'levels at the ends': Drawn(np.concatenate(ends).mean()),
  }


def look_at_finetune(made, settings, monkeypatch):
  found = look_at_dynamics(
    made, settings, monkeypatch, prepared=lambda clips: clips.noisy
  )

  @jax.jit
  def run(batch):
    clips = made.objective.prepare(State(), batch, KEY)
    return clips, made.objective.terms({}, State(), clips)[0]

  clips, terms = run(BATCH)
  # Frames that have one n frames ahead of them, of rows that are cloned.
  cloned = float(terms['policy'].weight) / 4
  return {
    **found,
    'rows at the context level': sorted(np.unique(clips.judged).tolist()),
    'clips moved there': int((clips.judged > 1).sum()),
    'weight of the distances': cloned,
  }


def look_at_imagination(made, settings, monkeypatch):
  seen, keys = {}, []

  def imagine(world, params, batch, key, *, horizon, sampling_steps, policy):
    del world, params, policy
    keys.append(key)
    seen.update(horizon=horizon, sampling_steps=sampling_steps)
    b, t = batch.task.shape
    return Rollout(
      z=random_tokens(0, b, horizon),
      noisy=random_tokens(0, b, t + horizon),
      actions={
        'move': jnp.zeros((b, horizon), int),
        'keys': jnp.zeros((b, horizon, 2), int),
        'look': jnp.zeros((b, horizon, 2)),
      },
      agent=jnp.zeros((b, horizon + 1, 16)),
    )

  def returns(reward, cont, value, *, gamma, lam):
    del cont, value
    seen.update(gamma=gamma, lam=lam)
    return reward

  def clips(world, params, batch, phase, step, key):
    keys.append(key)
    seen['clips'] = (phase.steps, phase.batch_size, phase.relevant_share)

  monkeypatch.setattr(imagination_step, 'imagine', imagine)
  monkeypatch.setattr(imagination_step, 'lambda_returns', returns)
  monkeypatch.setattr(imagination_step, 'prepare_clips', clips)
  batch = BATCH
  if settings.world_rate:
    batch = DreamBatch(contexts=BATCH, clips=BATCH)
  made.objective.prepare(State(), batch, KEY)
  # Clips draw from none of the keys that dreams are made of.
  dream, *others = keys
  used = [dream, *jax.random.split(dream)]
  used += [jax.random.fold_in(k, i) for k in used for i in range(20)]
  for key in others:
    assert all(
      (jax.random.bits(key, 4) != jax.random.bits(k, 4)).any() for k in used
    )
  return seen


LOOK = {
  'tokenizer': look_at_tokenizer,
  'dynamics': look_at_dynamics,
  'finetune': look_at_finetune,
  'imagination': look_at_imagination,
}
BOOTSTRAP = {
  'rows of extra passes': {2},
  'steps that bootstrap': [*range(12)],
  'share that bootstraps': Drawn(0.25 * 3 / 4),
  'levels at the ends': Drawn(2 / 8),
}
# Batch, length, separate images, relevant share.
SEEN = {
  'tokenizer': {
    'data': [(8, 5, 0.0, 0.0)],
    'weights': {'mse': 1.0, 'vectors': 1.0},
    'mask ratio': 0.9,
  },
  'dynamics': {
    'data': [(8, 5, 0.0, 0.0)],
    'weights': {'dynamics': 1.0},
    **BOOTSTRAP,
  },
  'finetune': {
    'data': [(8, 5, 0.0, 0.5)],
    'weights': {
      'dynamics': 1.0, 'policy': 1.0, 'reward': 1.0, 'continuation': 1.0
    },
    **BOOTSTRAP,
    # Half of the rows train the dynamics, and a quarter of the others' half
    # stand for all of them: each for four.
    'rows of extra passes': {1},
    'rows at the context level': [0, 1, 4],
    'clips moved there': 1,
    'weight of the distances': 5 + 4 + 3,
  },
  'imagination': {
    'data': [(8, 5, 0.0, 0.5)],
    'weights': {'positive': -0.5, 'negative': 0.5, 'kl': 0.3, 'value': 1.0},
    'horizon': 15,
    'sampling_steps': 4,
    'gamma': 0.997,
    'lam': 0.95,
  },
}  # fmt: skip
DYNAMICS = {
  'bootstrap_start': (5, {'steps that bootstrap': [*range(5, 12)]}),
  'bootstrap_every': (3, {'steps that bootstrap': [0, 3, 6, 9]}),
  # Of the frames at neither end, all but 30 % are drawn there.
  'end_share': (0.7, {'levels at the ends': Drawn(0.7 + 0.3 / 4)}),
}
FIELDS = {
  'tokenizer': {
    'max_mask_ratio': (0.4, {'mask ratio': 0.4}),
    'vector_weight': (2.0, {'weights': {'mse': 1.0, 'vectors': 2.0}}),
  },
  'dynamics': {
    **DYNAMICS,
    'bootstrap_rows': (0.5, {
      'rows of extra passes': {4},
      'share that bootstraps': Drawn(0.5 * 3 / 4),
    }),
  },
  'finetune': {
    **DYNAMICS,
    'bootstrap_rows': (0.5, {
      'rows of extra passes': {2},
      'share that bootstraps': Drawn(0.5 * 3 / 4),
    }),
    'relevant_share': (0.25, {
      'data': [(8, 5, 0.0, 0.25)],
      # Of more rows that train the dynamics, more bootstrap.
      'rows of extra passes': {2},
    }),
    'context_share': (0.5, {
      'clips moved there': 2,
      'rows at the context level': [0, 1, 2],
    }),
    'dynamics_weight': (2.0, {'weights': dict(
      dynamics=2.0, policy=1.0, reward=1.0, continuation=1.0)}),
    'policy_weight': (2.0, {'weights': dict(
      dynamics=1.0, policy=2.0, reward=1.0, continuation=1.0)}),
    'reward_weight': (2.0, {'weights': dict(
      dynamics=1.0, policy=1.0, reward=2.0, continuation=1.0)}),
    'cont_weight': (2.0, {'weights': dict(
      dynamics=1.0, policy=1.0, reward=1.0, continuation=2.0)}),
    'distance_decay': (0.5, {'weight of the distances': 5 + 4 / 2 + 3 / 4}),
  },
  'imagination': {
    'horizon': (7, {'horizon': 7}),
    'sampling_steps': (2, {'sampling_steps': 2}),
    'gamma': (0.9, {'gamma': 0.9}),
    'lam': (0.8, {'lam': 0.8}),
    'alpha': (0.75, {'weights': dict(
      positive=-0.75, negative=0.25, kl=0.3, value=1.0)}),
    'beta': (0.7, {'weights': dict(
      positive=-0.5, negative=0.5, kl=0.7, value=1.0)}),
    'value_weight': (2.0, {'weights': dict(
      positive=-0.5, negative=0.5, kl=0.3, value=2.0)}),
    'relevant_share': (0.25, {'data': [(8, 5, 0.0, 0.25)]}),
    'world_rate': (0.5, {
      # As many clips of finetuning, with its share of relevant ones.
      'data': [(8, 5, 0.0, 0.5), (8, 5, 0.0, 0.5)],
      'weights': dict(
        positive=-0.5, negative=0.5, kl=0.3, value=1.0,
        dynamics=1.0, prior=1.0, reward=1.0, continuation=1.0),
      'clips': (1000, 8, 0.5),
    }),
  },
}  # fmt: skip
# Fields of all phases that the step and the data see.
SHARED = {
  'batch_size': (4, lambda data: (4, *data[1:])),
  'clip_length': (3, lambda data: (data[0], 3, *data[2:])),
  'separate_images': (0.5, lambda data: (*data[:2], 0.5, data[3])),
}
CASES = [
  *((p, None) for p in PHASES),
  *((p, field) for p in PHASES for field in FIELDS[p]),
  *((p, field) for p in PHASES for field in SHARED),
]


@pytest.mark.parametrize('phase, field', CASES)
def test_a_field_changes_what_it_says(phase, field, monkeypatch):
  expected = dict(SEEN[phase])
  value = None
  if field in SHARED:
    value, change = SHARED[field]
    expected['data'] = [change(data) for data in expected['data']]
  elif field:
    value, changes = FIELDS[phase][field]
    expected |= changes
  settings = BASE[phase]
  if field:
    settings = dataclasses.replace(settings, **{field: value})
  found = observe(phase, settings, monkeypatch)
  assert found == expected


def test_lpips_has_a_weight_where_there_are_weights():
  for weight in (0.2, 0.7):
    settings = dataclasses.replace(BASE['tokenizer'], lpips_weight=weight)
    distance = lambda a, b: jnp.zeros(a.shape[:2])
    world = world_of(CONFIG)
    objective = tokenizer_step.tokenizer_objective(world, settings, distance)
    assert objective.weights == {'mse': 1.0, 'lpips': weight}
    objective = tokenizer_step.tokenizer_objective(world, settings)
    assert objective.weights == {'mse': 1.0}


def test_no_field_is_forgotten():
  everywhere = {*LOOP, *SHARED, 'accumulate'}
  elsewhere = {
    'tokenizer': {'lpips_weight'},
    'dynamics': set(),
    'finetune': {'dynamics_rate'},
    'imagination': set(),
  }
  for phase, settings in BASE.items():
    watched = {*everywhere, *FIELDS[phase], *elsewhere[phase]}
    assert numeric(type(settings)) == watched, phase
  assert numeric(OptimizerConfig) == {*OPTIMIZER, 'ema_decay'}
