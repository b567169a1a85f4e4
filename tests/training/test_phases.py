"""All phases, one after another."""

import os
import signal

import pytest

from dreamer4_jax.config import Config
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
