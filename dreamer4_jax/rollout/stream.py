"""Interactive play: one action in, one picture out.

A frame is one program: K passes that read the cache, one that appends to it,
and the tokenizer's decoder with a cache of its own.
"""

from __future__ import annotations

from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.models import (
  Params,
  World,
  dynamics_cache,
  tokenizer_caches,
)
from dreamer4_jax.nn import TimeCache, append, fill
from dreamer4_jax.rollout.context import prepare_context
from dreamer4_jax.rollout.denoise import FrameInput, append_frame, denoise_frame
from dreamer4_jax.types import Actions, Array, Batch


@struct.dataclass
class Stream:
  """The past of B games that are being played in the model.

  Attributes:
    dynamics: cache of the dynamics, without agent token.
    decoder: cache of the tokenizer's decoder.
  """

  dynamics: TimeCache
  decoder: TimeCache


def init_stream(
  world: World, params: Params, clips: Batch, key: Array
) -> Stream:
  """Returns the past of games that continue where real clips end.

  Args:
    world: modules.
    params: entries `tokenizer`, `latents`, `dynamics`.
    clips: real frames and the actions that led to them, `[B, T, ...]`. If they
      are longer than a ring, only their end is remembered.
    key: draws the context noise.
  """
  context = prepare_context(world, params, clips, key, with_agent=False)
  _, decoder = tokenizer_caches(world.tokenizer, len(context.z))
  ids = clips.segment_ids
  _, new = world.decode(params, context.z, segment_ids=ids)
  return Stream(dynamics=context.cache, decoder=fill(decoder, new, ids))


def empty_stream(world: World, batch: int) -> Stream:
  """Returns the past of `batch` games in which nothing has happened.

  The model chooses where they begin; the first action has no effect.
  """
  _, decoder = tokenizer_caches(world.tokenizer, batch)
  return Stream(
    dynamics=dynamics_cache(world.dynamics, batch, agent=False),
    decoder=decoder,
  )


def next_frame(
  world: World,
  params: Params,
  stream: Stream,
  action: Actions,
  key: Array,
  *,
  steps: int,
) -> tuple[Array, Stream]:
  """Imagines the frame that an action leads to, and draws it.

  Args:
    world: modules.
    params: entries `tokenizer`, `latents`, `dynamics`; best from `World.cast`.
    stream: the past; donate it to the program, which writes it in place.
    action: components `[B, ...]`.
    key: all randomness.
    steps: K, a power of two.

  Returns:
    `[B, H, W, C]` uint8, and the stream with this frame in it.
  """
  start, noise = jax.random.split(key)
  batch = stream.decoder.segment.shape[0]
  past = stream.dynamics
  # Training never shows an action that led to a first frame.
  known = (past.slot_segments == past.segment[:, None]).any(axis=1)
  inputs = FrameInput(
    prev_action=jax.tree.map(lambda a: a[:, None], action),
    prev_action_mask=known[:, None],
    agent=None,
  )
  shape = (batch, 1, world.config.dynamics.num_spatial_tokens, world.channels)
  z = denoise_frame(
    world,
    params,
    stream.dynamics,
    inputs,
    jax.random.normal(start, shape),
    steps=steps,
  )
  _, dynamics = append_frame(
    world, params, stream.dynamics, inputs, z, jax.random.normal(noise, shape)
  )
  images, new = world.decode(params, z, cache=stream.decoder)
  pixels = jnp.round(jnp.clip(images[:, 0], 0, 1) * 255).astype(jnp.uint8)
  return pixels, Stream(dynamics=dynamics, decoder=append(stream.decoder, new))
