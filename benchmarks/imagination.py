"""Times imagined rollouts beside the passes that they consist of.

python -m benchmarks.imagination
python -m benchmarks.imagination --preset base --batches 1 4 16 64 256

Prints one JSON object. `rollout` imagines `horizon` frames from contexts of
latents and evaluates the policy at each, `rollout_twice` twice as many. The
parts of a rollout are timed separately: the context in one pass, a pass that
reads the cache, and one that appends to it. Several batch sizes show where
frames per second saturate.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness, worlds
from dreamer4_jax.config import require
from dreamer4_jax.nn import TimeCache
from dreamer4_jax.rollout import (
  FrameInput,
  append_frame,
  context_levels,
  imagine,
  prepare_context,
  sample_policy,
)
from dreamer4_jax.types import Array, PyTree

MODULES = ('dynamics', 'task', 'policy')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imagination(harness.Settings):
  """What to measure."""

  batches: tuple[int, ...] = (8,)
  """Rollouts side by side."""
  context: int = 16
  """Frames of context."""
  horizon: int = 32
  """Imagined frames."""
  steps: int = 4
  """Denoising steps of a frame, K."""

  def __post_init__(self):
    super().__post_init__()
    for name in ('context', 'horizon', 'steps'):
      value = getattr(self, name)
      require(value >= 1, name, value, 'must be at least 1')
    require(
      len(self.batches) > 0 and min(self.batches) >= 1,
      'batches', self.batches, 'must be numbers of at least 1',
    )  # fmt: skip


def make_cases(settings: Imagination) -> dict[str, harness.Case]:
  """Compiles the rollouts and their parts for every batch size."""
  world = worlds.make_world(settings.preset, attention=settings.attention)
  params = worlds.init_params(world, MODULES)
  return {
    f'{name}_{rows}': case
    for rows in settings.batches
    for name, case in _cases_of(settings, world, params, rows).items()
  }


def _cases_of(
  s: Imagination, world: Any, params: PyTree, rows: int
) -> dict[str, harness.Case]:
  batch = worlds.make_batch(world, rows, s.context)
  key = jax.random.key(0)

  def rollout(params: PyTree, batch: PyTree, *, horizon: int) -> Any:
    return imagine(
      world,
      params,
      batch,
      key,
      policy=sample_policy(world, params),
      horizon=horizon,
      sampling_steps=s.steps,
    )

  def context(params: PyTree, batch: PyTree) -> Any:
    return prepare_context(world, params, batch, key, with_agent=True)

  def inputs(params: PyTree) -> FrameInput:
    action = jax.tree.map(lambda a: a[:, :1], batch.prev_action)
    token = world.agent_token(params, batch.task[:, :1])
    return FrameInput(
      prev_action=action,
      prev_action_mask=batch.prev_action_mask[:, :1],
      agent=token,
    )

  def one_pass(params: PyTree, cache: TimeCache, z: Array) -> Array:
    given = inputs(params)
    return world.denoise(
      params,
      z,
      context_levels(world, z.shape[:2]),
      given.prev_action,
      given.prev_action_mask,
      agent=given.agent,
      cache=cache,
    ).prediction

  def append(
    cache: TimeCache, number: Array, params: PyTree, z: Array
  ) -> tuple[Array, TimeCache]:
    del number
    return append_frame(world, params, cache, inputs(params), z, z)

  cast = jax.jit(world.for_inference)(params)  # As a rollout does, once.
  cache = jax.jit(context)(params, batch).cache
  shape = (rows, 1, world.config.dynamics.num_spatial_tokens, world.channels)
  z = jnp.ones(shape)
  make = functools.partial(harness.case_of, dtype=world.config.compute.dtype)
  several = lambda horizon: make(
    lambda p, b: rollout(p, b, horizon=horizon),
    params, batch, frames=rows * horizon,
  )  # fmt: skip
  return {
    'rollout': several(s.horizon),
    'rollout_twice': several(2 * s.horizon),
    'context': make(context, params, batch),
    'pass': make(one_pass, cast, cache, z, frames=rows),
    'append': harness.stepping_case(
      append, cache, cast, z, frames=rows, dtype=world.config.compute.dtype
    ),
  }


def summarise(
  settings: Imagination, seconds: dict[str, float]
) -> dict[str, Any]:
  """Compares the rollouts with their passes and with each other."""
  s, found = settings, {}
  for rows in s.batches:
    of = lambda name, rows=rows: seconds[f'{name}_{rows}']
    frame = s.steps * of('pass') + of('append')
    found[f'batch_{rows}'] = {
      'rollout_over_its_passes': of('rollout')
      / (of('context') + s.horizon * frame),
      'twice_over_once': of('rollout_twice') / of('rollout'),
      'frames_per_second': rows * s.horizon / of('rollout'),
    }
  return found


if __name__ == '__main__':
  harness.main(Imagination, make_cases, summarise)
