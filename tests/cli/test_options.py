"""What imagination is fed when it trains the world model as well."""

import numpy as np
import pytest

from dreamer4_jax.config import EnvConfig
from dreamer4_jax.training.clips import training_loader
from dreamer4_jax.types import DreamBatch
from tests.cli import small_run

TASKS = ('a', 'b')
EVENTS = [(e, step, k) for e in range(6) for step, k in ((3, 0), (7, 1))]


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  home = tmp_path_factory.mktemp('options')
  path = small_run.write_dataset(home / 'data', tasks=TASKS, events=EVENTS)
  config = small_run.make_config(
    path,
    tasks=TASKS,
    env=EnvConfig(),
  )
  return config.edit(
    {
      'phases.finetune.batch_size': 16,
      'phases.finetune.relevant_share': 0.75,
      'phases.imagination.batch_size': 16,
      'phases.imagination.world_rate': 0.5,
    }
  )


def test_dreams_and_clips_come_together_and_go_on_where_they_were(config):
  make = lambda: training_loader(config, 'imagination', 4)
  loader = make()
  first = next(loader)
  assert isinstance(first, DreamBatch)
  # No dream begins on a terminal frame; clips hold some, and cloned actions.
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
  plain = config.edit({'phases.imagination.world_rate': 0.0})
  batch = next(training_loader(plain, 'imagination', 4))
  assert batch.cont.all() and not isinstance(batch, DreamBatch)


def test_dreams_do_not_begin_on_separate_images(config):
  some = config.edit({'data.separate_images': 0.9})
  loader = training_loader(some, 'imagination', 4)
  batches = [next(loader) for _ in range(5)]
  separate = lambda clips: (clips.segment_ids == np.arange(4)).all(-1).mean()
  # The clips that the world model trains on along with it are images as well.
  assert np.mean([separate(b.clips) for b in batches]) > 0.7
  assert not any(separate(b.contexts) for b in batches)
