"""Fields of the loop of every phase, changed alone, and what it is given."""

import jax
import jax.numpy as jnp
import pytest

from dreamer4_jax.config import PHASES
from dreamer4_jax.training import phases, tokenizer_step
from tests.models.tiny_world import CONFIG
from tests.rollout.fakes import make_fake
from tests.training import toy
from tests.training.captured import BASE

THREE = {'kept': [5, 10, 14]}
LOOP = [
  ('phases.tokenizer.steps', 9,
   {'batches': {2: 6, 4: 3}, 'lines': [2, 4, 6, 8, 9], 'kept': [5, 9]}),
  ('phases.tokenizer.clip_lengths', (3, 4), {'batches': {3: 10, 4: 4}}),
  ('phases.tokenizer.clip_lengths', (2, 5), {'batches': {2: 10, 5: 4}}),
  ('phases.tokenizer.clip_lengths', (5,), {'batches': {5: 14}}),
  ('data.long_every', 7, {'batches': {2: 12, 4: 2}}),
  ('data.long_only_share', 0.5, {'batches': {2: 5, 4: 9}}),
  ('saving.log_every', 5, {'lines': [5, 10, 14]}),
  ('saving.checkpoint_every', 6, {'kept': [12, 14]}),
  # The best step, here the first one saved, is kept as well.
  ('saving.best_metric', 'loss', THREE),
  ('saving.best_metric', 'max:loss', {}),
  ('saving.best_metric', 'tokenizer/rising', THREE),
  ('saving.best_metric', 'max:tokenizer/falling', THREE),
  ('saving.best_metric', 'dynamics/flow', {}),
]  # fmt: skip


def loop_of(directory, fields, phase='tokenizer'):
  """Trains a toy; returns what can be seen of the loop."""
  iterators = {n: toy.Clips(n) for n in (2, 3, 4, 5)}

  def step_fn(state, batch, key):
    state, metrics = toy.step_fn(state, batch, key)
    count = state.opt[0].count.astype(jnp.float32)
    more = {'tokenizer/rising': count, 'tokenizer/falling': -count}
    return state, {**metrics, 'loss': count, **more}

  toy.run(directory, fields, iterators, step_fn=step_fn, phase=phase)
  served = {n: len(it.served) for n, it in iterators.items() if it.served}
  checkpoints = (directory / phase / 'checkpoints').iterdir()
  return {
    'batches': served,
    'lines': [line['step'] for line in toy.lines(directory, phase)],
    'kept': sorted(int(p.name) for p in checkpoints if p.name.isdigit()),
  }


LOOP_BASE = {
  'batches': {2: 10, 4: 4},
  'lines': [2, 4, 6, 8, 10, 12, 14],
  'kept': [10, 14],
}


@pytest.mark.parametrize('field, value, expected', [(None, None, {}), *LOOP])
def test_the_loop(field, value, expected, tmp_path):
  found = loop_of(tmp_path, {field: value} if field else {})
  assert found == {**LOOP_BASE, **expected}


def test_the_loop_of_a_phase_has_the_fields_of_that_phase(tmp_path):
  fields = {
    'phases.finetune.steps': 4,
    'phases.finetune.clip_lengths': (3, 5),
    'phases.finetune.batch_size': 8,
    'phases.tokenizer.steps': 2,
    'phases.tokenizer.batch_size': 7,
  }
  expected = {'batches': {3: 3, 5: 1}, 'lines': [2, 4], 'kept': [4]}
  assert loop_of(tmp_path, fields, 'finetune') == expected
  more = loop_of(tmp_path, {**fields, 'phases.finetune.steps': 5}, 'finetune')
  assert more == {'batches': {3: 1}, 'lines': [2, 4, 5], 'kept': [4, 5]}


@pytest.fixture
def hand_over(monkeypatch):
  """Returns a function of phase and config to its work."""

  def hand_over(phase, config):
    seen = {'asked': []}

    def clips(config, name, length, tokenizer):
      del config, tokenizer
      seen['asked'].append((name, length))
      return iter(range(1000))

    seen['work'] = phases._work(
      make_fake(None, config), 'run', phase, clips, phases.STEPS[phase]
    )
    return seen

  monkeypatch.setattr(phases.checkpoint, 'load_params', lambda *_: ({}, None))
  monkeypatch.setattr(phases, 'boxed', lambda world, params: params)
  monkeypatch.setattr(
    tokenizer_step, 'latent_statistics', lambda *_: {'mean': 0}
  )
  return hand_over


@pytest.mark.parametrize('phase', PHASES)
def test_each_phase_gives_the_loop_clips_of_its_own_lengths(phase, hand_over):
  config = BASE.edit(
    {f'phases.{p}.clip_lengths': (4 + i, 9 + i) for i, p in enumerate(PHASES)}
  )
  seen, number = hand_over(phase, config), PHASES.index(phase)
  assert set(seen['work'].iterators) == {4 + number, 9 + number}
  assert set(seen['asked']) == {(phase, n) for n in (4 + number, 9 + number)}


def test_each_phase_begins_with_a_key_of_its_own(hand_over):
  keys = [jax.random.key(CONFIG.seed)]
  # Those from which the loop makes the keys of its steps.
  keys += [jax.random.fold_in(keys[0], i) for i in range(len(PHASES))]
  keys += [hand_over(p, BASE)['work'].init_state.args[-1] for p in PHASES]
  found = {tuple(jax.random.key_data(key).tolist()) for key in keys}
  assert len(found) == len(keys)
