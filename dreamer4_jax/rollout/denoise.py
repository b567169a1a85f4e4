"""One frame of the world model: K denoising passes, and one that appends it.

Source: section 3.2 of arXiv 2509.24527. The arithmetic of levels and steps is
that of training, `objectives.shortcut`.
"""

from __future__ import annotations

from collections.abc import Callable

from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.models import DynamicsOutput, Params, World
from dreamer4_jax.nn import TimeCache, append
from dreamer4_jax.objectives import (
  corrupt,
  euler_step,
  finest_step_index,
  sample,
  sampling_levels,
)
from dreamer4_jax.types import Actions, Array, Levels

Draw = Callable[[Array, tuple[int, ...]], Array]


@struct.dataclass
class FrameInput:
  """What conditions a frame; all arrays have T = 1.

  Attributes:
    prev_action: action that leads to the frame, components `[B, 1, ...]`.
    prev_action_mask: `[B, 1]` bool.
    agent: `[B, 1, D]` task embedding, or None without an agent token.
  """

  prev_action: Actions
  prev_action_mask: Array
  agent: Array | None


@struct.dataclass
class Pending:
  """A finished frame that is not in the cache yet.

  Attributes:
    noisy: `[B, 1, N_z, C]` its tokens at the context level.
    inputs: what conditioned it, without an agent.
    segment: `[B]` int32 that it belongs to; `NO_SEGMENT` if there is none.
    index: `[B]` int32 of its level, see `context_levels`.
  """

  noisy: Array
  inputs: FrameInput
  segment: Array
  index: Array | None = None


def denoise_frame(
  world: World,
  params: Params,
  cache: TimeCache,
  inputs: FrameInput,
  noise: Array,
  *,
  steps: int,
) -> Array:
  """Samples the next frame's tokens; reads the cache and does not write it.

  Args:
    world: modules.
    params: parameters, entries `dynamics`.
    cache: past frames at the context level.
    inputs: action and task.
    noise: `[B, 1, N_z, C]` standard normal, the frame at tau = 0.
    steps: K, a power of two.

  Returns:
    `[B, 1, N_z, C]` standardised tokens.

  Raises:
    ValueError: `steps` is not a power of two in 1..max_steps.
  """
  predict = lambda z, levels: (
    _predict(world, params, cache, inputs, z, levels).prediction
  )
  max_steps = world.config.dynamics.max_steps
  return sample(predict, noise, steps=steps, max_steps=max_steps, lead_axes=2)


def append_and_denoise(
  world: World,
  params: Params,
  cache: TimeCache,
  pending: Pending,
  inputs: FrameInput,
  noise: Array,
  *,
  steps: int,
) -> tuple[Array, TimeCache]:
  """Appends the frame before, and samples the next one's tokens, in K passes.

  Computes what `append_frame` and then `denoise_frame` compute in K + 1: the
  first pass takes both frames, one at the context level, one at tau = 0.
  Actions must therefore come from outside: no agent may read the frame before.

  Args:
    world: modules.
    params: parameters, entries `dynamics`.
    cache: frames before the pending one, at the context level.
    pending: the frame before.
    inputs: action that leads to the next frame, without an agent.
    noise: `[B, 1, N_z, C]` standard normal, the next frame at tau = 0.
    steps: K, a power of two.

  Returns:
    `[B, 1, N_z, C]` standardised tokens, and the cache with the frame before.

  Raises:
    ValueError: `steps` is not a power of two in 1..max_steps.
  """
  max_steps = world.config.dynamics.max_steps
  levels, lead = sampling_levels(steps, max_steps), noise.shape[:2]
  now = context_levels(world, lead, pending.index)
  if cache.length == 1:
    # No frame sees another: there is nothing to share a pass for.
    output = _predict(world, params, cache, pending.inputs, pending.noisy, now)
    cache = append(cache, output.new, pending.segment)
    return denoise_frame(
      world, params, cache, inputs, noise, steps=steps
    ), cache
  both = lambda a, b: jnp.concatenate([a, b], axis=1)
  first = levels.replace(signal_index=levels.signal_index[0])
  given = jax.tree.map(both, pending.inputs, inputs)
  output = world.denoise(
    params,
    both(pending.noisy, noise),
    jax.tree.map(both, now, first.broadcast(lead)),
    given.prev_action,
    given.prev_action_mask,
    segment_ids=jnp.stack([pending.segment, cache.segment], axis=1),
    cache=cache,
  )
  z = euler_step(noise, output.prediction[:, 1:], first)
  cache = append(cache, output.new, pending.segment)
  predict = lambda z, levels: (
    _predict(world, params, cache, inputs, z, levels).prediction
  )
  z = sample(predict, z, steps=steps, max_steps=max_steps, lead_axes=2, taken=1)
  return z, cache


def _predict(
  world: World,
  params: Params,
  cache: TimeCache,
  inputs: FrameInput,
  z: Array,
  levels: Levels,
) -> DynamicsOutput:
  return world.denoise(
    params,
    z,
    levels,
    inputs.prev_action,
    inputs.prev_action_mask,
    agent=inputs.agent,
    cache=cache,
  )


def draw_noise(
  key: Array, shape: tuple[int, ...], draw: Draw = jax.random.normal
) -> Array:
  """Draws numbers of `shape`, `[B, ...]`.

  Args:
    key: one for all rows; or `[B]`, one for each, so that no row depends on how
      many others there are.
    shape: leads with B.
    draw: from a key and a shape, by default standard normal numbers.
  """
  if key.ndim and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    return jax.vmap(lambda own: draw(own, shape[1:]))(key)
  return draw(key, shape)


def context_noise(
  world: World, z: Array, noise: Array, index: Array | None = None
) -> Array:
  """Corrupts clean tokens to the context level, `(1 - tau) noise + tau z`."""
  return corrupt(z, noise, context_levels(world, z.shape[:2], index))


def context_levels(
  world: World, shape: tuple[int, ...], index: Array | None = None
) -> Levels:
  """Returns the level that labels frames of the past.

  Args:
    world: modules.
    shape: `(B, T)`.
    index: `[B]` int32 in 0..max_steps - 1, how clear frames are to the model,
      for a program that is told while it runs; None is that of the config.
  """
  c = world.config.dynamics
  last = finest_step_index(c.max_steps)
  given = c.context_index if index is None else index[:, None]
  return Levels(given, last, c.max_steps).broadcast(shape)


def append_frame(
  world: World,
  params: Params,
  cache: TimeCache,
  inputs: FrameInput,
  z: Array,
  noise: Array,
  index: Array | None = None,
) -> tuple[Array | None, TimeCache]:
  """Runs the finished frame at the context level and appends it.

  Args:
    world: modules.
    params: parameters, entries `dynamics`.
    cache: past frames.
    inputs: action and task.
    z: `[B, 1, N_z, C]` clean tokens.
    noise: `[B, 1, N_z, C]` standard normal, drawn once for this frame.
    index: of its level, see `context_levels`.

  Returns:
    The agent state h `[B, D]` (None without an agent token), and the cache.
  """
  noisy = context_noise(world, z, noise, index)
  levels = context_levels(world, z.shape[:2], index)
  output = _predict(world, params, cache, inputs, noisy, levels)
  h = None if output.agent is None else output.agent[:, 0]
  return h, append(cache, output.new)
