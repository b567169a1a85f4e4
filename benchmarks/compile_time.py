"""How long the dynamics step takes to compile, by the number of layers.

python -m benchmarks.compile_time

Prints one JSON object. `whole_N` traces and compiles the step with N layers,
`trace_N` only traces it; `ratio` is the deepest over the shallowest. Nothing is
taken from a cache.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
import jax

from benchmarks import harness, worlds
from dreamer4_jax.config import require
from dreamer4_jax.training.dynamics_step import (
  init_dynamics_state,
  make_dynamics_step,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileTime(harness.Settings):
  """What to measure."""

  preset: str = 'small'
  """Sizes, except the depth."""
  depths: tuple[int, ...] = (8, 32)
  """Layers of the dynamics."""
  batch: int = 8
  """Rows of the batch."""
  length: int = 32
  """Frames of a clip."""
  repeats: int = 3
  """Measurements of each program; they take turns."""

  def __post_init__(self):
    super().__post_init__()
    require(len(self.depths) > 0, 'depths', self.depths, 'must not be empty')


def make_cases(settings: CompileTime) -> dict[str, harness.Case]:
  """Returns a case that compiles and one that traces, for every depth."""
  jax.config.update('jax_enable_compilation_cache', False)
  cases = {}
  for depth in settings.depths:
    lower = _lowering(settings, depth)
    whole = lambda lower=lower: lower().compile()
    cases[f'whole_{depth}'] = harness.Case(run=whole, warm=False)
    cases[f'trace_{depth}'] = harness.Case(run=lower, warm=False)
  return cases


def summarise(
  settings: CompileTime, seconds: dict[str, float]
) -> dict[str, Any]:
  """Compares the deepest with the shallowest."""
  deep, shallow = max(settings.depths), min(settings.depths)
  return {'ratio': seconds[f'whole_{deep}'] / seconds[f'whole_{shallow}']}


def _lowering(settings: CompileTime, depth: int) -> Callable[[], Any]:
  """Returns a function that traces the step anew on each call."""
  s = settings
  world = worlds.make_world(
    s.preset,
    batch=s.batch,
    length=s.length,
    depth=depth,
    attention=s.attention,
  )
  batch = worlds.make_batch(world, s.batch, s.length)

  def init() -> Any:
    given = worlds.init_params(world, ())
    frozen = {'tokenizer': {}, 'latents': given['latents']}
    state = init_dynamics_state(world, jax.random.key(0), frozen)
    return nn.meta.unbox(state)

  state = jax.eval_shape(init)

  def lower() -> Any:
    jax.clear_caches()
    step = jax.jit(make_dynamics_step(world), donate_argnums=0)
    return step.lower(state, batch, jax.random.key(0))

  return lower


if __name__ == '__main__':
  harness.main(CompileTime, make_cases, summarise)
