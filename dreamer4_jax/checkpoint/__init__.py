"""Checkpoints: all that a run needs to resume, written together.

A phase directory holds `checkpoints/STEP/` with the train state, the position
of the data iterators, the config, and the version of the code. A checkpoint
appears under its name only when it is complete, so a kill or a full disk while
saving costs only the steps since the previous one. Nothing else uses Orbax.
"""

from dreamer4_jax.checkpoint import exported
from dreamer4_jax.checkpoint.best import Best
from dreamer4_jax.checkpoint.items import DamagedCheckpointError
from dreamer4_jax.checkpoint.loading import (
  check_run,
  latest_step,
  load_arrays,
  load_params,
  load_state_dict,
  trained_by,
)
from dreamer4_jax.checkpoint.manager import Checkpoints, Restored
from dreamer4_jax.checkpoint.version import code_version

__all__ = [
  'Best',
  'Checkpoints',
  'DamagedCheckpointError',
  'Restored',
  'check_run',
  'code_version',
  'exported',
  'latest_step',
  'load_arrays',
  'load_params',
  'load_state_dict',
  'trained_by',
]
