"""All phases, one after another."""

import os
import signal

import numpy as np
import pytest

from dreamer4_jax.config import (
  AgentConfig,
  Config,
  DataConfig,
  Phases,
  TokenizerPhase,
)
from dreamer4_jax.models import World
from dreamer4_jax.runtime.preemption import PreemptedError
from dreamer4_jax.training import phases
from dreamer4_jax.training.loop import Work
from tests.training import toy


def test_sigterm_between_phases_is_not_lost(tmp_path, monkeypatch):
  begun = []
  settings = {'steps': 3, 'batch_size': 8, 'clip_lengths': (2, 4)}

  def run_phase(phase, config, run_dir, work, *, sigterm, **_):
    begun.append(phase)
    short = {f'phases.{phase}.{k}': v for k, v in settings.items()}
    toy.run(run_dir, short, phase=phase, sigterm=sigterm)
    if phase == stop_after:
      os.kill(os.getpid(), signal.SIGTERM)

  def train():
    begun.clear()
    names = ('tokenizer', 'dynamics')
    phases.train_phases(
      Config(seed=3), tmp_path, names, loaders=None, progress=False
    )

  work = Work(init_state=toy.init_state, step_fn=toy.step_fn, iterators={})
  monkeypatch.setattr(phases, '_work', lambda *_: work)
  monkeypatch.setattr(phases, 'run_phase', run_phase)
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
  statistics = lambda world, params, batches: taken.extend(batches)
  monkeypatch.setattr(
    phases.checkpoint, 'load_params', lambda *_: ({'tokenizer': {}}, None)
  )
  monkeypatch.setattr(phases, 'boxed', lambda world, params: params)
  monkeypatch.setattr(phases.tokenizer_step, 'latent_statistics', statistics)
  phases._work(
    world=World.from_config(Config()),
    run_dir='unused',
    phase='dynamics',
    loaders=lambda *_: Numbers(),
    steps=phases.STEPS['dynamics'],
  )
  assert taken == list(range(1, phases.STATISTICS_BATCHES + 1))


def vectors_config(path, size=3):
  return Config(
    tasks=('a', 'b'),
    agent=AgentConfig(task_vector_size=size),
    data=DataConfig(task_vectors=str(path)),
  )


def test_task_vectors_are_read_and_checked(tmp_path):
  path = tmp_path / 'tasks.npy'
  config = vectors_config(path)
  with pytest.raises(FileNotFoundError, match=r'data.task_vectors: .*no such'):
    phases.load_task_vectors(config)
  np.save(path, np.arange(6.0).reshape(2, 3))
  found = phases.load_task_vectors(config)
  assert found.dtype == np.float32 and found.tolist() == [[0, 1, 2], [3, 4, 5]]
  bad = {
    r'float64 \(3, 2\), expected floats \(2, 3\)': np.zeros((3, 2)),
    'int64': np.zeros((2, 3), int),
    'not finite': np.full((2, 3), np.nan),
    'values that are not finite': np.full((2, 3), 1e300),
  }
  for text, array in bad.items():
    np.save(path, array)
    with pytest.raises(ValueError, match=f'data.task_vectors: .*{text}'):
      phases.load_task_vectors(config)
  for text in ('no array', ''):
    path.write_text(text)
    with pytest.raises(ValueError, match=r'data.task_vectors: .*tasks\.npy'):
      phases.load_task_vectors(config)


def test_size_and_file_of_task_vectors_go_together():
  with pytest.raises(
    ValueError, match=r'agent.task_vector_size = 0: goes with'
  ):
    vectors_config('x.npy', size=0)
  with pytest.raises(ValueError, match=r"data.task_vectors = ''"):
    vectors_config('')


def test_a_line_says_that_lpips_is_off(caplog, monkeypatch, tmp_path):
  def said(done=0, **fields):
    caplog.clear()
    monkeypatch.setattr(phases.checkpoint, 'latest_step', lambda *_: done)
    tokenizer = TokenizerPhase(steps=10, **fields)
    config = Config(phases=Phases(tokenizer=tokenizer))
    with caplog.at_level('INFO'):
      phases._say_if_lpips_is_off(config, tmp_path)
    return caplog.text.count('LPIPS is off')

  assert said() == 1 == said(done=4)
  assert said(done=10) == 0 == said(lpips_path='some.npz')
