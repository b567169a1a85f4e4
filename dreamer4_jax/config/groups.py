"""What surrounds models and phases: data, evaluation, saving, devices, game."""

from __future__ import annotations

import dataclasses
import math

from dreamer4_jax.checks import at_least, require, shares
from dreamer4_jax.config.phases import PHASES


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
  for example noise<=0.5 or world=overworld; episode<100 stands for the first
  hundred."""

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
  lead: int = 0
  """Half of the clips and contexts that are about a task end up to this many
  frames before its event, and do not show it. At 0, all show the event."""
  task_vectors: str = ''
  """NumPy file (.npy) with a vector for each task, in id order; for
  agent.task_vector_size."""
  threads: int = 1
  """Threads that make batches, for each clip length."""

  def __post_init__(self):
    at_least(1, self, 'long_every', 'threads')
    at_least(0, self, 'lead')
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

  def __post_init__(self):
    at_least(1, self, 'clips', 'context_frames', 'episodes')
    at_least(0, self, 'seed')
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
  best_metric: str = ''
  """What makes a checkpoint good: a metric to be low, such as dynamics/flow, or
  high, such as max:tokenizer/psnr. The best checkpoint of the phase that has it
  is kept as well, and is what later phases, evaluation and export take; running
  means over about checkpoint_every steps are compared. Empty takes the last."""

  def __post_init__(self):
    at_least(1, self, 'log_every', 'checkpoint_every')
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
  image_size: tuple[int, int] | None = None
  """Height and width of frames, for simulators and grid worlds; none takes
  what they show, of a grid 8 pixels a tile. Craftax has a size of its own."""
  max_steps: int = 60
  """Time limit of an episode, in steps."""
