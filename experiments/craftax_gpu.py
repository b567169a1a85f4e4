"""Craftax-Classic for one GPU and about an hour; see craftax_diamond."""

import functools

from data_pipelines.collect import record_env
from data_pipelines.pretokenise import pretokenise_run
from dreamer4_jax.config import experiments

config = experiments.load('craftax_diamond').edit(
  {
    'compute.dtype': 'bfloat16',
    # A token for each third of a row of tiles.
    'dynamics.num_spatial_tokens': 27,
    'dynamics.width': 512,
    'dynamics.num_heads': 8,
    'dynamics.num_registers': 4,
    'dynamics.context_length': 64,
    'phases.tokenizer.batch_size': 128,
    'phases.dynamics.batch_size': 64,
    'phases.dynamics.clip_lengths': (32, 96),
    'phases.dynamics.learning_rate': 3e-3,
    'phases.finetune.batch_size': 64,
    'phases.finetune.clip_lengths': (32, 96),
    'phases.imagination.batch_size': 256,
    'phases.imagination.clip_lengths': (48,),
    'phases.imagination.horizon': 32,
    'phases.imagination.sampling_steps': 4,
    'data.threads': 4,
    'data.lead': 96,
    'data.sources.0.path': 'runs/craftax-large',
  }
)

record = functools.partial(
  record_env, policy='scripted', noise=(0.1, 0.25, 0.5), restless=0.008,
  idle=0.004, episodes=10_000, test_episodes=400, max_steps=1500, parallel=512,
)  # fmt: skip
pretokenise = pretokenise_run
