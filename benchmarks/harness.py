"""What the benchmarks share: sizes, ceilings of the device, and taking turns.

A benchmark is a dataclass of settings and a function that makes its cases:
programs that can be run again and again, with the arithmetic they do. `main`
times them in turns, beside a matrix product and a copy, so that a machine that
is slow for a while is slow for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from typing import Any, TypeVar

from flax import linen as nn
import jax
import jax.numpy as jnp
import tyro

from dreamer4_jax import presets
from dreamer4_jax.aot.flops import count_flops
from dreamer4_jax.config import (
  AgentConfig,
  Config,
  DynamicsConfig,
  DynamicsPhase,
  FinetunePhase,
  ImaginationPhase,
  Phases,
  TokenizerConfig,
  TokenizerPhase,
  require,
)
from dreamer4_jax.models import World, no_action
from dreamer4_jax.types import Array, Batch, PyTree

_SIZES = {'width': 256, 'num_heads': 4, 'num_kv_heads': 4, 'mlp_hidden': 704}
PRESETS = presets.PRESETS | {
  'reference': presets.Preset(
    tokenizer=TokenizerConfig(
      image_height=64,
      image_width=64,
      patch_size=8,
      num_latents=16,
      bottleneck_dim=32,
      context_length=32,
      **_SIZES,
    ),
    dynamics=DynamicsConfig(
      num_spatial_tokens=16, num_registers=4, context_length=32, **_SIZES
    ),
  )
}
"""Those of the package, and the model that is measured on CPUs."""
ROOMS = (
  'tokenizer', 'dynamics', 'task', 'policy', 'reward', 'continuation', 'value',
)  # fmt: skip
_LEAST = 0.2
"""Seconds a measurement lasts at least: fast programs run several times."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A program with its arguments.

  Attributes:
    run: runs it once and waits for the result.
    flops: matrix products of one run, of the model: nothing counted twice.
    frames: frames of video that one run deals with, over all rows.
    bytes: what the compiled program reads and writes by XLA's analysis, with
      loops counted once; 0 if unknown.
  """

  run: Callable[[], Any]
  flops: float = 0.0
  frames: int = 0
  bytes: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Fields of every benchmark."""

  repeats: int = 7
  """Measurements of each program; they take turns."""
  compare: tuple[str, ...] = ()
  """OPTION=VALUE of a second configuration: both are timed in turns, and the
  ratios of the second to the first are printed."""

  def __post_init__(self):
    require(self.repeats >= 1, 'repeats', self.repeats, 'must be at least 1')
    for word in self.compare:
      require('=' in word, 'compare', word, 'must be OPTION=VALUE')


S = TypeVar('S', bound=Settings)


def main(
  settings: type[S],
  make_cases: Callable[[S], Mapping[str, Case]],
  summarise: Callable[[S, dict[str, float]], dict[str, Any]],
) -> dict[str, Any]:
  """Reads the command line, measures, and prints one JSON object.

  Args:
    settings: dataclass of the options.
    make_cases: makes the programs of a configuration, compiled.
    summarise: figures from a configuration and its median seconds by name.

  Returns:
    What is printed.
  """
  first = tyro.cli(settings)
  configs = [first]
  if first.compare:
    # The defaults of the second are the choices of the first.
    args = [part for x in first.compare for part in f'--{x}'.split('=', 1)]
    configs.append(tyro.cli(settings, args=args, default=first))
  found = [dict(make_cases(c)) for c in configs]
  kinds = {'matmul': measure_matmul(jnp.float32), 'copy': measure_copy()}
  if jax.default_backend() != 'cpu':
    kinds['matmul_bfloat16'] = measure_matmul(jnp.bfloat16)
  everything = kinds | {
    f'{i}/{name}': case
    for i, cases in enumerate(found)
    for name, case in cases.items()
  }
  seconds = time_in_turns(everything, first.repeats)
  ceilings = {
    name: (case.flops or case.bytes) / statistics.median(seconds[name])
    for name, case in kinds.items()
  }
  results = []
  for i, (config, cases) in enumerate(zip(configs, found, strict=True)):
    times = {name: seconds[f'{i}/{name}'] for name in cases}
    medians = {name: statistics.median(x) for name, x in times.items()}
    results.append(
      {
        'config': dataclasses.asdict(config),
        'programs': {
          name: _describe(case, times[name], ceilings)
          for name, case in cases.items()
        },
        **summarise(config, medians),
      }
    )
  whole = results[0]
  if len(results) > 1:
    whole['second'] = results[1]
    whole['ratios'] = {
      name: _ratio(seconds[f'1/{name}'], seconds[f'0/{name}'])
      for name in found[0]
      if name in found[1]
    }
  whole |= {'ceilings_per_second': ceilings, 'machine': machine()}
  print(json.dumps(whole, indent=2))
  return whole


def time_in_turns(
  cases: Mapping[str, Case], repeats: int
) -> dict[str, list[float]]:
  """Returns seconds a run of each case, `repeats` of them, in turns.

  Each has been run before, so that nothing is compiled while it is timed.
  """
  times: dict[str, list[float]] = {name: [] for name in cases}
  runs = {}
  for name, case in cases.items():
    case.run()
    begin = time.perf_counter()
    case.run()
    spent = time.perf_counter() - begin
    runs[name] = max(1, math.ceil(_LEAST / max(spent, 1e-9)))
  for i in range(repeats):
    print(f'turn {i + 1} of {repeats}', file=sys.stderr)
    for name, case in cases.items():
      begin = time.perf_counter()
      for _ in range(runs[name]):
        case.run()
      times[name].append((time.perf_counter() - begin) / runs[name])
  return times


def measure_matmul(dtype: Any) -> Case:
  """A product of two square matrices, the ceiling of arithmetic."""
  size = 2048 if jax.default_backend() == 'cpu' else 8192
  x = jnp.ones((size, size), dtype) / size
  product = jax.jit(jnp.matmul)
  return Case(
    run=lambda: product(x, x).block_until_ready(), flops=2.0 * size**3
  )


def measure_copy() -> Case:
  """Reads and writes memory, the ceiling of everything else."""
  size = 2**26 if jax.default_backend() == 'cpu' else 2**30
  x = jnp.ones((size // 4,), jnp.float32)
  add = jax.jit(lambda x: x + 1)
  return Case(run=lambda: add(x).block_until_ready(), bytes=2.0 * size)


def machine() -> dict[str, Any]:
  """Returns what a figure was measured on, and with."""
  packages = ('jax', 'jaxlib', 'flax', 'optax')
  return {
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'cores': os.cpu_count(),
    'python': platform.python_version(),
    'date': time.strftime('%Y-%m-%d'),
    **{name: importlib.metadata.version(name) for name in packages},
  }


def make_world(
  preset: str, *, batch: int = 8, length: int = 32, **changes: Any
) -> World:
  """Returns the modules of a preset.

  Args:
    preset: one of `PRESETS`.
    batch: rows of every phase's batches.
    length: frames of their clips.
    **changes: other fields of both transformers' configs; empty ones do not
      count.
  """
  require(
    preset in PRESETS, 'preset', preset, f'must be one of {", ".join(PRESETS)}'
  )
  sizes = PRESETS[preset]
  changes = {name: value for name, value in changes.items() if value}
  same = {'batch_size': batch, 'clip_length': length}
  # As much as four bootstrapping rows of a batch, if it has fewer.
  rows = {} if batch % 4 == 0 else {'bootstrap_rows': 1.0, 'bootstrap_every': 4}
  return World.from_config(
    Config(
      tokenizer=dataclasses.replace(sizes.tokenizer, **changes),
      dynamics=dataclasses.replace(sizes.dynamics, **changes),
      agent=AgentConfig(num_tasks=1, hidden=sizes.dynamics.width // 2),
      phases=Phases(
        tokenizer=TokenizerPhase(**same),
        dynamics=DynamicsPhase(**same, **rows, bootstrap_start=0),
        finetune=FinetunePhase(**same, **rows),
        imagination=ImaginationPhase(**same),
      ),
    )
  )


def init_params(world: World, rooms: Sequence[str] = ROOMS) -> PyTree:
  """Returns parameters as they are at the start, on the device."""

  def init() -> PyTree:
    t = world.config.tokenizer
    shape = (t.num_latents, t.bottleneck_dim)
    params = nn.meta.unbox(world.init(jax.random.key(0), tuple(rooms)))
    params['latents'] = {'mean': jnp.zeros(shape), 'std': jnp.ones(shape)}
    return params

  return jax.jit(init)()


def make_batch(
  world: World, rows: int, length: int, *, pixels: bool = False
) -> Batch:
  """Returns a batch of latents, or of frames, that mean nothing."""
  t = world.config.tokenizer
  lead = (rows, length)
  shape, dtype = (t.num_latents, t.bottleneck_dim), jnp.float16
  if pixels:
    shape, dtype = (t.image_height, t.image_width, t.channels), jnp.uint8
  numbers, whole = jnp.zeros(lead), jnp.zeros(lead, jnp.int32)
  action = no_action(world.space, lead)
  return Batch(
    frames=jnp.ones((*lead, *shape), dtype),
    action=action,
    action_mask=numbers == 0,
    prev_action=action,
    prev_action_mask=numbers == 0,
    reward=numbers,
    cont=numbers + 1,
    task=whole,
    segment_ids=whole,
    relevant=jnp.ones((rows,), bool),
  )


def case_of(fn: Callable[..., Any], *args: Any, frames: int = 0) -> Case:
  """A pure function with arguments that stay."""
  traced = jax.jit(fn).trace(*args)
  compiled = traced.lower().compile()
  return Case(
    run=lambda: jax.block_until_ready(compiled(*args)),
    flops=count_flops(traced.jaxpr),
    frames=frames,
    bytes=bytes_of(compiled),
  )


def stepping_case(
  fn: Callable[[PyTree, Array], tuple[Any, PyTree]],
  state: PyTree,
  *,
  frames: int = 0,
) -> Case:
  """A function `(state, number) -> (output, state)`, its state donated."""
  number = jnp.uint32(0)
  traced = jax.jit(fn, donate_argnums=0).trace(state, number)
  compiled = traced.lower().compile()
  # As buffers of their own: constants may share theirs.
  kept = [jax.tree.map(jnp.copy, state), 0]

  def run() -> None:
    output, kept[0] = compiled(kept[0], jnp.uint32(kept[1]))
    kept[1] += 1
    jax.block_until_ready((output, kept[0]))

  return Case(
    run=run,
    flops=count_flops(traced.jaxpr),
    frames=frames,
    bytes=bytes_of(compiled),
  )


def bytes_of(compiled: Any) -> float:
  """Bytes that a compiled program touches by XLA's analysis."""
  return float((compiled.cost_analysis() or {}).get('bytes accessed', 0.0))


def _describe(
  case: Case, times: Sequence[float], ceilings: Mapping[str, float]
) -> dict[str, Any]:
  median = statistics.median(times)
  found: dict[str, Any] = {
    'seconds': median,
    'range': [min(times), max(times)],
  }
  if case.frames:
    found['frames_per_second'] = case.frames / median
  if case.flops:
    rate = case.flops / median
    found['model_flops'] = case.flops
    found['share_of_matmul'] = rate / ceilings['matmul']
    if 'matmul_bfloat16' in ceilings:
      found['share_of_matmul_bfloat16'] = rate / ceilings['matmul_bfloat16']
  if case.bytes:
    found['bytes'] = case.bytes
    found['share_of_copy'] = case.bytes / median / ceilings['copy']
  return found


def _ratio(new: Sequence[float], old: Sequence[float]) -> dict[str, Any]:
  """Ratio of medians, and the range of the ratios turn by turn."""
  each = [a / b for a, b in zip(new, old, strict=True)]
  return {
    'median': statistics.median(new) / statistics.median(old),
    'range': [min(each), max(each)],
  }
