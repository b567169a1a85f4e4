"""Encodes real frames into a cache, in parallel."""

from __future__ import annotations

from flax import struct
import jax

from dreamer4_jax.models import Params, World, dynamics_cache
from dreamer4_jax.nn import TimeCache, fill, forget_last
from dreamer4_jax.rollout.denoise import (
  FrameInput,
  Pending,
  context_levels,
  context_noise,
  draw_noise,
)
from dreamer4_jax.types import Array, Batch


@struct.dataclass
class Context:
  """A prefilled past.

  Attributes:
    cache: ring caches of the dynamics.
    z: `[B, T, N_z, C]` clean standardised tokens of the frames.
    noisy: `[B, T, N_z, C]` the same at the context level.
    agent: `[B, T, D]` agent states, or None without a task.
  """

  cache: TimeCache
  z: Array
  noisy: Array
  agent: Array | None


def prepare_context(
  world: World,
  params: Params,
  batch: Batch,
  key: Array,
  *,
  with_agent: bool,
) -> Context:
  """Encodes the clips of a batch and fills the caches in one pass.

  Args:
    world: modules.
    params: parameters, entries `tokenizer`, `latents`, `dynamics`, and `task`
      with an agent.
    batch: clips of T frames.
    key: draws the context noise, once per frame; see `draw_noise`.
    with_agent: whether the agent token is present.
  """
  z = world.encode_clips(params, batch)
  noisy = context_noise(world, z, draw_noise(key, z.shape))
  output = world.denoise(
    params,
    noisy,
    context_levels(world, z.shape[:2]),
    batch.prev_action,
    batch.prev_action_mask,
    agent=world.agent_token(params, batch.task) if with_agent else None,
    segment_ids=batch.segment_ids,
  )
  cache = dynamics_cache(world.dynamics, z.shape[0], with_agent)
  return Context(
    cache=fill(cache, output.new, batch.segment_ids),
    z=z,
    noisy=noisy,
    agent=output.agent,
  )


def take_back_last(context: Context, batch: Batch) -> tuple[TimeCache, Pending]:
  """Returns the cache without the last frame, and that frame.

  For a rollout whose first pass appends it; see `append_and_denoise`.

  Args:
    context: of the batch, without an agent.
    batch: what it was made of.
  """
  inputs = FrameInput(
    prev_action=jax.tree.map(last_frame, batch.prev_action),
    prev_action_mask=last_frame(batch.prev_action_mask),
    agent=None,
  )
  return forget_last(context.cache), Pending(
    noisy=last_frame(context.noisy),
    inputs=inputs,
    segment=batch.segment_ids[:, -1],
  )


def last_frame(x: Array) -> Array:
  """Returns the last frame of `[B, T, ...]` as `[B, 1, ...]`."""
  return jax.lax.slice_in_dim(x, x.shape[1] - 1, x.shape[1], axis=1)
