"""Every setting of a run, as frozen plain data.

A config rejects a wrong value where it is made, with a sentence that names
the field, the value and the remedy. It is saved as JSON beside every
checkpoint and is enough to rebuild the models.
"""

from dreamer4_jax.config.checks import require
from dreamer4_jax.config.models import (
  FREE_FIELDS,
  ActionComponent,
  AgentConfig,
  Backend,
  Dtype,
  DynamicsConfig,
  Remat,
  TokenizerConfig,
  TransformerConfig,
  VectorComponent,
)
from dreamer4_jax.config.phases import (
  PHASES,
  DynamicsPhase,
  FinetunePhase,
  ImaginationPhase,
  OptimizerConfig,
  PhaseConfig,
  Phases,
  TokenizerPhase,
)
from dreamer4_jax.config.run import (
  BASELINES,
  Config,
  DataConfig,
  EnvConfig,
  EvalConfig,
  MeshConfig,
  SourceConfig,
)

__all__ = [
  'BASELINES',
  'FREE_FIELDS',
  'PHASES',
  'ActionComponent',
  'AgentConfig',
  'Backend',
  'Config',
  'DataConfig',
  'Dtype',
  'DynamicsConfig',
  'DynamicsPhase',
  'EnvConfig',
  'EvalConfig',
  'FinetunePhase',
  'ImaginationPhase',
  'MeshConfig',
  'OptimizerConfig',
  'PhaseConfig',
  'Phases',
  'Remat',
  'SourceConfig',
  'TokenizerConfig',
  'TokenizerPhase',
  'TransformerConfig',
  'VectorComponent',
  'require',
]
