"""Craftax-Classic for many TPUs, everything larger; see craftax_diamond."""

import functools

from data_pipelines.collect import record_env
from data_pipelines.pretokenise import pretokenise_run
from dreamer4_jax.config import PHASES, experiments

config = experiments.load('craftax_gpu').edit(
  {
    **{f'phases.{phase}.batch_size': 1024 for phase in PHASES},
    'compute.remat': 'dots',
    # A token for each tile.
    'dynamics.num_spatial_tokens': 81,
    'dynamics.width': 1024,
    'dynamics.depth': 16,
    'dynamics.context_length': 96,
    'phases.dynamics.steps': 20_000,
    'phases.dynamics.bootstrap_start': 15_000,
    'phases.dynamics.learning_rate': 1e-3,
    'phases.imagination.clip_lengths': (80,),
    'mesh.fsdp': 8,
    'data.sources.0.path': 'runs/craftax-huge',
  }
)

record = functools.partial(
  record_env, policy='scripted', noise=(0.1, 0.25, 0.5), restless=0.008,
  idle=0.004, episodes=100_000, test_episodes=1000, max_steps=1500,
  parallel=2048,
)  # fmt: skip
pretokenise = pretokenise_run
