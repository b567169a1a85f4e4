"""Run directories of the tiny world, written without training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines import writer
from dreamer4_jax import checkpoint
from dreamer4_jax.config import saved
from dreamer4_jax.data.format import Description
from dreamer4_jax.play import Dream, LoadedDream
from dreamer4_jax.training.state import make_state
from tests.models.tiny_world import (
  CONFIG,
  changed,
  make_batch,
  random_actions,
  world_and_params,
)

LENGTH = 9


def write_dataset(path, config=CONFIG, episodes=4):
  """Writes noise with random actions; the second event ends each episode."""
  rng = np.random.default_rng(0)
  last = np.arange(LENGTH) == LENGTH - 1

  def episode(number):
    events = np.zeros((LENGTH, 2), np.uint8)
    events[2 + number % 3, 0] = events[-2, 1] = 1
    return writer.Episode(
      steps={
        'observation': rng.integers(0, 256, (LENGTH, 20, 12, 3), np.uint8),
        'action': random_actions(rng, (LENGTH,)),
        'action_known': ~last,
        'reward': events.sum(axis=1).astype(np.float32),
        'events': events,
      },
      terminal=True,
    )

  written = writer.write_dataset(
    str(path),
    description=Description(
      actions=config.actions,
      tasks=config.tasks,
      frame_shape=config.tokenizer.frame_shape,
    ),
    splits={
      s: [episode(e) for e in range(episodes)] for s in ('train', 'test')
    },
  )
  return str(written)


def write_run(path, phases=('dynamics', 'finetune', 'imagination')):
  """Writes a run with a dataset beside it; returns its directory."""
  data = write_dataset(path / 'data')
  return save_run(path / 'run', phases, CONFIG.edit({
    'data.sources.0.path': data,
    'eval.context_frames': 3,
    'phases.imagination.horizon': 4,
    'phases.imagination.sampling_steps': 2,
  }))  # fmt: skip


def save_run(run, phases, config):
  """Writes a run whose phases hold random parameters."""
  saved.save(config, run)
  _, params = world_and_params(config)
  own = {'dynamics': ('tokenizer', 'latents', 'dynamics')}
  own['finetune'] = (*own['dynamics'], 'task', 'policy', 'reward',
                     'continuation')  # fmt: skip
  own['imagination'] = (*own['finetune'], 'prior', 'value')
  for phase in phases:
    kept = {name: params[name] for name in own[phase]}
    trained = {'dynamics': kept.pop('dynamics')}
    state = make_state(trained, kept, optax.sgd(0.1), ())
    steps = getattr(config.phases, phase).steps
    with checkpoint.Checkpoints(run / phase) as checkpoints:
      checkpoints.save(steps, state, {}, config)
  return run


def tiny_dream(fields=None, **settings):
  """Returns a `Dream` of the tiny world."""
  world = changed(world_and_params()[0], fields or {})
  settings = {'horizon': 5, 'sampling_steps': 2, **settings}
  return Dream(world=world, **settings)


def tiny_contexts(rows=2, frames=6, task=None):
  """Clips of frames; the second begins an episode shortly before its end."""
  batch = make_batch(rows, frames, starts=[(1, frames - 2)] if rows > 1 else [])
  batch = jax.tree.map(jnp.asarray, batch)
  if task is not None:
    batch = batch.replace(task=jnp.full((rows, frames), task, jnp.int32))
  return batch


def loaded(rows=8, length=6, **settings):
  """Returns a `LoadedDream` of the tiny world."""
  _, params = world_and_params()
  return LoadedDream(
    tiny_dream(**settings), params, tiny_contexts(rows, length)
  )
