"""Sampling frames, imagining rollouts, acting on a stream."""

from dreamer4_jax.rollout.acting import (
  ActorState,
  Prompt,
  act,
  advance,
  init_actor,
  init_prompt,
)
from dreamer4_jax.rollout.context import Context, prepare_context
from dreamer4_jax.rollout.denoise import FrameInput, append_frame, denoise_frame
from dreamer4_jax.rollout.imagine import (
  Rollout,
  fixed_actions,
  imagine,
  sample_policy,
)

__all__ = [
  'ActorState',
  'Context',
  'FrameInput',
  'Prompt',
  'Rollout',
  'act',
  'advance',
  'append_frame',
  'denoise_frame',
  'fixed_actions',
  'imagine',
  'init_actor',
  'init_prompt',
  'prepare_context',
  'sample_policy',
]
