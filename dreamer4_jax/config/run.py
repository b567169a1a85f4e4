"""A whole run: models, phases, data, environment, evaluation, mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

import msgspec

from dreamer4_jax.checks import at_least, require, shares
from dreamer4_jax.config.models import (
  ActionComponent,
  AgentConfig,
  DynamicsConfig,
  TokenizerConfig,
  VectorComponent,
)
from dreamer4_jax.config.phases import (
  PHASES,
  ForcingConfig,
  OptimizerConfig,
  Phases,
)
from dreamer4_jax.nn.config import ComputeConfig

FORMAT = 2
"""Format number of `config.json`; files without one are of format 1."""
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
  """Hours at the dataset's start whose actions are used; none uses all."""
  labeled_where: tuple[str, ...] = ()
  """Actions are used only in episodes whose attributes fulfil all of these,
  for example noise<=0.5 or world=overworld."""

  def __post_init__(self):
    shares(self, 'labeled_share')
    require(
      0 < self.weight < math.inf,
      'SourceConfig.weight',
      self.weight,
      'must be positive; leave the dataset out instead',
    )
    require(
      self.labeled_hours is None or self.labeled_hours >= 0,
      'SourceConfig.labeled_hours',
      self.labeled_hours,
      'must be at least 0, or none',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """The datasets, and how clips are drawn from them."""

  sources: tuple[SourceConfig, ...] = (SourceConfig(),)
  """Datasets, with or without actions; evaluation is on the first."""
  splits: tuple[str, str] = ('train', 'test')
  """Split of all datasets to train on, and held-out split of the first."""
  long_every: int = 4
  """In phases with two clip lengths, every n-th step takes long clips."""
  long_only_share: float = 0.0
  """Share of the steps, at the end of such phases, that all take long clips."""
  separate_images: float = 0.0
  """Share of clips whose frames are treated as separate images; dreams never
  start from those."""
  novel_share: float = 0.0
  """Share of the clips without a task that show something rare. The datasets
  must have been measured with `dreamer4 data novelty`."""
  switch_tasks: float = 0.5
  """Share of clips whose task label advances at each event, as prompts do;
  the others keep one task throughout."""
  task_vectors: str = ''
  """NumPy file (.npy) with a vector for each task, in id order; for
  agent.task_vector_size."""
  threads: int = 1
  """Threads that make batches, for each clip length."""

  def __post_init__(self):
    at_least(1, self, 'long_every', 'threads')
    shares(self, 'long_only_share', 'separate_images', 'novel_share')
    shares(self, 'switch_tasks')
    require(
      len(self.sources) > 0,
      'DataConfig.sources',
      self.sources,
      'needs at least one dataset',
    )

  @property
  def path(self) -> str:
    """Directory of the first dataset."""
    return self.sources[0].path

  @property
  def train_split(self) -> str:
    """Split to train on."""
    return self.splits[0]

  @property
  def eval_split(self) -> str:
    """Held-out split."""
    return self.splits[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """Held-out video metrics and closed-loop evaluation."""

  clips: int = 64
  """Held-out clips for the figures of dreams; those of the tokenizer use eight
  times as many frames, if there are that many."""
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
  """Episodes per policy in which it dreams, and its dreams are replayed in the
  real environment; 0 skips this."""

  def __post_init__(self):
    at_least(1, self, 'clips', 'context_frames', 'episodes')
    at_least(0, self, 'seed', 'reality_episodes')
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
class SavingConfig:
  """What a run writes, and how often."""

  log_every: int = 20
  """Steps between metric lines."""
  checkpoint_every: int = 200
  """Steps between checkpoints."""
  keep_last: int = 2
  """Latest checkpoints kept; if the last is damaged, the one before is used."""
  best_metric: str = ''
  """What makes a checkpoint good: a metric to be low, such as dynamics/flow, or
  high, such as max:tokenizer/psnr. The best checkpoint of the phase that has it
  is kept as well, and is what later phases, evaluation and export take; running
  means over about checkpoint_every steps are compared. Empty takes the last."""

  def __post_init__(self):
    at_least(1, self, 'log_every', 'checkpoint_every', 'keep_last')
    mode, _, metric = self.best_metric.rpartition(':')
    phase, _, name = metric.rpartition('/')
    of_phase = phase in PHASES and name != ''
    good = mode in ('', 'min', 'max') and (metric == 'loss' or of_phase)
    require(
      good or self.best_metric == '',
      'SavingConfig.best_metric',
      self.best_metric,
      'must be loss or a metric of a phase, such as dynamics/flow or '
      'max:tokenizer/psnr',
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

  seed: int = 0
  """Seed of every random choice of the run."""
  actions: tuple[ActionComponent, ...] = (
    ActionComponent(name='action', kind='categorical', size=2),
  )
  """The action space."""
  vectors: tuple[VectorComponent, ...] = ()
  """What is observed along with the image, each a token of the tokenizer."""
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
  compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
  """How tokenizer and dynamics are computed."""
  phases: Phases = dataclasses.field(default_factory=Phases)
  """Training phases."""
  forcing: ForcingConfig = dataclasses.field(default_factory=ForcingConfig)
  """Shortcut forcing, in dynamics and finetuning."""
  optimizer: OptimizerConfig = dataclasses.field(
    default_factory=OptimizerConfig
  )
  """Optimizer of all phases."""
  accumulate: int = 1
  """Parts of every batch that are processed one after another, to save memory.
  The gradient is that of the whole batch; where a loss has several terms, a
  forward pass over all parts comes first."""
  saving: SavingConfig = SavingConfig()
  """Logs and checkpoints."""
  data: DataConfig = DataConfig()
  """Datasets."""
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
    require(len(self.tasks) > 0, 'tasks', self.tasks, 'needs at least one')
    values = math.prod(self.tokenizer.latent_shape)
    require(
      values % self.dynamics.num_spatial_tokens == 0,
      'dynamics.num_spatial_tokens',
      self.dynamics.num_spatial_tokens,
      'must divide tokenizer.num_latents * tokenizer.bottleneck_dim = '
      f'{values}',
    )
    at_least(1, self, 'accumulate')
    for name in PHASES:
      rows = getattr(self.phases, name).batch_size
      require(
        rows % self.accumulate == 0,
        'accumulate',
        self.accumulate,
        f'must divide phases.{name}.batch_size = {rows}',
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
  def num_tasks(self) -> int:
    """Number of task ids."""
    return len(self.tasks)

  @property
  def baselines(self) -> tuple[str, ...]:
    """Names of the clones that have prompts of their own, often none.

    The id of a prompt is `num_tasks` plus the index of its name here.
    """
    return BASELINES if self.phases.finetune.baseline_share > 0 else ()

  def check_context(self, phases: Sequence[str]) -> None:
    """Checks that no part will see more frames than it trains on.

    The tokenizer trains in a phase of its own, and the dynamics on latents of
    as many frames as its clips have. Heads read states of the dynamics: those
    of finetuning on its clips, those of imagination on contexts and dreams, up
    to the frame of the last action.

    Called when training begins, since presets enter a config piece by piece.

    Args:
      phases: those that will be trained.

    Raises:
      ValueError: a context is longer than the longest clips of a phase that
        trains what reads it.
    """
    for name in phases:
      phase = getattr(self.phases, name)
      model = 'tokenizer' if name == 'tokenizer' else 'dynamics'
      trained, dreamt = phase.longest_clip, ''
      # The last frame of a dream is reached but not acted on. A world model
      # that trains as well does so on clips alone.
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
        f'has ever looked; lower it, or raise phases.{name}.clip_lengths',
      )

  def edit(self, fields: Mapping[str, Any]) -> Config:
    """Returns the config with some fields replaced.

    Args:
      fields: new values by dotted name, such as `dynamics.depth` or
        `data.sources.0.path`.

    Raises:
      ValueError: there is no such field, or the config refuses a value.
    """
    return _edited(self, {tuple(n.split('.')): v for n, v in fields.items()})

  def to_json(self) -> str:
    """Returns the config as indented JSON, with its format number."""
    return json.dumps({'format': FORMAT, **dataclasses.asdict(self)}, indent=2)

  @classmethod
  def from_json(cls, text: str) -> Config:
    """Rebuilds a config.

    Raises:
      ValueError: a field is wrong, unknown, or of another format; the message
        names it.
    """
    plain = msgspec.json.decode(text)
    if not isinstance(plain, dict):
      raise ValueError(f'{text[:40]!r}: is no config, expected a JSON object')
    found = plain.pop('format', 1)
    if found != FORMAT:
      raise ValueError(
        f'format = {found!r}: the config was written by another version of '
        f'dreamer4_jax, and this one reads format {FORMAT}; use that version, '
        'or train again'
      )
    return cls.from_plain(plain)

  @classmethod
  def from_plain(cls, plain: Mapping[str, Any]) -> Config:
    """Rebuilds a config from dictionaries; raises as `from_json`."""
    config = msgspec.convert(plain, cls)
    _refuse_unknown(plain, dataclasses.asdict(config))
    return config


def _edited(
  group: Any, values: Mapping[tuple[str, ...], Any], name: str = ''
) -> Any:
  """Replaces all fields at once, since some values are valid only together.

  A value for a whole group is applied before those for its members.
  """
  values = dict(values)
  group = values.pop((), group)
  if not values:
    return group
  inside: dict[str, dict[tuple[str, ...], Any]] = {}
  for (head, *rest), value in values.items():
    inside.setdefault(head, {})[tuple(rest)] = value
  if isinstance(group, tuple):
    known = {str(i): member for i, member in enumerate(group)}
  elif dataclasses.is_dataclass(group):
    known = {f.name: getattr(group, f.name) for f in dataclasses.fields(group)}
  else:
    known = {}
  new = {}
  for head, own in inside.items():
    where = f'{name}.{head}' if name else head
    if head not in known:
      raise ValueError(f'{where}: no such field in {type(group).__name__}')
    new[head] = _edited(known[head], own, where)
  if isinstance(group, tuple):
    return tuple({**known, **new}.values())
  return dataclasses.replace(group, **new)


def _refuse_unknown(given: Any, known: Any, name: str = '') -> None:
  """Raises `ValueError` at a field that no config has."""
  if isinstance(given, dict) and isinstance(known, dict):
    for key, value in given.items():
      where = f'{name}.{key}' if name else key
      if key not in known:
        raise ValueError(f'{where}: no config has such a field; remove it')
      _refuse_unknown(value, known[key], where)
  elif isinstance(given, list) and isinstance(known, tuple):
    for i, pair in enumerate(zip(given, known, strict=True)):
      _refuse_unknown(*pair, f'{name}.{i}')
