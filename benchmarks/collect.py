"""How many environment steps a second a recording makes, drawing included.

python -m benchmarks.collect

Prints one JSON object: steps per second of environment, rendering and scripted
player on all threads together, frames fetched to the host; medians over the
repeats. What is written to disk comes on top.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import platform
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from data_pipelines.collect import CollectConfig, Stage
from dreamer4_jax.config import EnvConfig
from dreamer4_jax.envs import make_env


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectBenchmark:
  """What to measure."""

  env: str = 'craftax:Craftax-Classic-Pixels-v1'
  """Adapter and level."""
  parallel: int = 32
  """Environments, shared by the threads."""
  threads: int = 2
  """Threads."""
  block: int = 64
  """Steps between two fetches."""
  blocks: int = 4
  """Blocks of each measurement."""
  repeats: int = 5
  """Measurements."""


def main(config: CollectBenchmark) -> dict[str, Any]:
  """Measures, and returns what is printed."""
  batch = config.parallel // config.threads
  env = make_env(EnvConfig(name=config.env, max_steps=10_000))
  settings = CollectConfig(
    out='unused', env=config.env, noise=(0.05,), block=config.block
  )
  stage = Stage(settings, env, batch)
  lanes = [
    stage.begin(stage.keys(jax.random.key(thread), range(batch)))
    for thread in range(config.threads)
  ]

  def run(thread: int) -> None:
    for _ in range(config.blocks):
      lanes[thread], played = stage.play(stage.player.params, lanes[thread])
      jax.device_get(played)

  run(0)  # Compiles.
  rates = []
  with concurrent.futures.ThreadPoolExecutor(config.threads) as pool:
    for _ in range(config.repeats):
      begin = time.perf_counter()
      list(pool.map(run, range(config.threads)))
      steps = config.blocks * config.block * batch * config.threads
      rates.append(steps / (time.perf_counter() - begin))
  alive = [float((~lane.step.terminal).mean()) for lane in lanes]
  return {
    'steps_per_second': statistics.median(rates),
    'range': [min(rates), max(rates)],
    'alive_at_the_end': float(jnp.mean(jnp.asarray(alive))),
    'config': dataclasses.asdict(config),
    'cores': os.cpu_count(),
    'jax': jax.__version__,
    'python': platform.python_version(),
  }


if __name__ == '__main__':
  print(json.dumps(main(tyro.cli(CollectBenchmark)), indent=2))
