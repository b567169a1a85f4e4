"""DoorKey 6x6 from play without a plan; all else as in the quickstart."""

import dataclasses
import pathlib
import runpy
from typing import Any

from data_pipelines.collect import CollectConfig, collect
from dreamer4_jax.data import novelty

_quickstart = runpy.run_path(
  str(pathlib.Path(__file__).with_name('quickstart.py'))
)
_base = _quickstart['config']

config = dataclasses.replace(
  _base,
  name='doorkey_play',
  data=dataclasses.replace(_base.data, path='runs/doorkey6-aimless'),
)
pretokenise = _quickstart['pretokenise']


def record(path: str) -> dict[str, Any]:
  """Records a player that uses the key and the door when it faces them."""
  report = collect(
    CollectConfig(
      out=path,
      env=config.env.name,
      policy='aimless',
      episodes=3000,
      test_episodes=200,
      max_steps=80,
      tile=config.env.tile,
      workers=1,
      seed=0,
    )
  )
  novelty.measure_dataset(path, 'train')
  return report
