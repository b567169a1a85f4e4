"""Every setting of a run, as frozen plain data.

A config rejects a wrong value when it is made, with a sentence that names
the field, the value and the remedy. It is saved as JSON beside every
checkpoint and is enough to rebuild the models.
"""

from dreamer4_jax.checks import require
from dreamer4_jax.config.groups import (
  DataConfig,
  EnvConfig,
  EvalConfig,
  MeshConfig,
  SavingConfig,
  SourceConfig,
)
from dreamer4_jax.config.models import (
  ActionComponent,
  AgentConfig,
  DynamicsConfig,
  TokenizerConfig,
  VectorComponent,
)
from dreamer4_jax.config.phases import (
  PHASES,
  DynamicsPhase,
  FinetunePhase,
  ForcingConfig,
  ImaginationPhase,
  OptimizerConfig,
  PhaseConfig,
  Phases,
  TokenizerPhase,
)
from dreamer4_jax.config.run import BASELINES, Config, Stages, is_once
from dreamer4_jax.nn.config import (
  Backend,
  ComputeConfig,
  Dtype,
  Remat,
  TransformerConfig,
)

# Last: they depend on the names above.
from dreamer4_jax.config import experiments, presets, saved  # isort: skip

__all__ = [
  'BASELINES',
  'PHASES',
  'ActionComponent',
  'AgentConfig',
  'Backend',
  'ComputeConfig',
  'Config',
  'DataConfig',
  'Dtype',
  'DynamicsConfig',
  'DynamicsPhase',
  'EnvConfig',
  'EvalConfig',
  'FinetunePhase',
  'ForcingConfig',
  'ImaginationPhase',
  'MeshConfig',
  'OptimizerConfig',
  'PhaseConfig',
  'Phases',
  'Remat',
  'SavingConfig',
  'SourceConfig',
  'Stages',
  'TokenizerConfig',
  'TokenizerPhase',
  'TransformerConfig',
  'VectorComponent',
  'experiments',
  'is_once',
  'presets',
  'require',
  'saved',
]
