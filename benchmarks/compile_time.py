"""How long the dynamics step takes to compile, by the number of layers.

python -m benchmarks.compile_time

Prints one JSON object: seconds to trace and to compile for each depth, medians
over the repeats, and the ratio of the deepest to the shallowest. The depths
take turns in one run; nothing is taken from a cache.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import time
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import tyro

from dreamer4_jax import presets
from dreamer4_jax.config import Config, DynamicsPhase
from dreamer4_jax.models import World, no_action
from dreamer4_jax.training.dynamics_step import (
  init_dynamics_state,
  make_dynamics_step,
)
from dreamer4_jax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileBenchmark:
  """What to measure."""

  preset: str = 'small'
  """Sizes, but for the depth."""
  depths: tuple[int, ...] = (8, 32)
  """Layers of the dynamics."""
  batch_size: int = 8
  """Rows of the batch."""
  length: int = 32
  """Frames of a clip."""
  repeats: int = 3
  """Compilations of each depth."""


def main(config: CompileBenchmark) -> dict[str, Any]:
  """Measures, and returns what is printed."""
  jax.config.update('jax_enable_compilation_cache', False)
  found: dict[int, list[tuple[float, float]]] = {d: [] for d in config.depths}
  for _ in range(config.repeats):
    for depth in config.depths:
      found[depth].append(_compile(config, depth))
      jax.clear_caches()
  whole = {depth: [*map(sum, times)] for depth, times in found.items()}
  median = {depth: statistics.median(x) for depth, x in whole.items()}
  return {
    'seconds': median,
    'range': {depth: [min(x), max(x)] for depth, x in whole.items()},
    'of_which_tracing': {
      depth: statistics.median(t for t, _ in x) for depth, x in found.items()
    },
    'ratio': median[max(median)] / median[min(median)],
    'config': dataclasses.asdict(config),
    'device': jax.devices()[0].device_kind,
    'cores': os.cpu_count(),
    'jax': jax.__version__,
    'python': platform.python_version(),
  }


def _compile(config: CompileBenchmark, depth: int) -> tuple[float, float]:
  """Returns the seconds of tracing and of compiling."""
  sizes = presets.PRESETS[config.preset]
  phase = DynamicsPhase(batch_size=config.batch_size, clip_length=config.length)
  world = World.from_config(
    Config(
      tokenizer=sizes.tokenizer,
      dynamics=dataclasses.replace(sizes.dynamics, depth=depth),
    )
  )
  t = sizes.tokenizer
  shape = (t.num_latents, t.bottleneck_dim)

  def init() -> Any:
    stats = {'mean': jnp.zeros(shape), 'std': jnp.ones(shape)}
    frozen = {'tokenizer': {}, 'latents': stats}
    state = init_dynamics_state(world, phase, jax.random.key(0), frozen)
    return nn.meta.unbox(state)

  lead = (config.batch_size, config.length)
  flags, numbers = jnp.zeros(lead, bool), jnp.zeros(lead)
  batch = Batch(
    frames=jnp.zeros((*lead, *shape), jnp.float16),
    action=no_action(world.space, lead),
    action_mask=flags,
    prev_action=no_action(world.space, lead),
    prev_action_mask=flags,
    reward=numbers,
    cont=numbers,
    task=jnp.zeros(lead, jnp.int32),
    segment_ids=jnp.zeros(lead, jnp.int32),
    relevant=flags[:, 0],
  )
  step = jax.jit(make_dynamics_step(world, phase), donate_argnums=0)
  begin = time.perf_counter()
  lowered = step.lower(jax.eval_shape(init), batch, jax.random.key(0))
  traced = time.perf_counter()
  lowered.compile()
  return traced - begin, time.perf_counter() - traced


if __name__ == '__main__':
  print(json.dumps(main(tyro.cli(CompileBenchmark)), indent=2))
