"""What the benchmarks share: ceilings of the device, and timing in turns.

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
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import tyro

from dreamer4_jax.aot.flops import count_flops
from dreamer4_jax.config import Backend, require
from dreamer4_jax.runtime.memory import keep_freed_memory
from dreamer4_jax.types import PyTree

_LEAST = 0.2
"""Least seconds of a measurement: fast programs run several times."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A program with its arguments.

  Attributes:
    run: runs it once and waits for the result.
    flops: of the model's matrix products in one run, none counted twice.
    frames: frames of video that one run deals with, over all rows.
    bytes: what the compiled program reads and writes by XLA's analysis, with
      loops counted once; 0 if unknown.
    dtype: of its products, whose ceiling it is compared with.
    warm: whether it is run before it is timed, so that nothing is compiled
      meanwhile.
  """

  run: Callable[[], Any]
  flops: float = 0.0
  frames: int = 0
  bytes: float = 0.0
  dtype: str = 'float32'
  warm: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Fields of every benchmark."""

  preset: str = 'reference'
  """Sizes, one of `worlds.PRESETS`."""
  attention: Backend = 'auto'
  """What computes attention within a frame or clip."""
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
  keep_freed_memory()  # As the command line does.
  first = tyro.cli(settings)
  configs = [first]
  if first.compare:
    # The defaults of the second are the choices of the first.
    args = [part for x in first.compare for part in f'--{x}'.split('=', 1)]
    configs.append(tyro.cli(settings, args=args, default=first))
  found = [dict(make_cases(c)) for c in configs]
  dtypes = {case.dtype for cases in found for case in cases.values()}
  kinds = {f'matmul_{x}': measure_matmul(x) for x in sorted(dtypes)}
  kinds['copy'] = measure_copy()
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
  whole |= {
    'ceilings_per_second': ceilings,
    'machine': machine(),
    'command': command(),
    'commit': commit(),
  }
  print(json.dumps(whole, indent=2))
  return whole


def time_in_turns(
  cases: Mapping[str, Case], repeats: int
) -> dict[str, list[float]]:
  """Returns seconds per run of each case, `repeats` each, timed in turns.

  Fast ones run several times in each turn.
  """
  times: dict[str, list[float]] = {name: [] for name in cases}
  runs = dict.fromkeys(cases, 1)
  for name, case in cases.items():
    if not case.warm:
      continue
    case.run()
    begin = time.perf_counter()
    case.run()
    spent = time.perf_counter() - begin
    runs[name] = math.ceil(_LEAST / max(spent, _LEAST / 10_000))
  for i in range(repeats):
    print(f'turn {i + 1} of {repeats}', file=sys.stderr)
    for name, case in cases.items():
      begin = time.perf_counter()
      for _ in range(runs[name]):
        case.run()
      times[name].append((time.perf_counter() - begin) / runs[name])
  return times


def measure_matmul(dtype: str) -> Case:
  """Returns a product of two square matrices, the ceiling of arithmetic."""
  size = 2048 if jax.default_backend() == 'cpu' else 8192
  x = jnp.ones((size, size), dtype) / size
  product = jax.jit(jnp.matmul).lower(x, x).compile()
  return Case(
    run=lambda: product(x, x).block_until_ready(), flops=2.0 * size**3
  )


def measure_copy() -> Case:
  """Reads and writes memory, the ceiling of everything else."""
  size = 2**26 if jax.default_backend() == 'cpu' else 2**30
  x = jnp.ones((size // 4,), jnp.float32)
  add = jax.jit(lambda x: x + 1).lower(x).compile()
  return Case(run=lambda: add(x).block_until_ready(), bytes=2.0 * size)


def machine() -> dict[str, Any]:
  """Returns the hardware and versions that a figure was measured with."""
  packages = ('jax', 'jaxlib', 'flax', 'optax')
  return {
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'cores': os.cpu_count(),
    'python': platform.python_version(),
    'date': time.strftime('%Y-%m-%d'),
    **{name: importlib.metadata.version(name) for name in packages},
  }


def command() -> str:
  """Returns how this process was started, `python -m MODULE ARGUMENTS`."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  program = sys.argv[0] if spec is None else f'-m {spec.name}'
  return ' '.join(['python', program, *sys.argv[1:]])


def commit() -> str | None:
  """Returns the commit of this checkout, with + if files have changed since."""
  where = pathlib.Path(__file__).parent
  ask = ['git', 'describe', '--always', '--dirty=+', '--exclude=*']
  try:
    return subprocess.run(
      ask, cwd=where, check=True, capture_output=True, text=True
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None


def case_of(
  fn: Callable[..., Any],
  *args: Any,
  options: Mapping[str, bool] | None = None,
  **fields: Any,
) -> Case:
  """A case of a pure function with fixed arguments, and its other fields.

  `options` are the compiler's.
  """
  traced = jax.jit(fn).trace(*args)
  compiled = traced.lower().compile(compiler_options=dict(options or {}))
  return Case(
    run=lambda: jax.block_until_ready(compiled(*args)),
    flops=count_flops(traced.jaxpr),
    bytes=bytes_of(compiled),
    **fields,
  )


def stepping_case(
  fn: Callable[..., tuple[Any, PyTree]],
  state: PyTree,
  *args: Any,
  options: Mapping[str, bool] | None = None,
  **fields: Any,
) -> Case:
  """A case of `(state, number, *args) -> (output, state)`, state donated.

  `options` are the compiler's.
  """
  number = jnp.uint32(0)
  traced = jax.jit(fn, donate_argnums=0).trace(state, number, *args)
  compiled = traced.lower().compile(compiler_options=dict(options or {}))
  # Copied to buffers of their own: equal constants may share one.
  kept = [jax.tree.map(jnp.copy, state), 0]

  def run() -> None:
    output, kept[0] = compiled(kept[0], jnp.uint32(kept[1]), *args)
    kept[1] += 1
    jax.block_until_ready((output, kept[0]))

  return Case(
    run=run,
    flops=count_flops(traced.jaxpr),
    bytes=bytes_of(compiled),
    **fields,
  )


def bytes_of(compiled: Any) -> float:
  """Returns the bytes that a compiled program touches, by XLA's analysis."""
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
    ceiling = ceilings[f'matmul_{case.dtype}']
    found['model_flops'] = case.flops
    found['share_of_matmul'] = case.flops / median / ceiling
  if case.bytes:
    found['bytes'] = case.bytes
    found['share_of_copy'] = case.bytes / median / ceilings['copy']
  return found


def _ratio(new: Sequence[float], old: Sequence[float]) -> dict[str, Any]:
  """Returns the ratio of medians, and the range of the ratios turn by turn."""
  each = [a / b for a, b in zip(new, old, strict=True)]
  return {
    'median': statistics.median(new) / statistics.median(old),
    'range': [min(each), max(each)],
  }
