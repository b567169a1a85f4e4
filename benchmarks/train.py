"""Train steps: seconds, model FLOPs, and their share of the device's rate.

python -m benchmarks.train
python -m benchmarks.train --preset base --phases dynamics --batch 32

Prints one JSON object. FLOPs are those of the model's matrix products in the
steps whose time is the median: where four does not divide the rows, three steps
in four do not bootstrap. Recomputation in the backward pass is not counted,
though it takes time. The state is donated from step to step, as in training.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from benchmarks import harness, worlds
from dreamer4_jax.aot.flops import count_flops
from dreamer4_jax.config import PHASES, require
from dreamer4_jax.models import World
from dreamer4_jax.training.phases import init_and_step
from dreamer4_jax.types import Array, PyTree

Phase = Literal['tokenizer', 'dynamics', 'finetune', 'imagination']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(harness.Settings):
  """What to measure."""

  phases: tuple[Phase, ...] = ('dynamics', 'tokenizer')
  """Phases whose steps are timed."""
  batch: int = 8
  """Rows of a batch; the tokenizer's has half as many."""
  length: int = 32
  """Frames of a clip; the tokenizer's has half as many."""
  remat: str = ''
  """What the backward pass recomputes, instead of the preset's choice."""

  def __post_init__(self):
    super().__post_init__()
    for name in ('batch', 'length'):
      value = getattr(self, name)
      require(
        value >= 2 and value % 2 == 0, name, value, 'must be even, at least 2'
      )


def make_cases(settings: Train) -> dict[str, harness.Case]:
  """Compiles a step of each phase."""
  return {phase: _case(settings, phase) for phase in settings.phases}


def summarise(settings: Train, seconds: dict[str, float]) -> dict[str, Any]:
  """Adds nothing to what is reported of every program."""
  del settings, seconds
  return {}


def _case(settings: Train, phase: str) -> harness.Case:
  s = settings
  half = 2 if phase == 'tokenizer' else 1
  rows, length = s.batch // half, s.length // half
  make_world = functools.partial(
    worlds.make_world,
    s.preset,
    batch=rows,
    length=length,
  )
  world = make_world(remat=s.remat, attention=s.attention)
  batch = worlds.make_batch(world, rows, length, pixels=phase == 'tokenizer')
  before = PHASES.index(phase)

  def start(world: World) -> PyTree:
    given = worlds.MODULES[1:-1] if before > 1 else ()
    given = worlds.init_params(world, given)
    given['tokenizer'] = {}
    return nn.meta.unbox(
      init_and_step(world, phase)[0](jax.random.key(0), given)
    )

  def step_of(world: World) -> Any:
    step = init_and_step(world, phase)[1]

    def run(state: PyTree, number: Array) -> tuple[Any, PyTree]:
      state, metrics = step(
        state, batch, jax.random.fold_in(jax.random.key(1), number)
      )
      return metrics, state

    return run

  state = jax.jit(lambda: start(world))()
  plain = make_world(remat='none', attention='xla')
  traced = jax.make_jaxpr(step_of(plain))(state, jnp.uint32(0))
  case = harness.stepping_case(
    step_of(world),
    state,
    frames=rows * length,
    dtype=world.config.compute.dtype,
  )
  # Of the median step: see above.
  return dataclasses.replace(case, flops=count_flops(traced, costliest=False))


if __name__ == '__main__':
  harness.main(Train, make_cases, summarise)
