"""Fields of the loop of every phase, changed alone, and what it is given."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dreamer4_jax.config import PHASES, Phases
from dreamer4_jax.training import phases, tokenizer_step
from tests.models.tiny_world import CONFIG
from tests.rollout.fakes import make_fake
from tests.training import toy
from tests.training.captured import BASE

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

  monkeypatch.setattr(phases.checkpoint, 'load_params', lambda *_: ({}, None))
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
