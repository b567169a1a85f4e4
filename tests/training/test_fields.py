"""Every field of the phases, and of what they share, changed alone.

Tables say, for each field, what should be seen of a phase when it has another
value. All that can be seen is compared: what the tables do not name must be
unchanged. Fields of the loop and of the optimizer have files of their own.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.config import (
  PHASES,
  Config,
  DataConfig,
  ForcingConfig,
  OptimizerConfig,
  SavingConfig,
  SourceConfig,
  VectorComponent,
)
from dreamer4_jax.data import Draws
from dreamer4_jax.objectives import patch_mask
from dreamer4_jax.rollout.imagine import Rollout
from dreamer4_jax.training import (
  clips,
  dynamics_step,
  imagination_step,
  tokenizer_step,
)
from dreamer4_jax.types import DreamBatch
from tests.models.tiny_world import make_batch, random_tokens
from tests.training.captured import BASE, captured, names
from tests.training.test_loop_fields import LOOP
from tests.training.test_optimizer_fields import OPTIMIZER, SLOW

RUN = dataclasses.replace(
  BASE, vectors=(VectorComponent(name='arm', size=2),)
).edit({'data.sources': (SourceConfig(path='frames', latents='latents'),)})
BATCH = make_batch(8, 5)
KEY = jax.random.key(0)


@dataclasses.dataclass
class Drawn:
  """A share, equal to others about as large."""

  share: float

  def __eq__(self, other):
    return isinstance(other, Drawn) and abs(self.share - other.share) < 0.05


@dataclasses.dataclass
class State:
  """Stands for a train state; arrays that nothing looks at are left out."""

  step: object = 0
  frozen: typing.ClassVar = {'dynamics': {}, 'task': {}}

  def all_params(self):
    return self.frozen


def loader_of(phase, config, monkeypatch):
  """What a phase asks of its data, once for each length of its clips."""
  asked = []

  def make_loader(
    datasets, split, expected, draws, *, tokenizer, process, threads
  ):
    del expected, process
    paths = [d.path for d in datasets]
    asked.append((draws, paths, split, tokenizer, threads))

  monkeypatch.setattr(clips, 'make_loader', make_loader)
  tokenizer = '' if phase == 'tokenizer' else 'made by this'
  for length in getattr(config.phases, phase).clip_lengths:
    clips.training_loader(config, phase, length, tokenizer)
  draws, *others = zip(*asked, strict=True)
  first, *more = zip(*others, strict=True)
  assert all(other == first for other in more)
  return {'draws': list(draws), 'loader': first}


def observe(phase, config, monkeypatch):
  """All that can be seen of a phase beside its loop and its optimizer."""
  distance = lambda a, b: jnp.zeros(a.shape[:2])
  monkeypatch.setattr(tokenizer_step, 'load_lpips', lambda path: distance)
  made = captured(phase, monkeypatch, config)
  return {
    **loader_of(phase, config, monkeypatch),
    'weights': dict(made.objective.weights),
    **LOOK[phase](made, monkeypatch),
  }


def look_at_tokenizer(made, monkeypatch):
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


def look_at_noise(made, monkeypatch, batch=BATCH, noisy_of=lambda data: data):
  """How clips are noised, and what they weigh."""
  world, objective = made.world, made.objective
  weights, real = set(), dynamics_step.prediction_losses
  of_events, weigh = set(), dynamics_step.event_weights

  def prediction_losses(prediction, data, low_weight):
    weights.add(low_weight)
    return real(prediction, data, low_weight)

  def event_weights(batch, forcing):
    of_events.add(forcing.event_weight)
    return weigh(batch, forcing)

  monkeypatch.setattr(dynamics_step, 'prediction_losses', prediction_losses)
  monkeypatch.setattr(dynamics_step, 'event_weights', event_weights)
  world.record.clear()
  objective.terms({}, State(), objective.prepare(State(), batch, KEY))

  def prepare(step, key):
    data = noisy_of(objective.prepare(State(step), batch, key))
    return data.levels, data.trains

  world.record.clear()
  each = jax.jit(jax.vmap(jax.vmap(prepare, (None, 0)), (0, None)))
  levels, trains = jax.device_get(
    each(jnp.arange(12), jax.random.split(KEY, 32))
  )
  # [steps, keys, rows, frames].
  trains = np.broadcast_to(trains[..., None], levels.step_index.shape)
  coarse = trains & (levels.step_index < 3)
  fine = levels.signal_index[trains & ~coarse]
  active = coarse.any((1, 2, 3))
  return {
    'rows encoded at a time': {
      call['frames'].shape[0] for call in world.record if 'frames' in call
    },
    'rows of extra passes': {
      call['z'].shape[0] for call in world.record if 'z' in call
    },
    'steps that bootstrap': np.flatnonzero(active).tolist(),
    'share that bootstraps': Drawn(coarse[active].sum() / trains[active].sum()),
    'levels at the ends': Drawn(np.isin(fine, (0, 7)).mean()),
    'weight of noise': weights,
    'weight of events': of_events,
  }


def look_at_dynamics(made, monkeypatch):
  return look_at_noise(made, monkeypatch)


def look_at_clips(made, monkeypatch, batch, clips_of, policy):
  """How clips of finetuning are noised, and what they train."""
  found = look_at_noise(
    made, monkeypatch, batch, lambda data: clips_of(data).noisy
  )

  @jax.jit
  def run(batch):
    data = made.objective.prepare(State(), batch, KEY)
    return clips_of(data), made.objective.terms({}, State(), data)[0]

  clips, terms = run(batch)
  # Frames that have one n frames ahead of them, of rows that are cloned.
  cloned = float(terms[policy].weight) / 4
  return {
    **found,
    'rows at the context level': sorted(np.unique(clips.judged).tolist()),
    'clips moved there': int((clips.judged > 1).sum()),
    'weight of the distances': cloned,
  }


def look_at_finetune(made, monkeypatch):
  return look_at_clips(made, monkeypatch, BATCH, lambda data: data, 'policy')


def look_at_imagination(made, monkeypatch):
  config, seen, keys = made.world.config, {}, []
  real = imagination_step.prepare_clips

  def imagine(world, params, batch, key, *, horizon, sampling_steps, policy):
    del world, params, policy
    keys.append(key)
    b, t = batch.task.shape
    seen.update(
      {'dreams at a time': b, 'horizon': horizon, 'steps': sampling_steps}
    )
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

  def arrivals(world, params, rollout):
    del world, params
    lead = rollout.z.shape[:2]
    return jnp.full(lead, 0.25), jnp.full(lead, 0.8)

  def returns(reward, cont, value, *, gamma, lam):
    del cont, value
    seen.update(gamma=gamma, lam=lam)
    return reward

  def prepare_clips(world, params, batch, step, key, **kwargs):
    keys.append(key)
    return real(world, params, batch, step, key, **kwargs)

  monkeypatch.setattr(imagination_step, 'imagine', imagine)
  monkeypatch.setattr(imagination_step, 'arrivals', arrivals)
  monkeypatch.setattr(imagination_step, 'lambda_returns', returns)
  monkeypatch.setattr(imagination_step, 'prepare_clips', prepare_clips)
  waking, batch = config.phases.imagination.world_rate > 0, BATCH
  if waking:
    batch = DreamBatch(contexts=BATCH, clips=BATCH)
  dream = made.objective.prepare(State(), batch, KEY)
  seen['goes on'] = round(float(dream.cont[0, 0]), 3)
  if config.accumulate == 1:
    # Clips draw from none of the keys that dreams are made of.
    first, *others = keys
    used = [first, *jax.random.split(first)]
    used += [jax.random.fold_in(k, i) for k in used for i in range(20)]
    for key in others:
      assert all(
        (jax.random.bits(key, 4) != jax.random.bits(k, 4)).any() for k in used
      )
  if waking:
    seen['kept up'] = look_at_clips(
      made, monkeypatch, batch, lambda e: e.clips, 'prior'
    )
  return seen


LOOK = {
  'tokenizer': look_at_tokenizer,
  'dynamics': look_at_dynamics,
  'finetune': look_at_finetune,
  'imagination': look_at_imagination,
}
NOISE = {
  'rows encoded at a time': {8},
  'rows of extra passes': {2},
  'steps that bootstrap': [*range(12)],
  'share that bootstraps': Drawn(0.25 * 3 / 4),
  'levels at the ends': Drawn(2 / 8),
  'weight of noise': {0.1},
  'weight of events': {1.0},
}
CLIPS = {
  **NOISE,
  # Half of the rows are uniform and train the dynamics, except a quarter of
  # them, which stand in for all uniform rows: each for four.
  'rows of extra passes': {1},
  'rows at the context level': [0, 1, 4],
  'clips moved there': 1,
  'weight of the distances': 5 + 4 + 3,
}


def drawn(number, **shares):
  """Clips of a batch, from the random stream of that number."""
  # By default a prompt asks for each task once.
  agents = shares.get('purpose', 'video') != 'video'
  return Draws(
    length=5,
    batch_size=8,
    seed=1000 * number + 5,
    **{'milestones': agents, **shares},
  )


HALF = {'relevant_share': 0.5}
LATER = (['latents'], 'train', 'made by this', 1)
SEEN = {
  'tokenizer': {
    'draws': [drawn(0)],
    'loader': (['frames'], 'train', '', 1),
    'weights': {'mse': 1.0, 'vectors': 1.0},
    'mask ratio': [0.9],
    'latent noise': None,
  },
  'dynamics': {
    'draws': [drawn(1)],
    'loader': LATER,
    'weights': {'dynamics': 1.0},
    **NOISE,
  },
  'finetune': {
    'draws': [drawn(2, purpose='cloning', **HALF)],
    'loader': LATER,
    'weights': {
      'dynamics': 1.0, 'policy': 1.0, 'reward': 1.0, 'continuation': 1.0
    },
    **CLIPS,
  },
  'imagination': {
    'draws': [drawn(3, purpose='dreams', **HALF)],
    'loader': LATER,
    'weights': {'positive': -0.5, 'negative': 0.5, 'kl': 0.3, 'value': 1.0},
    'dreams at a time': 8,
    'horizon': 15,
    'steps': 4,
    'gamma': 0.997,
    'lam': 0.95,
    'goes on': 0.8,
  },
}  # fmt: skip
WEIGHTS = SEEN['imagination']['weights']
FEWER = {'relevant_share': 0.25}
KEPT_UP = {
  # As many clips of finetuning, from a stream of their own.
  'draws': [*SEEN['imagination']['draws'],
            drawn(6, purpose='cloning', **HALF)],
  'weights': {**WEIGHTS, 'dynamics': 1.0, 'prior': 1.0, 'reward': 1.0,
              'continuation': 1.0},
  'kept up': CLIPS,
}  # fmt: skip
FIELDS = {
  'tokenizer': [
    ('max_mask_ratio', 0.4, {'mask ratio': [0.4]}),
    ('latent_noise', 0.6, {'latent noise': Drawn(0.3)}),
    ('lpips_path', 'some.npz',
     {'weights': {'mse': 1.0, 'vectors': 1.0, 'lpips': 0.2}}),
  ],
  'dynamics': [
    ('bootstrap_start', 5, {'steps that bootstrap': [*range(5, 12)]}),
    ('relevant_share', 0.25, {'draws': [drawn(1, **FEWER)]}),
  ],
  'finetune': [
    ('baseline_share', 0.25,
     {'draws': [drawn(2, purpose='cloning', baseline_share=0.25, **HALF)]}),
    ('relevant_share', 0.25, {
      'draws': [drawn(2, purpose='cloning', **FEWER)],
      # More rows train the dynamics, so more bootstrap.
      'rows of extra passes': {2},
    }),
    ('context_share', 0.5,
     {'clips moved there': 2, 'rows at the context level': [0, 1, 2]}),
    ('distance_decay', 0.5, {'weight of the distances': 5 + 4 / 2 + 3 / 4}),
    ('dynamics_rate', 0.5, {}),  # The optimizer has it, see SLOW.
  ],
  'imagination': [
    ('horizon', 7, {'horizon': 7}),
    ('sampling_steps', 2, {'steps': 2}),
    ('gamma', 0.9, {'gamma': 0.9}),
    ('lam', 0.8, {'lam': 0.8}),
    ('alpha', 0.75,
     {'weights': {**WEIGHTS, 'positive': -0.75, 'negative': 0.25}}),
    ('beta', 0.7, {'weights': {**WEIGHTS, 'kl': 0.7}}),
    ('relevant_share', 0.25, {'draws': [drawn(3, purpose='dreams', **FEWER)]}),
    ('stop_at_event', True, {'goes on': 0.6}),
    ('world_rate', 0.5, KEPT_UP),
  ],
}  # fmt: skip
# What all phases share: value, and what draws, loader and the rest become.
DATA = [
  ('data.separate_images', 0.5, {'separate_images': 0.5}),
  ('data.novel_share', 0.5, {'novel_share': 0.5}),
  ('data.switch_tasks', 0.25, {'switch_tasks': 0.25}),
  ('data.lead', 7, {'lead': 7}),
]
LOADER = [
  ('data.sources', (SourceConfig(path='other'),), 0, ['other']),
  ('data.splits', ('all', 'none'), 1, 'all'),
  ('data.threads', 3, 3, 3),
]
FORCING = [
  ('forcing.bootstrap_share', 1 / 2,
   {'rows of extra passes': {4}, 'share that bootstraps': Drawn(3 / 8)},
   {'rows of extra passes': {2}, 'share that bootstraps': Drawn(3 / 8)}),
  # All of the eight rows, now and then; a pair of rows has one that trains.
  ('forcing.bootstrap_share', 1 / 9,
   {'rows of extra passes': {8}, 'share that bootstraps': Drawn(3 / 4),
    'steps that bootstrap': [0, 9]},
   {'rows of extra passes': {4}, 'share that bootstraps': Drawn(3 / 4),
    'steps that bootstrap': [0, 9]}),
  # Of the frames at neither end, all but 30 % are drawn there.
  ('forcing.end_share', 0.7,
   *2 * [{'levels at the ends': Drawn(0.7 + 0.3 / 4)}]),
  # Every other frame is clear, and a quarter of those between; another quarter
  # is pure noise. The noisy ones alone bootstrap.
  ('forcing.clear_share', 1.0,
   *2 * [{'levels at the ends': Drawn(0.84),
          'share that bootstraps': Drawn(0.25 * 3 / 4 * 3 / 8)}]),
  ('forcing.low_weight', 0.6, *2 * [{'weight of noise': {0.6}}]),
  ('forcing.event_weight', 3.0, *2 * [{'weight of events': {3.0}}]),
]  # fmt: skip
ACCUMULATE = {
  'tokenizer': {},
  'dynamics': {
    'rows encoded at a time': {1},
    'rows of extra passes': {1},
  },
  'finetune': {'rows encoded at a time': {1}},
  'imagination': {'dreams at a time': 1},
}


def cases(phase):
  """Fields, values, and what is then seen of a phase."""
  seen, own = SEEN[phase], f'phases.{phase}'
  draws = lambda **changes: {
    'draws': [dataclasses.replace(d, **changes) for d in seen['draws']]
  }
  yield '', None, {}
  for field, value, changes in FIELDS[phase]:
    yield f'{own}.{field}', value, changes
  for field, value, changes in DATA:
    # Dreams go on from moving pictures.
    dreams = phase == 'imagination' and field == 'data.separate_images'
    yield field, value, draws(**({} if dreams else changes))
  for field, value, place, changed in LOADER:
    loader = list(seen['loader'])
    loader[place] = changed
    yield field, value, {'loader': tuple(loader)}
  for field, value, dynamics, finetune in FORCING:
    yield (
      field,
      value,
      {'dynamics': dynamics, 'finetune': finetune}.get(phase, {}),
    )
  yield 'accumulate', 8, ACCUMULATE[phase]
  yield f'{own}.batch_size', 4, draws(batch_size=4)
  lengths = [
    dataclasses.replace(draw, length=n, seed=draw.seed - 5 + n)
    for n in (3, 6)
    for draw in seen['draws']
  ]
  yield f'{own}.clip_lengths', (3, 6), {'draws': lengths}


CASES = [(phase, *case) for phase in PHASES for case in cases(phase)]


@pytest.mark.parametrize(
  'phase, field, value, changes',
  CASES,
  ids=[f'{phase} {field}' for phase, field, *_ in CASES],
)
def test_a_field_changes_what_it_says(
  phase, field, value, changes, monkeypatch
):
  config = RUN.edit({field: value} if field else {})
  assert observe(phase, config, monkeypatch) == {**SEEN[phase], **changes}


@pytest.mark.parametrize('phase', PHASES)
def test_no_phase_sees_fields_of_another(phase, monkeypatch):
  others = {
    field: value
    for other, field, value, _ in CASES
    if other != phase and field.startswith(f'phases.{other}.')
  }
  assert len(others) > 10
  assert observe(phase, RUN.edit(others), monkeypatch) == SEEN[phase]


def test_what_is_kept_up_is_finetuning_on_the_steps_of_imagination(monkeypatch):
  config = RUN.edit(
    {
      'phases.imagination.world_rate': 0.5,
      'phases.imagination.relevant_share': 0.75,
      'phases.imagination.clip_lengths': (5, 9),
      'phases.dynamics.bootstrap_start': 3,
      'phases.finetune.relevant_share': 0.25,
      'phases.finetune.context_share': 0.5,
      'phases.finetune.distance_decay': 0.5,
      'phases.finetune.baseline_share': 0.5,
      'phases.finetune.clip_lengths': (4,),
      'data.long_every': 3,
      'forcing.bootstrap_share': 1 / 9,
      'forcing.low_weight': 0.6,
    }
  )
  found = observe('imagination', config, monkeypatch)
  assert found['kept up'] == {
    **CLIPS,
    # Of each pair of rows one trains.
    'rows of extra passes': {8},
    'rows at the context level': [0, 1, 2],
    'clips moved there': 2,
    'weight of the distances': 5 + 4 / 2 + 3 / 4,
    'weight of noise': {0.6},
    # The first short clip and the first long one; 9 short ones later the next.
    'steps that bootstrap': [0, 2],
    'share that bootstraps': Drawn(3 / 4),
  }
  # Clips of baselines, whose prompts are no tasks, are left to finetuning.
  kept = dict(relevant_share=0.25, purpose='cloning')
  dreams = dict(relevant_share=0.75, purpose='dreams')
  assert found['draws'] == [
    dataclasses.replace(d, length=n, seed=d.seed - 5 + n)
    for n in (5, 9)
    for d in (drawn(3, **dreams), drawn(6, **kept))
  ]


def test_no_field_is_forgotten():
  groups = {p: type(getattr(RUN.phases, p)) for p in PHASES}
  everything = names('phases', **groups) | names(
    '',
    forcing=ForcingConfig,
    optimizer=OptimizerConfig,
    data=DataConfig,
    saving=SavingConfig,
  )
  watched = {field for _, field, *_ in CASES if field}
  # The loop and the optimizer are watched in the files of these tables.
  watched |= {field for field, *_ in LOOP} | {*OPTIMIZER}
  watched |= {f'phases.{p}.{f}' for p, f, *_ in SLOW}
  watched |= {
    f'phases.{p}.{f}' for p in PHASES for f in ('steps', 'learning_rate')
  }
  watched |= {'optimizer.muon', 'optimizer.ema_decay'}
  # A file that is read, in test_phases.py.
  watched |= {'data.task_vectors'}
  assert watched == everything | {'accumulate'}
  assert {f.name for f in dataclasses.fields(Config)} == {
    # Watched here.
    'phases', 'forcing', 'optimizer', 'data', 'saving', 'accumulate',
    # Of models, devices and evaluation.
    'seed', 'actions', 'vectors', 'tasks', 'prompt', 'tokenizer', 'dynamics',
    'agent', 'compute', 'env', 'eval', 'mesh',
  }  # fmt: skip
