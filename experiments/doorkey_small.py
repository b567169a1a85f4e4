"""DoorKey 5x5 from random play; all else as in the quickstart."""

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
  name='doorkey_small',
  tokenizer=dataclasses.replace(
    _base.tokenizer, image_height=40, image_width=40, num_latents=25
  ),
  dynamics=dataclasses.replace(_base.dynamics, num_spatial_tokens=5),
  phases=dataclasses.replace(
    _base.phases,
    imagination=dataclasses.replace(_base.phases.imagination, horizon=12),
  ),
  env=dataclasses.replace(
    _base.env, name='navix:Navix-DoorKey-Random-5x5-v0', max_steps=20
  ),
  data=dataclasses.replace(_base.data, path='runs/doorkey5-random'),
)
pretokenise = _quickstart['pretokenise']


def record(path: str) -> dict[str, Any]:
  """Records random play on the smaller level."""
  report = collect(
    CollectConfig(
      out=path,
      env=config.env.name,
      policy='random',
      episodes=4000,
      test_episodes=200,
      max_steps=80,
      tile=config.env.tile,
      workers=1,
      seed=0,
    )
  )
  novelty.measure_dataset(path, 'train')
  return report
