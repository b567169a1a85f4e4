"""Interactive play: one action in, one picture out.

A frame is one program: K passes of the dynamics and one of the decoder.
The pass that appends a frame to the past waits for the next action, and is then
one with the first pass of the next frame, in a block of two frames: the weights
are read K times a frame, not K + 1 times.
"""

from __future__ import annotations

from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.models import (
  Params,
  World,
  dynamics_cache,
  no_action,
  tokenizer_caches,
)
from dreamer4_jax.nn import (
  NO_SEGMENT,
  TimeCache,
  append,
  fill,
)
from dreamer4_jax.rollout.context import prepare_context, take_back_last
from dreamer4_jax.rollout.denoise import (
  FrameInput,
  Pending,
  append_and_denoise,
  context_noise,
)
from dreamer4_jax.types import Actions, Array, Batch


@struct.dataclass
class Stream:
  """The past of B games that are being played in the model.

  Attributes:
    dynamics: cache of the dynamics, without agent token and without the last
      frame.
    pending: the last frame, which the next one appends.
    decoder: cache of the tokenizer's decoder, with the last frame.
  """

  dynamics: TimeCache
  pending: Pending
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
  _, decoder = draw_context(world, params, context.z, clips.segment_ids)
  cache, pending = take_back_last(context, clips)
  return Stream(dynamics=cache, pending=pending, decoder=decoder)


def draw_context(
  world: World, params: Params, z: Array, segment_ids: Array
) -> tuple[Array, TimeCache]:
  """Draws the last frame of clips.

  Args:
    world: modules.
    params: entries `tokenizer`, `latents`.
    z: `[B, T, N_z, C]` standardised tokens.
    segment_ids: `[B, T]` int32.

  Returns:
    `[B, H, W, C]` uint8, and the decoder's cache with all frames.
  """
  _, decoder = tokenizer_caches(world.tokenizer, len(z))
  images, new = world.decode(params, z, segment_ids=segment_ids)
  return _pixels(images[:, -1]), fill(decoder, new, segment_ids)


def draw_next(
  world: World, params: Params, z: Array, decoder: TimeCache
) -> tuple[Array, TimeCache]:
  """Draws the next frame of a stream.

  Args:
    world: modules.
    params: entries `tokenizer`, `latents`.
    z: `[B, 1, N_z, C]` standardised tokens.
    decoder: its past.

  Returns:
    `[B, H, W, C]` uint8, and the cache with this frame.
  """
  images, new = world.decode(params, z, cache=decoder)
  return _pixels(images[:, 0]), append(decoder, new)


def empty_stream(world: World, batch: int) -> Stream:
  """Returns the past of `batch` games in which nothing has happened.

  The model chooses where they begin; the first action has no effect.
  """
  _, decoder = tokenizer_caches(world.tokenizer, batch)
  return Stream(
    dynamics=dynamics_cache(world.dynamics, batch, agent=False),
    pending=Pending(
      noisy=jnp.zeros(_shape(world, batch)),
      inputs=FrameInput(
        prev_action=no_action(world.space, (batch, 1)),
        prev_action_mask=jnp.zeros((batch, 1), bool),
        agent=None,
      ),
      segment=jnp.full((batch,), NO_SEGMENT, jnp.int32),
    ),
    decoder=decoder,
  )


def compiler_options(platform: str | None = None) -> dict[str, bool]:
  """Returns what to compile a frame with, `jax.jit(..., compiler_options=...)`.

  On a GPU, few rows at a time are faster by cuBLAS than by the products that
  XLA compiles through Triton: a frame of the `paper` preset took three quarters
  of the time on an H100 (`docs/notes.md`).

  Args:
    platform: `cpu`, `gpu` or `tpu`, by default that of the process.
  """
  platform = platform or jax.default_backend()
  return (
    {'xla_gpu_enable_triton_gemm': False} if platform in ('gpu', 'cuda') else {}
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
    params: entries `tokenizer`, `latents`, `dynamics`; best from
      `World.for_inference`.
    stream: the past; donate it to the program, which writes it in place. See
      also `compiler_options`.
    action: components `[B, ...]`.
    key: all randomness.
    steps: K, a power of two.

  Returns:
    `[B, H, W, C]` uint8, and the stream with this frame in it.
  """
  start, noise = jax.random.split(key)
  batch = stream.decoder.segment.shape[0]
  shape = _shape(world, batch)
  past, pending = stream.dynamics, stream.pending
  # Training never shows an action that led to a first frame.
  inputs = FrameInput(
    prev_action=jax.tree.map(lambda a: a[:, None], action),
    prev_action_mask=(pending.segment == past.segment)[:, None],
    agent=None,
  )
  z, dynamics = append_and_denoise(
    world,
    params,
    past,
    pending,
    inputs,
    jax.random.normal(start, shape),
    steps=steps,
  )
  pixels, decoder = draw_next(world, params, z, stream.decoder)
  return pixels, Stream(
    dynamics=dynamics,
    pending=Pending(
      noisy=context_noise(world, z, jax.random.normal(noise, shape)),
      inputs=inputs,
      segment=dynamics.segment,
    ),
    decoder=decoder,
  )


def _pixels(images: Array) -> Array:
  """Images `[...]` in 0..1 to uint8."""
  return jnp.round(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)


def _shape(world: World, batch: int) -> tuple[int, ...]:
  """Shape of the tokens of a frame, `(B, 1, N_z, C)`."""
  return (batch, 1, world.config.dynamics.num_spatial_tokens, world.channels)
