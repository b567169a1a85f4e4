"""A run of seconds: models of a few thousand parameters, cart-pole's frames."""

import dataclasses
import pathlib

import numpy as np

from data_pipelines import collect, writer
from dreamer4_jax.config import (
  ActionComponent,
  AgentConfig,
  Config,
  DataConfig,
  DynamicsConfig,
  DynamicsPhase,
  EnvConfig,
  EvalConfig,
  FinetunePhase,
  ImaginationPhase,
  OptimizerConfig,
  Phases,
  SavingConfig,
  SourceConfig,
  TokenizerConfig,
  TokenizerPhase,
  VectorComponent,
)
from dreamer4_jax.data.format import Description

SIDE, LENGTH = 16, 12
ACTIONS = (ActionComponent(name='action', kind='categorical', size=2),)
STATE = VectorComponent(name='state', size=4, std=(0.1, 1.0, 0.1, 1.0))
"""What cart-pole shows beside its frames."""
ENV = EnvConfig(
  name='gymnasium:CartPole-v1', image_size=(SIDE, SIDE), max_steps=6
)


def make_config(path, **changes) -> Config:
  """Returns a run of ten steps a phase on the dataset at `path`."""
  sizes = {'width': 16, 'num_heads': 2, 'depth': 2, 'time_every': 2}
  phase = {'steps': 10, 'batch_size': 4, 'clip_lengths': (4,)}
  return dataclasses.replace(
    Config(
      actions=ACTIONS,
      tokenizer=TokenizerConfig(
        frame_shape=(SIDE, SIDE, 3),
        patch_size=8,
        num_latents=4,
        bottleneck_dim=4,
        context_length=4,
        **sizes,
      ),
      dynamics=DynamicsConfig(
        num_spatial_tokens=4,
        num_registers=1,
        num_kv_heads=2,
        context_length=4,
        **sizes,
      ),
      agent=AgentConfig(hidden=(16,), distances=2),
      phases=Phases(
        tokenizer=TokenizerPhase(**phase),
        dynamics=DynamicsPhase(**phase),
        finetune=FinetunePhase(**phase),
        imagination=ImaginationPhase(horizon=3, sampling_steps=2, **phase),
      ),
      optimizer=OptimizerConfig(warmup_steps=3),
      saving=SavingConfig(log_every=1, checkpoint_every=4),
      data=DataConfig(sources=(SourceConfig(path=str(path)),)),
      env=ENV,
      eval=EvalConfig(clips=3, context_frames=3, horizons=(2, 4), episodes=3),
    ),
    **changes,
  )


def with_options(config: Config, task_vectors) -> Config:
  """Turns on what is off by default.

  The state is seen beside frames, tasks are vectors (written to the file of
  that name), parts of a batch are taken one after another, the last clips are
  long ones, and the world model trains on in imagination.
  """
  np.save(task_vectors, np.eye(1, 3))
  return dataclasses.replace(config, vectors=(STATE,)).edit(
    {
      'agent.task_vector_size': 3,
      'data.task_vectors': str(task_vectors),
      'accumulate': 2,
      'data.long_every': 20,
      'data.long_only_share': 0.2,
      'phases.tokenizer.clip_lengths': (4, 6),
      'phases.imagination.world_rate': 0.5,
    }
  )


def write_dataset(
  path,
  *,
  known=True,
  paid=1.0,
  tasks=('reward',),
  events=(),
  episodes=6,
  actions=ACTIONS,
  side=SIDE,
  splits=('train', 'test'),
  vectors=(),
) -> str:
  """Writes noise with a reward at each step; returns the directory.

  `events` are (episode, step, task) of each split.
  """
  rng = np.random.default_rng(0)
  last = np.arange(LENGTH) == LENGTH - 1

  def episode(number):
    happened = np.zeros((LENGTH, len(tasks)), np.uint8)
    for e, step, task in events:
      happened[step, task] |= e == number
    steps = {
      'observation': rng.integers(0, 256, (LENGTH, side, side, 3), np.uint8),
      'action': {
        c.name: rng.integers(0, c.size, LENGTH, np.int32) for c in actions
      },
      'action_known': ~last & known & bool(actions),
      'reward': np.where(last, 0, paid).astype(np.float32),
    }
    if tasks:
      steps['events'] = happened
    if vectors:
      steps['vector'] = {
        v.name: rng.normal(size=(LENGTH, v.size)).astype(np.float32)
        for v in vectors
      }
    return writer.Episode(steps=steps, terminal=True)

  written = writer.write_dataset(
    str(path),
    description=Description(
      actions=actions,
      tasks=tasks,
      frame_shape=(side, side, 3),
      vectors=vectors,
    ),
    splits={s: [episode(e) for e in range(episodes)] for s in splits},
  )
  return str(written)


def tree(path) -> dict[str, bytes]:
  """Returns every file under a directory with its bytes."""
  root = pathlib.Path(path)
  return {
    str(p.relative_to(root)): p.read_bytes()
    for p in sorted(root.rglob('*'))
    if p.is_file()
  }


def record(path, **changes) -> str:
  """Records the environment of `make_config`; returns the directory."""
  settings = collect.CollectConfig(
    out=str(path),
    env=ENV.name,
    max_steps=10,
    image_size=(SIDE, SIDE),
    workers=1,
    **changes,
  )
  collect.collect(settings, progress=False)
  return settings.out
