"""Runs of a few steps with all that is off by default."""

import dataclasses

import numpy as np
import pytest

from dreamer4_jax.cli.checks import check_training
from dreamer4_jax.cli.loaders import training_loader
from dreamer4_jax.config import PHASES, AgentConfig, DataConfig, EnvConfig
from dreamer4_jax.training.phases import load_rooms, train
from dreamer4_jax.types import DreamBatch
from tests.cli import small_run

TASKS = ('a', 'b')
EVENTS = [(e, step, k) for e in range(6) for step, k in ((3, 0), (7, 1))]


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  home = tmp_path_factory.mktemp('options')
  path = small_run.write_dataset(home / 'data', tasks=TASKS, events=EVENTS)
  np.save(home / 'tasks.npy', np.eye(2, 3))
  config = small_run.make_config(
    path,
    tasks=TASKS,
    env=EnvConfig(),
    agent=AgentConfig(
      num_tasks=2, task_vector_size=3, hidden=16, layers=1, distances=2
    ),
    data=DataConfig(path=str(path), task_vectors=str(home / 'tasks.npy')),
  )
  shared = dict(
    steps=4, batch_size=16, accumulate=2, long_clip_length=6, long_every=2,
    long_only_share=0.25,
  )  # fmt: skip
  own = {
    'tokenizer': {},
    'dynamics': dict(bootstrap_every=2),
    'finetune': dict(relevant_share=0.75),
    'imagination': dict(world_rate=0.5),
  }
  phases = {
    name: dataclasses.replace(
      getattr(config.phases, name), **shared, **own[name]
    )
    for name in PHASES
  }
  return dataclasses.replace(
    config,
    phases=dataclasses.replace(config.phases, **phases),
  )


def test_all_phases_run_with_every_option(config, tmp_path):
  check_training(config, tmp_path)
  train(config, tmp_path, loaders=training_loader, progress=False)
  before, _ = load_rooms(tmp_path, 'finetune')
  after, _ = load_rooms(tmp_path, 'imagination')
  np.testing.assert_array_equal(after['task_vectors'], np.eye(2, 3))
  for room in ('policy', 'dynamics', 'reward', 'task'):
    kernels = [
      np.concatenate([np.ravel(x) for x in _leaves(rooms[room])])
      for rooms in (before, after)
    ]
    assert np.isfinite(kernels[1]).all()
    assert np.any(kernels[0] != kernels[1]), room


def _leaves(tree):
  if not isinstance(tree, dict):
    return [tree]
  return [x for value in tree.values() for x in _leaves(value)]


def test_dreams_and_clips_come_together_and_go_on_where_they_were(config):
  make = lambda: training_loader(config, 'imagination', 4)
  loader = make()
  first = next(loader)
  assert isinstance(first, DreamBatch)
  # No dream begins on a terminal frame; clips hold some, and what is cloned.
  batches = [next(loader) for _ in range(20)]
  assert all(b.contexts.cont.all() for b in batches)
  assert not all(b.clips.cont.all() for b in batches)
  assert any(b.clips.cloned.any() for b in batches)
  assert np.mean([b.clips.relevant.mean() for b in batches]) == 0.75
  state = loader.get_state()
  expected = next(loader)
  other = make()
  other.set_state(state)
  found = next(other)
  np.testing.assert_array_equal(found.contexts.frames, expected.contexts.frames)
  np.testing.assert_array_equal(found.clips.frames, expected.clips.frames)


def test_without_training_the_world_there_are_contexts_alone(config):
  off = dataclasses.replace(config.phases.imagination, world_rate=0.0)
  phases = dataclasses.replace(config.phases, imagination=off)
  plain = dataclasses.replace(config, phases=phases)
  batch = next(training_loader(plain, 'imagination', 4))
  assert batch.cont.all() and not isinstance(batch, DreamBatch)
