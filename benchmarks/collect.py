"""How many environment steps a second a recording makes, rendering included.

python -m benchmarks.collect

Prints one JSON object: steps per second of environment, rendering and scripted
player in all processes together, frames fetched to the host; medians over the
repeats. The processes are those of `data_pipelines.collect`, each on its own
cores. Writing to disk is not included.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import platform
import statistics
import time
from typing import Any

import jax
import tyro

from data_pipelines.collect import CollectConfig, cores_of, settle
from data_pipelines.stage import Stage
from dreamer4_jax.config import EnvConfig, require
from dreamer4_jax.envs import make_env


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectBenchmark:
  """What to measure."""

  env: str = 'craftax:Craftax-Classic-Pixels-v1'
  """Adapter and level."""
  parallel: int = 32
  """Environments, shared by the processes."""
  workers: int = 2
  """Processes."""
  block: int = 64
  """Steps between two fetches."""
  blocks: int = 4
  """Blocks of each measurement."""
  repeats: int = 5
  """Measurements."""


def main(config: CollectBenchmark) -> dict[str, Any]:
  """Measures, and returns what is printed."""
  require(
    config.workers <= config.parallel, 'workers', config.workers,
    f'must not exceed parallel = {config.parallel}',
  )  # fmt: skip
  # Here first: Craftax draws its textures once per machine.
  make_env(EnvConfig(name=config.env, max_steps=10_000))
  context = multiprocessing.get_context('spawn')
  # All processes wait here before and after each measurement.
  barrier, alive = context.Barrier(config.workers + 1), context.SimpleQueue()
  processes = [
    context.Process(target=_run, args=(config, i, barrier, alive), daemon=True)
    for i in range(config.workers)
  ]
  for process in processes:
    process.start()
  batch = config.parallel // config.workers
  steps = config.blocks * config.block * batch * config.workers
  rates = []
  for _ in range(config.repeats):
    barrier.wait()
    begin = time.perf_counter()
    barrier.wait()
    rates.append(steps / (time.perf_counter() - begin))
  shares = [alive.get() for _ in processes]
  for process in processes:
    process.join()
  return {
    'steps_per_second': statistics.median(rates),
    'range': [min(rates), max(rates)],
    'alive_at_the_end': statistics.mean(shares),
    'config': dataclasses.asdict(config),
    'cores': os.cpu_count(),
    'jax': jax.__version__,
    'python': platform.python_version(),
  }


def _run(
  config: CollectBenchmark, number: int, barrier: Any, alive: Any
) -> None:
  try:
    _play(config, number, barrier, alive)
  except BaseException:
    barrier.abort()  # Or the others would wait forever.
    raise


def _play(
  config: CollectBenchmark, number: int, barrier: Any, alive: Any
) -> None:
  settle(cores_of(number, config.workers))
  batch = config.parallel // config.workers
  env = make_env(EnvConfig(name=config.env, max_steps=10_000))
  settings = CollectConfig(
    out='unused', env=config.env, noise=(0.05,), block=config.block
  )
  stage = Stage(settings, env, batch)
  lane = stage.begin(stage.keys(jax.random.key(number), range(batch)))
  lane, _ = stage.play(stage.player.params, lane)  # Compiles.
  for _ in range(config.repeats):
    barrier.wait()
    for _ in range(config.blocks):
      lane, played = stage.play(stage.player.params, lane)
      jax.device_get(played)
    barrier.wait()
  alive.put(float((~lane.step.terminal).mean()))


if __name__ == '__main__':
  print(json.dumps(main(tyro.cli(CollectBenchmark)), indent=2))
