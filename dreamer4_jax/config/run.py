"""A whole run: models, phases, data, environment, evaluation, mesh."""

from __future__ import annotations

import dataclasses
import json

import msgspec

from dreamer4_jax.config.checks import at_least, require, shares
from dreamer4_jax.config.models import (
  ActionComponent,
  AgentConfig,
  DynamicsConfig,
  TokenizerConfig,
)
from dreamer4_jax.config.phases import Phases


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """The dataset and how clips are drawn from it."""

  path: str = ''
  """Directory of a TFDS array_record dataset."""
  train_split: str = 'train'
  """Split to train on."""
  eval_split: str = 'test'
  """Held-out split."""
  labeled_share: float = 1.0
  """Share of episodes whose actions are used; the rest is plain video."""
  switch_tasks: float = 0.5
  """Share of clips whose task label advances at each event, as prompts do;
  the others keep one task throughout."""

  def __post_init__(self):
    shares(self, 'labeled_share', 'switch_tasks')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """Held-out video metrics and closed-loop evaluation."""

  clips: int = 64
  """Held-out clips for PSNR."""
  context_frames: int = 8
  """Real frames before the open-loop prediction."""
  horizons: tuple[int, ...] = (4, 8, 16)
  """Predicted frames at which PSNR is reported."""
  episodes: int = 300
  """Closed-loop episodes per policy."""
  seed: int = 1_000_000
  """First seed of the evaluation episodes, shared by all policies."""

  def __post_init__(self):
    at_least(1, self, 'clips', 'context_frames', 'episodes')
    at_least(0, self, 'seed')
    require(
      len(self.horizons) > 0 and min(self.horizons) >= 1,
      'EvalConfig.horizons',
      self.horizons,
      'needs at least one, each at least 1',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Device mesh; -1 takes all devices that are left."""

  data: int = -1
  """Data-parallel devices."""
  fsdp: int = 1
  """Devices over which parameters are sharded as well."""
  tensor: int = 1
  """Tensor-parallel devices."""

  def __post_init__(self):
    sizes = (self.data, self.fsdp, self.tensor)
    require(
      all(s == -1 or s >= 1 for s in sizes) and sizes.count(-1) <= 1,
      'MeshConfig',
      sizes,
      'sizes must be positive, at most one is -1',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvConfig:
  """The environment that recorded the dataset, for evaluation."""

  name: str = ''
  """Adapter and level, for example 'navix:Navix-DoorKey-Random-6x6-v0'."""
  tile: int = 8
  """Pixels per tile side for grid worlds."""
  max_steps: int = 60
  """Time limit of an episode, in steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """One complete run."""

  name: str = 'run'
  """Name of the run."""
  seed: int = 0
  """Seed of every random choice of the run."""
  actions: tuple[ActionComponent, ...] = (
    ActionComponent(name='action', kind='categorical', size=2),
  )
  """The action space."""
  tasks: tuple[str, ...] = ('reward',)
  """Task names, in id order; also the order of the evaluation prompt."""
  tokenizer: TokenizerConfig = dataclasses.field(
    default_factory=TokenizerConfig
  )
  """Tokenizer model."""
  dynamics: DynamicsConfig = dataclasses.field(default_factory=DynamicsConfig)
  """Dynamics model."""
  agent: AgentConfig = dataclasses.field(default_factory=AgentConfig)
  """Agent token and heads."""
  phases: Phases = dataclasses.field(default_factory=Phases)
  """Training phases."""
  data: DataConfig = DataConfig()
  """Dataset."""
  env: EnvConfig = EnvConfig()
  """Environment."""
  eval: EvalConfig = EvalConfig()
  """Evaluation."""
  mesh: MeshConfig = MeshConfig()
  """Device mesh."""

  def __post_init__(self):
    names = [c.name for c in self.actions]
    require(
      len(names) > 0 and len(set(names)) == len(names),
      'actions',
      names,
      'needs at least one component, with distinct names',
    )
    values = self.tokenizer.num_latents * self.tokenizer.bottleneck_dim
    require(
      values % self.dynamics.num_spatial_tokens == 0,
      'dynamics.num_spatial_tokens',
      self.dynamics.num_spatial_tokens,
      'must divide tokenizer.num_latents * tokenizer.bottleneck_dim = '
      f'{values}',
    )
    require(
      self.agent.num_tasks == len(self.tasks),
      'agent.num_tasks',
      self.agent.num_tasks,
      f'must equal the number of tasks, {len(self.tasks)}',
    )
    k = self.phases.imagination.sampling_steps
    require(
      k <= self.dynamics.max_steps,
      'phases.imagination.sampling_steps',
      k,
      f'must not exceed dynamics.max_steps = {self.dynamics.max_steps}',
    )

  def to_json(self) -> str:
    """Returns the config as indented JSON."""
    return json.dumps(dataclasses.asdict(self), indent=2)

  @classmethod
  def from_json(cls, text: str) -> Config:
    """Rebuilds a config; raises `ValueError` naming the field at fault."""
    return msgspec.json.decode(text, type=cls)
