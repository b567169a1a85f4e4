"""DoorKey 6x6 from play without a plan; all else as in the quickstart."""

import functools

from data_pipelines.collect import record_env
from data_pipelines.pretokenise import pretokenise_run
from dreamer4_jax.config import experiments

config = experiments.load('quickstart').edit(
  {
    'data.sources.0.path': 'runs/doorkey6-aimless',
    # These players get everywhere by themselves.
    'phases.imagination.relevant_share': 0.0,
    'phases.imagination.steps': 1000,
  }
)

# A player that uses the key and the door when it faces them.
record = functools.partial(
  record_env,
  policy='aimless',
  episodes=3000,
  test_episodes=200,
  max_steps=80,
  workers=1,
)
pretokenise = pretokenise_run
