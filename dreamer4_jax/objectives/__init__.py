"""Losses and targets: functions of arrays and callables, no Flax modules."""

from dreamer4_jax.objectives.levels import (
  draw_levels,
  finest_step_index,
  sampling_levels,
)
from dreamer4_jax.objectives.masking import patch_mask
from dreamer4_jax.objectives.mean import Mean
from dreamer4_jax.objectives.multi_token import (
  multi_token_rewards,
  multi_token_targets,
)
from dreamer4_jax.objectives.normalize import RmsState, rms_init, rms_normalize
from dreamer4_jax.objectives.pmpo import PmpoOutput, pmpo_loss, pmpo_means
from dreamer4_jax.objectives.reconstruction import (
  hard_mse,
  load_lpips,
  mse,
  vector_mse,
)
from dreamer4_jax.objectives.returns import lambda_returns
from dreamer4_jax.objectives.shortcut import (
  ShortcutLosses,
  bootstrap_velocity,
  corrupt,
  euler_step,
  ramp,
  shortcut_losses,
)
from dreamer4_jax.objectives.twohot import TwoHot, symexp, symlog

__all__ = [
  'Mean',
  'PmpoOutput',
  'RmsState',
  'ShortcutLosses',
  'TwoHot',
  'bootstrap_velocity',
  'corrupt',
  'draw_levels',
  'euler_step',
  'finest_step_index',
  'hard_mse',
  'lambda_returns',
  'load_lpips',
  'mse',
  'multi_token_rewards',
  'multi_token_targets',
  'patch_mask',
  'pmpo_loss',
  'pmpo_means',
  'ramp',
  'rms_init',
  'rms_normalize',
  'sampling_levels',
  'shortcut_losses',
  'symexp',
  'symlog',
  'vector_mse',
]
