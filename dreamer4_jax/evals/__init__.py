"""Video metrics, closed-loop evaluation, statistics and reports."""

from dreamer4_jax.evals.closed_loop import (
  Episodes,
  has_events,
  random_agent,
  run_episodes,
  streaming_agent,
)
from dreamer4_jax.evals.reality import Phantoms, Reality, dream_and_play
from dreamer4_jax.evals.statistics import (
  compare_policies,
  paired_comparison,
  paired_difference,
)
from dreamer4_jax.evals.video import (
  OpenLoop,
  one_episode_clips,
  open_loop,
  open_loop_psnr,
  psnr,
  tokenizer_psnr,
  vector_errors,
)

__all__ = [
  'Episodes',
  'OpenLoop',
  'Phantoms',
  'Reality',
  'compare_policies',
  'dream_and_play',
  'has_events',
  'one_episode_clips',
  'open_loop',
  'open_loop_psnr',
  'paired_comparison',
  'paired_difference',
  'psnr',
  'random_agent',
  'run_episodes',
  'streaming_agent',
  'tokenizer_psnr',
  'vector_errors',
]
