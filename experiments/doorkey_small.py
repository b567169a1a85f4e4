"""DoorKey 5x5 from random play; all else as in the quickstart."""

import functools

from data_pipelines.collect import record_env
from data_pipelines.pretokenise import pretokenise_run
from dreamer4_jax.config import experiments

config = experiments.load('quickstart').edit(
  {
    'tokenizer.frame_shape': (40, 40, 3),
    'tokenizer.num_latents': 25,
    'dynamics.num_spatial_tokens': 5,
    'phases.imagination.horizon': 12,
    'env.name': 'navix:Navix-DoorKey-Random-5x5-v0',
    'env.max_steps': 20,
    'data.sources.0.path': 'runs/doorkey5-random',
  }
)

record = functools.partial(
  record_env,
  policy='random',
  episodes=4000,
  test_episodes=200,
  max_steps=80,
  workers=1,
)
pretokenise = pretokenise_run
