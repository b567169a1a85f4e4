"""A whole run: models, phases, data, environment, evaluation, mesh."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import math

import msgspec

from dreamer4_jax.checks import at_least, require, shares
from dreamer4_jax.config.models import (
  ActionComponent,
  AgentConfig,
  DynamicsConfig,
  TokenizerConfig,
  VectorComponent,
)
from dreamer4_jax.config.phases import Phases

BASELINES = ('all', 'best')
"""Clones of all recordings, and of the better half of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
  """One dataset, and which of its actions are used."""

  path: str = ''
  """Directory of a TFDS array_record dataset."""
  latents: str = ''
  """Directory of the same dataset, pre-tokenised, for the phases after the
  tokenizer's; empty encodes frames in every step."""
  weight: float = 1.0
  """Share of the clips, relative to the other datasets'."""
  labeled_share: float = 1.0
  """Share of episodes whose actions are used; the rest is plain video."""
  labeled_hours: float | None = None
  """Actions are used in the first hours of the dataset only; none uses all."""
  labeled_where: tuple[str, ...] = ()
  """Actions are used only in episodes whose attributes fulfil all of these,
  for example noise<=0.5 or world=overworld."""

  def __post_init__(self):
    shares(self, 'labeled_share')
    kind = type(self).__name__
    require(
      0 < self.weight < math.inf,
      f'{kind}.weight',
      self.weight,
      'must be positive; leave the dataset out instead',
    )
    require(
      self.labeled_hours is None or self.labeled_hours >= 0,
      f'{kind}.labeled_hours',
      self.labeled_hours,
      'must be at least 0, or none',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(SourceConfig):
  """The dataset, others mixed in, and how clips are drawn from them."""

  more: tuple[SourceConfig, ...] = ()
  """Other datasets to mix in, with or without actions."""
  train_split: str = 'train'
  """Split to train on."""
  eval_split: str = 'test'
  """Held-out split, of the first dataset."""
  switch_tasks: float = 0.5
  """Share of clips whose task label advances at each event, as prompts do;
  the others keep one task throughout."""
  task_vectors: str = ''
  """File of NumPy, .npy, with a vector for each task, in id order; for
  agent.task_vector_size."""
  threads: int = 1
  """Threads that make batches, for each clip length."""
  ahead: int = 4
  """Batches that may wait for the device, for each clip length."""

  def __post_init__(self):
    super().__post_init__()
    shares(self, 'switch_tasks')
    at_least(1, self, 'threads', 'ahead')

  @property
  def datasets(self) -> tuple[SourceConfig, ...]:
    """All datasets, the first one first."""
    return (self, *self.more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """Held-out video metrics and closed-loop evaluation."""

  frames: int = 4096
  """Held-out frames for the tokenizer's figures, rounded up to batches; no
  more than there are."""
  clips: int = 64
  """Held-out clips for the figures of dreams."""
  context_frames: int = 8
  """Real frames before the open-loop prediction."""
  horizons: tuple[int, ...] = (1, 4, 8, 16)
  """Predicted frames at which dreams are measured, beside the first."""
  episodes: int = 300
  """Closed-loop episodes per policy."""
  seed: int = 1_000_000
  """First seed of the evaluation episodes, shared by all policies."""
  temperatures: tuple[float, ...] = (1.0, 0.5, 0.25, 0.0)
  """Temperatures of cloned and imagined policies; 0 is greedy, 1 is needed."""
  reality_episodes: int = 128
  """Episodes per policy in which it dreams, and its dreams are played in the
  real environment; 0 leaves that out."""
  reality_starts: tuple[int, ...] = (4, 8, 12)
  """Frames of these episodes at which dreams begin, 0 being the first; those
  beyond the time limit stand for the last frame before it."""

  def __post_init__(self):
    at_least(1, self, 'frames', 'clips', 'context_frames', 'episodes')
    at_least(0, self, 'seed', 'reality_episodes')
    require(
      len(self.reality_starts) > 0 and min(self.reality_starts) >= 0,
      'EvalConfig.reality_starts',
      self.reality_starts,
      'needs at least one, each at least 0; to leave the dreams out, set '
      'reality_episodes = 0',
    )
    require(
      len(self.horizons) > 0 and min(self.horizons) >= 1,
      'EvalConfig.horizons',
      self.horizons,
      'needs at least one, each at least 1',
    )
    t = self.temperatures
    require(
      1.0 in t and all(0 <= x < math.inf for x in t) and len(set(t)) == len(t),
      'EvalConfig.temperatures',
      t,
      'must have 1, at which agents train and are compared, and no other twice '
      'or below 0',
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
  image_size: tuple[int, int] | None = None
  """Height and width to which simulators' frames are brought; none keeps
  them. The other environments have sizes of their own."""
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
  vectors: tuple[VectorComponent, ...] = ()
  """What is seen beside the image, each a token of the tokenizer."""
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
    names = [c.name for c in self.vectors]
    require(
      len(set(names)) == len(names),
      'vectors',
      names,
      'must have distinct names',
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
    require(
      (self.agent.task_vector_size > 0) == (self.data.task_vectors != ''),
      'agent.task_vector_size',
      self.agent.task_vector_size,
      f'goes with data.task_vectors = {self.data.task_vectors!r}; set both, or '
      'neither for tasks by id',
    )
    require(
      not (self.baselines and self.agent.task_vector_size),
      'phases.finetune.baseline_share',
      self.phases.finetune.baseline_share,
      'needs tasks by id, since baselines have prompts of their own; set it to '
      '0, or agent.task_vector_size to 0',
    )
    k = self.phases.imagination.sampling_steps
    require(
      k <= self.dynamics.max_steps,
      'phases.imagination.sampling_steps',
      k,
      f'must not exceed dynamics.max_steps = {self.dynamics.max_steps}',
    )

  @property
  def baselines(self) -> tuple[str, ...]:
    """Names of the clones that have prompts of their own, often none.

    The id of a prompt is `agent.num_tasks` plus the number of the name here.
    """
    return BASELINES if self.phases.finetune.baseline_share > 0 else ()

  def check_context(self, phases: Sequence[str]) -> None:
    """Checks that no part is to see more frames than it trains on.

    The tokenizer trains in a phase of its own, and the dynamics on latents of
    as many frames as its clips have. Heads read states of the dynamics: those
    of finetuning on its clips, those of imagination on contexts and dreams, up
    to the frame of the last action.

    Called where training begins: presets are put into a config by parts.

    Args:
      phases: those that are to be trained.

    Raises:
      ValueError: a ring is longer than the longest clips of a phase that trains
        what reads it.
    """
    for name in phases:
      phase = getattr(self.phases, name)
      model = 'tokenizer' if name == 'tokenizer' else 'dynamics'
      trained, dreamt = max(phase.clip_length, phase.long_clip_length), ''
      # The last frame of a dream is only arrived at. A world model that trains
      # along does so on clips alone.
      if name == 'imagination' and not phase.world_rate:
        trained += phase.horizon - 1
        dreamt = ' with the horizon'
      context = getattr(self, model).context_length
      require(
        context <= trained,
        f'{model}.context_length',
        context,
        f'must not exceed the longest clips of the phase {name}{dreamt}, '
        f'{trained} frames: at what lies further back, nothing that it trains '
        f'has ever looked; lower it, or raise phases.{name}.clip_length or '
        'long_clip_length',
      )

  def to_json(self) -> str:
    """Returns the config as indented JSON."""
    return json.dumps(dataclasses.asdict(self), indent=2)

  @classmethod
  def from_json(cls, text: str) -> Config:
    """Rebuilds a config; raises `ValueError` naming the field at fault."""
    return msgspec.json.decode(text, type=cls)

  @classmethod
  def from_saved(cls, text: str, where: str) -> Config:
    """Rebuilds the config of a trained run, old ones too.

    Args:
      text: JSON.
      where: it was read.

    Raises:
      ValueError: as `from_json`; or its tokenizer learned with grey padding,
        which came before `grid_rows`.
    """
    config, old = cls.from_json(text), json.loads(text).get('tokenizer', {})
    sides = config.tokenizer.image_height, config.tokenizer.image_width
    p = config.tokenizer.patch_size
    if 'grid_rows' not in old and any(side % p for side in sides):
      raise ValueError(
        f'tokenizer.image_height, image_width = {sides}: the tokenizer in '
        f'{where} learned with grey padding to multiples of {p}, which is '
        'black now; train it again, or use the version that made it'
      )
    return config
