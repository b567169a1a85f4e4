"""Losses and targets: functions of arrays and callables, no Flax modules."""

from dreamer4_jax.objectives.levels import draw_levels, finest_step_index
from dreamer4_jax.objectives.masking import patch_mask
from dreamer4_jax.objectives.mean import Mean
from dreamer4_jax.objectives.multi_token import (
  multi_token_rewards,
  multi_token_targets,
)
from dreamer4_jax.objectives.normalize import RmsState, rms_init, rms_normalize
from dreamer4_jax.objectives.pmpo import PmpoOutput, pmpo_loss, pmpo_means
from dreamer4_jax.objectives.reconstruction import (
  load_lpips,
  mse,
  vector_mse,
)
from dreamer4_jax.objectives.returns import lambda_returns
from dreamer4_jax.objectives.row_groups import RowGroups, group_size
from dreamer4_jax.objectives.sampler import euler_step, sample, sampling_levels
from dreamer4_jax.objectives.shortcut import (
  Resting,
  ShortcutData,
  ShortcutLosses,
  bootstrap_velocity,
  corrupt,
  prediction_losses,
  prepare_shortcut,
  ramp,
  shortcut_loss,
)
from dreamer4_jax.objectives.twohot import TwoHot, symexp, symlog

__all__ = [
  'Mean',
  'PmpoOutput',
  'Resting',
  'RmsState',
  'RowGroups',
  'ShortcutData',
  'ShortcutLosses',
  'TwoHot',
  'bootstrap_velocity',
  'corrupt',
  'draw_levels',
  'euler_step',
  'finest_step_index',
  'group_size',
  'lambda_returns',
  'load_lpips',
  'mse',
  'multi_token_rewards',
  'multi_token_targets',
  'patch_mask',
  'pmpo_loss',
  'pmpo_means',
  'prediction_losses',
  'prepare_shortcut',
  'ramp',
  'rms_init',
  'rms_normalize',
  'sample',
  'sampling_levels',
  'shortcut_loss',
  'symexp',
  'symlog',
  'vector_mse',
]
