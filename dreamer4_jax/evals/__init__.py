"""Video metrics, closed-loop evaluation, statistics and reports."""

from etils import epy as _epy

from dreamer4_jax.evals.closed_loop import (
  Episodes,
  Evaluator,
  best_policy,
  has_events,
  random_agent,
  run_episodes,
  streaming_agent,
  streaming_memory,
)
from dreamer4_jax.evals.curves import play_along
from dreamer4_jax.evals.reality import Phantoms, Reality, dream_and_play
from dreamer4_jax.evals.seeds import student_interval
from dreamer4_jax.evals.similarity import (
  frechet_distance,
  fvd,
  latent_features,
  ssim,
)
from dreamer4_jax.evals.statistics import (
  compare_policies,
  compare_steps,
  milestones,
  paired_comparison,
  paired_difference,
  wilson,
)
from dreamer4_jax.evals.tiles import (
  Palette,
  dream_tiles,
  find_palette,
  reconstruction_tiles,
)
from dreamer4_jax.evals.video import (
  OpenLoop,
  Reconstructions,
  one_episode_clips,
  open_loop,
  open_loop_psnr,
  psnr,
  reconstructions,
  summary,
  vector_errors,
)

with _epy.lazy_api_imports(globals()):  # They draw plots, which load slowly.
  from dreamer4_jax.evals.evaluation import evaluate
  from dreamer4_jax.evals.excerpts import dream, play

__all__ = [
  'Episodes',
  'Evaluator',
  'OpenLoop',
  'Palette',
  'Phantoms',
  'Reality',
  'Reconstructions',
  'best_policy',
  'compare_policies',
  'compare_steps',
  'dream',
  'dream_and_play',
  'dream_tiles',
  'evaluate',
  'find_palette',
  'frechet_distance',
  'fvd',
  'has_events',
  'latent_features',
  'milestones',
  'one_episode_clips',
  'open_loop',
  'open_loop_psnr',
  'paired_comparison',
  'paired_difference',
  'play',
  'play_along',
  'psnr',
  'random_agent',
  'reconstruction_tiles',
  'reconstructions',
  'run_episodes',
  'ssim',
  'streaming_agent',
  'streaming_memory',
  'student_interval',
  'summary',
  'vector_errors',
  'wilson',
]
