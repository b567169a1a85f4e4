"""A whole run: its groups, what they ask of each other, JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

import msgspec

from dreamer4_jax.checks import at_least, require
from dreamer4_jax.config.groups import (
  DataConfig,
  EnvConfig,
  EvalConfig,
  MeshConfig,
  SavingConfig,
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
  ForcingConfig,
  OptimizerConfig,
  Phases,
)
from dreamer4_jax.nn.config import ComputeConfig

FORMAT = 2
"""Format number of `config.json`; files without one are of format 1."""
BASELINES = ('all', 'best')
"""Clones of all recordings, and of the better half of them."""

_RETIRED = ('env.tile', 'saving.keep_last', 'eval.reality_episodes')
"""Fields of older configs; frames of a grid have the size of the run's now."""
Stages = tuple[tuple[int, int], ...]
"""A prompt: ids of tasks, and how many events each needs."""


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
  """Task names, in id order: the dataset's, some or all, in any order."""
  prompt: tuple[str, ...] = ()
  """What an agent pursues in an episode, one after another: TASK, or TASK:COUNT
  for several events. The last lasts to the end. Empty is each task once."""
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
  saving: SavingConfig = dataclasses.field(default_factory=SavingConfig)
  """Logs and checkpoints."""
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  """Datasets."""
  env: EnvConfig = dataclasses.field(default_factory=EnvConfig)
  """Environment."""
  eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
  """Evaluation."""
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
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
    require(
      len(set(self.tasks)) == len(self.tasks),
      'tasks',
      self.tasks,
      'must have distinct names',
    )
    self.stages()
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

  def stages(self, prompt: Sequence[str] | None = None) -> Stages:
    """Returns the prompt as pairs of task id and count.

    Args:
      prompt: as the field; by default that of the config.

    Raises:
      ValueError: a task is unknown, or a count is no positive number.
    """
    stages = []
    for stage in (self.prompt if prompt is None else prompt) or self.tasks:
      name, separator, count = stage.rpartition(':')
      if not separator or stage in self.tasks:
        name, count = stage, ''
      require(
        name in self.tasks,
        'prompt',
        stage,
        f'must begin with one of the tasks {", ".join(self.tasks)}',
      )
      require(
        count == '' or (count.isdecimal() and int(count) > 0),
        'prompt',
        stage,
        'must be TASK or TASK:COUNT, with a positive count',
      )
      stages.append((self.tasks.index(name), int(count or 1)))
    return tuple(stages)

  @property
  def milestones(self) -> bool:
    """Whether the prompt asks for no task twice, nor for several events."""
    return is_once(self.stages())

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
    if plain.get('env', {}).get('tile', 8) != 8:
      shape = config.tokenizer.frame_shape
      config = config.edit({'env.image_size': shape[:2]})
    _refuse_unknown(plain, dataclasses.asdict(config))
    return config


def is_once(stages: Sequence[tuple[int, int]]) -> bool:
  """Whether stages ask for no task twice, nor for several events."""
  tasks, counts = zip(*stages, strict=True)
  return len(set(tasks)) == len(tasks) and set(counts) == {1}


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
  """Raises `ValueError` at a field that no config has, nor had."""
  if isinstance(given, dict) and isinstance(known, dict):
    for key, value in given.items():
      where = f'{name}.{key}' if name else key
      if where in _RETIRED:
        continue
      if key not in known:
        raise ValueError(f'{where}: no config has such a field; remove it')
      _refuse_unknown(value, known[key], where)
  elif isinstance(given, list) and isinstance(known, tuple):
    for i, pair in enumerate(zip(given, known, strict=True)):
      _refuse_unknown(*pair, f'{name}.{i}')
