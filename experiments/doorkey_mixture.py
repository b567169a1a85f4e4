"""DoorKey 5x5 from a planner with noise; all else as in doorkey_small."""

import functools

from data_pipelines.collect import record_env
from data_pipelines.pretokenise import pretokenise_run
from dreamer4_jax.config import experiments

config = experiments.load('doorkey_small').edit(
  {'data.sources.0.path': 'runs/doorkey5-planner'}
)

# Cloning inherits the noise; a lower sampling temperature removes it.
record = functools.partial(
  record_env,
  policy='scripted',
  noise=(0.4, 0.6, 0.8, 1.0),
  episodes=4000,
  test_episodes=200,
  max_steps=40,
  workers=1,
)
pretokenise = pretokenise_run
