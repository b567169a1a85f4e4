"""Every numeric field of the four phases, changed alone.

A table says, for each field, what should be seen of a phase when it has another
value. All that can be seen is compared: what the table does not name must be as
it was. Fields of the loop and of the optimizer have files of their own.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.config import (
  PHASES,
  OptimizerConfig,
  Phases,
  VectorComponent,
)
from dreamer4_jax.objectives import patch_mask
from dreamer4_jax.rollout.imagine import Rollout
from dreamer4_jax.training import (
  clips,
  imagination_step,
  tokenizer_step,
)
from dreamer4_jax.types import DreamBatch
from tests.models.tiny_world import CONFIG, make_batch, random_tokens
from tests.training.captured import BASE, captured, numeric, world_of
from tests.training.test_loop_fields import LOOP
from tests.training.test_optimizer_fields import OPTIMIZER


def loader_of(phase, settings, monkeypatch):
  """What a phase asks of its data."""
  asked = []
  monkeypatch.setattr(
    clips, 'make_loader', lambda *_, **kwargs: asked.append(kwargs)
  )
  config = dataclasses.replace(CONFIG, phases=Phases(**{phase: settings}))
  clips.training_loader(config, phase, settings.clip_length, '')
  names = (
    'batch_size', 'length', 'separate_images', 'relevant_share',
    'baseline_share', 'novel_share',
  )  # fmt: skip
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

  def all_params(self):
    return self.frozen


def look_at_tokenizer(made, settings, monkeypatch):
  del monkeypatch
  *_, mask, _, noise = made.objective.prepare(None, BATCH, KEY)
  key = jax.random.split(KEY)[0]
  ratios = [
    ratio
    for ratio in (0.9, 0.4)
    if np.array_equal(mask, patch_mask(key, (8, 5), 7, ratio))
  ]
  return {
    'mask ratio': ratios,
    'latent noise': noise if noise is None else Drawn(noise.std((2, 3)).mean()),
  }


@dataclasses.dataclass
class Drawn:
  """A share, equal to others about as large."""

  share: float

  def __eq__(self, other):
    return isinstance(other, Drawn) and abs(self.share - other.share) < 0.05


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
# Batch, length, shares of separate images, relevant clips, baselines and novel
# ones.
SEEN = {
  'tokenizer': {
    'data': [(8, 5, 0.0, 0.0, 0.0, 0.0)],
    'weights': {'mse': 1.0, 'vectors': 1.0},
    'mask ratio': [0.9],
    'latent noise': None,
  },
  'dynamics': {
    'data': [(8, 5, 0.0, 0.0, 0.0, 0.0)],
    'weights': {'dynamics': 1.0},
    **BOOTSTRAP,
  },
  'finetune': {
    'data': [(8, 5, 0.0, 0.5, 0.0, 0.0)],
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
    'data': [(8, 5, 0.0, 0.5, 0.0, 0.0)],
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
  # Every other frame is clear, and a quarter of those between; another quarter
  # is pure noise. The noisy ones alone bootstrap.
  'clear_share': (
    1.0,
    {
      'levels at the ends': Drawn(0.84),
      'share that bootstraps': Drawn(0.25 * 3 / 4 * 3 / 8),
    },
  ),
}
FIELDS = {
  'tokenizer': {
    'max_mask_ratio': (0.4, {'mask ratio': [0.4]}),
    'latent_noise': (0.6, {'latent noise': Drawn(0.3)}),
    'vector_weight': (2.0, {'weights': {'mse': 1.0, 'vectors': 2.0}}),
    'hard_regions': (0.5, {'weights': {'hard_mse': 1.0, 'vectors': 1.0}}),
    'relevant_share': (0.25, {'data': [(8, 5, 0.0, 0.25, 0.0, 0.0)]}),
  },
  'dynamics': {
    **DYNAMICS,
    'relevant_share': (0.25, {'data': [(8, 5, 0.0, 0.25, 0.0, 0.0)]}),
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
    'baseline_share': (0.25, {'data': [(8, 5, 0.0, 0.5, 0.25, 0.0)]}),
    'relevant_share': (0.25, {
      'data': [(8, 5, 0.0, 0.25, 0.0, 0.0)],
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
    'relevant_share': (0.25, {'data': [(8, 5, 0.0, 0.25, 0.0, 0.0)]}),
    'world_rate': (0.5, {
      # As many clips of finetuning, with its share of relevant ones.
      'data': [(8, 5, 0.0, 0.5, 0.0, 0.0)] * 2,
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
  'separate_images': (0.5, lambda data: (*data[:2], 0.5, *data[3:])),
  'novel_share': (0.5, lambda data: (*data[:5], 0.5)),
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


def test_imagination_has_no_clips_of_baselines(monkeypatch):
  asked = []
  monkeypatch.setattr(
    clips, 'make_loader', lambda *_, **kwargs: asked.append(kwargs)
  )
  p = Phases(
    finetune=dataclasses.replace(BASE['finetune'], baseline_share=0.25),
    imagination=dataclasses.replace(BASE['imagination'], world_rate=0.5),
  )
  config = dataclasses.replace(CONFIG, phases=p)
  for phase in ('finetune', 'imagination'):
    clips.training_loader(config, phase, 5, '')
  assert [kwargs['baseline_share'] for kwargs in asked] == [0.25, 0, 0]


def test_no_field_is_forgotten():
  everywhere = {*LOOP, *SHARED, 'accumulate'}
  elsewhere = {
    'tokenizer': {'lpips_weight'},
    'dynamics': {'low_weight'},
    'finetune': {'low_weight', 'dynamics_rate'},
    'imagination': set(),
  }
  for phase, settings in BASE.items():
    watched = {*everywhere, *FIELDS[phase], *elsewhere[phase]}
    assert numeric(type(settings)) == watched, phase
  assert numeric(OptimizerConfig) == {*OPTIMIZER, 'ema_decay'}
