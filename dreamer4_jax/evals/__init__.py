"""Video metrics, closed-loop evaluation, statistics and reports."""

from dreamer4_jax.evals.closed_loop import (
  Episodes,
  random_agent,
  run_episodes,
  streaming_agent,
)
from dreamer4_jax.evals.statistics import paired_comparison
from dreamer4_jax.evals.video import (
  one_episode_clips,
  open_loop,
  open_loop_psnr,
  psnr,
  tokenizer_psnr,
)

__all__ = [
  'Episodes',
  'one_episode_clips',
  'open_loop',
  'open_loop_psnr',
  'paired_comparison',
  'psnr',
  'random_agent',
  'run_episodes',
  'streaming_agent',
  'tokenizer_psnr',
]
