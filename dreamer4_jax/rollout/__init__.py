"""Sampling frames, imagining rollouts, acting on a stream."""

from dreamer4_jax.rollout.acting import (
  ActorState,
  Prompt,
  act,
  advance,
  init_actor,
  init_prompt,
  own_events,
  restart,
)
from dreamer4_jax.rollout.context import Context, prepare_context
from dreamer4_jax.rollout.denoise import (
  FrameInput,
  Pending,
  append_and_denoise,
  append_frame,
  context_levels,
  context_noise,
  denoise_frame,
)
from dreamer4_jax.rollout.imagine import (
  Replay,
  Rollout,
  arrivals,
  imagine,
  sample_policy,
)
from dreamer4_jax.rollout.stream import (
  Stream,
  compiler_options,
  empty_stream,
  init_stream,
  next_frame,
)

__all__ = [
  'ActorState',
  'Context',
  'FrameInput',
  'Pending',
  'Prompt',
  'Replay',
  'Rollout',
  'Stream',
  'act',
  'advance',
  'append_and_denoise',
  'append_frame',
  'arrivals',
  'compiler_options',
  'context_levels',
  'context_noise',
  'denoise_frame',
  'empty_stream',
  'imagine',
  'init_actor',
  'init_prompt',
  'init_stream',
  'next_frame',
  'own_events',
  'prepare_context',
  'restart',
  'sample_policy',
]
