"""All phases, one after another."""

import os
import signal

import pytest

from dreamer4_jax.config import Config
from dreamer4_jax.models import World
from dreamer4_jax.preemption import PreemptedError
from dreamer4_jax.training import phases
from tests.training import toy


def test_sigterm_between_phases_is_not_lost(tmp_path, monkeypatch):
  begun = []

  def train_phase(world, run_dir, phase, mesh, loaders, progress, sigterm):
    begun.append(phase)
    toy.run(run_dir, phase=phase, sigterm=sigterm, steps=3)
    if phase == stop_after:
      os.kill(os.getpid(), signal.SIGTERM)

  def train():
    begun.clear()
    names = ('tokenizer', 'dynamics')
    phases.train(Config(seed=3), tmp_path, names, loaders=None, progress=False)

  monkeypatch.setattr(phases, '_train_phase', train_phase)
  stop_after = 'tokenizer'
  with pytest.raises(PreemptedError, match=r'dynamics: .* before it began'):
    train()
  assert begun == ['tokenizer'] and not (tmp_path / 'dynamics').exists()
  stop_after = 'dynamics'
  with pytest.raises(PreemptedError, match='asked to stop after dynamics'):
    train()
  assert begun == ['tokenizer', 'dynamics']
  stop_after = ''
  train()


def test_statistics_come_from_iterators_that_only_know_next(monkeypatch):
  class Numbers:
    count = 0

    def __next__(self):
      self.count += 1
      return self.count

  taken = []
  statistics = lambda world, rooms, batches: taken.extend(batches)
  monkeypatch.setattr(
    phases, 'load_rooms', lambda *_: ({'tokenizer': {}}, None)
  )
  monkeypatch.setattr(phases, 'boxed', lambda world, rooms: rooms)
  monkeypatch.setattr(phases, 'run_phase', lambda **_: None)
  monkeypatch.setattr(phases.tokenizer_step, 'latent_statistics', statistics)
  phases._train_phase(
    world=World.from_config(Config()),
    run_dir='unused',
    phase='dynamics',
    mesh=None,
    loaders=lambda *_: Numbers(),
    progress=False,
    sigterm=None,
  )
  assert taken == list(range(1, phases.STATISTICS_BATCHES + 1))
