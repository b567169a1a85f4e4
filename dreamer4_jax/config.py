"""Every setting of a run, as frozen plain data.

A config rejects a wrong value where it is made, with a sentence that names
the field, the value and the remedy. It is saved as JSON beside every
checkpoint and is enough to rebuild the models.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import msgspec

Dtype = Literal['float32', 'bfloat16']
PHASES = ('tokenizer', 'dynamics', 'finetune', 'imagination')


def require(ok: bool, field: str, value: Any, remedy: str) -> None:
  """Raises `ValueError` with a full sentence unless `ok`."""
  if not ok:
    raise ValueError(f'{field} = {value!r}: {remedy}')


def _is_power_of_two(n: int) -> bool:
  return n > 0 and n & (n - 1) == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionComponent:
  """One named part of an action."""

  name: str
  """Key of this component in action dictionaries."""
  kind: Literal['continuous', 'categorical', 'binary']
  """Vector of reals, one of n classes, or vector of bits."""
  size: int
  """Dimensions, classes or bits."""
  low: float = -1.0
  """Smallest value of a continuous component."""
  high: float = 1.0
  """Largest value of a continuous component."""
  bins: int = 15
  """Classes a dimension in the discretised policy of a continuous component."""

  def __post_init__(self):
    label = f'actions[{self.name}]'
    least = 2 if self.kind == 'categorical' else 1
    require(
      self.size >= least,
      f'{label}.size',
      self.size,
      f'must be at least {least} for a {self.kind} component',
    )
    require(
      self.low < self.high,
      f'{label}.low',
      self.low,
      f'must be below high = {self.high}',
    )
    require(self.bins >= 2, f'{label}.bins', self.bins, 'must be at least 2')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
  """Efficient space/time transformer; derived from the model configs."""

  width: int
  depth: int
  num_heads: int
  num_kv_heads: int
  mlp_hidden: int
  context_length: int
  soft_cap: float
  rope_base: float
  remat: bool
  dtype: Dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stack:
  """Fields that every transformer of the project has."""

  width: int = 128
  """Model width D."""
  num_heads: int = 4
  """Query heads."""
  num_kv_heads: int = 4
  """Key/value heads (grouped-query attention); divides num_heads."""
  mlp_hidden: int = 384
  """Hidden width of the SwiGLU MLP."""
  context_length: int = 16
  """Frames a time layer sees, the current one included; size of the ring."""
  soft_cap: float = 50.0
  """Attention logits are cap * tanh(logits / cap)."""
  rope_base: float = 10_000.0
  """Longest wavelength base of the rotary position embedding."""
  remat: bool = False
  """Recompute activations of each period in the backward pass."""
  dtype: Dtype = 'float32'
  """Compute dtype; parameters, softmax, norms and losses stay float32."""

  def __post_init__(self):
    room = type(self).__name__
    for name in (
      'width',
      'num_heads',
      'num_kv_heads',
      'mlp_hidden',
      'context_length',
    ):
      value = getattr(self, name)
      require(value >= 1, f'{room}.{name}', value, 'must be at least 1')
    require(
      self.width % (4 * self.num_heads) == 0,
      f'{room}.width',
      self.width,
      f'must be divisible by 4 * num_heads = '
      f'{4 * self.num_heads}, since axial RoPE splits each head in '
      'quarters',
    )
    require(
      self.num_heads % self.num_kv_heads == 0,
      f'{room}.num_kv_heads',
      self.num_kv_heads,
      f'must divide num_heads = {self.num_heads}',
    )
    require(
      self.soft_cap > 0,
      f'{room}.soft_cap',
      self.soft_cap,
      'must be positive; 50 is usual',
    )

  def stack(self, depth: int) -> TransformerConfig:
    """Returns the transformer of this width with `depth` layers."""
    names = [f.name for f in dataclasses.fields(TransformerConfig)]
    return TransformerConfig(
      depth=depth, **{n: getattr(self, n) for n in names if n != 'depth'}
    )


def _require_depth(field: str, depth: int) -> None:
  require(
    depth >= 4 and depth % 4 == 0,
    field,
    depth,
    'must be a positive multiple of 4 (space, space, space, time)',
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig(_Stack):
  """Causal tokenizer (section 3.1 of the paper)."""

  image_height: int = 64
  """Frame height in pixels."""
  image_width: int = 64
  """Frame width in pixels."""
  channels: int = 3
  """Colour channels."""
  patch_size: int = 16
  """Patch side in pixels; frames are zero-padded to a multiple."""
  num_latents: int = 16
  """Latent tokens per frame, L."""
  bottleneck_dim: int = 16
  """Channels of a latent token."""
  encoder_depth: int = 4
  """Encoder layers, a multiple of 4."""
  decoder_depth: int = 4
  """Decoder layers, a multiple of 4."""

  def __post_init__(self):
    super().__post_init__()
    for name in (
      'image_height',
      'image_width',
      'channels',
      'patch_size',
      'num_latents',
      'bottleneck_dim',
    ):
      value = getattr(self, name)
      require(
        value >= 1, f'TokenizerConfig.{name}', value, 'must be at least 1'
      )
    _require_depth('TokenizerConfig.encoder_depth', self.encoder_depth)
    _require_depth('TokenizerConfig.decoder_depth', self.decoder_depth)

  @property
  def grid(self) -> tuple[int, int]:
    """Patch rows and columns after padding."""
    p = self.patch_size
    return -(-self.image_height // p), -(-self.image_width // p)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicsConfig(_Stack):
  """Interactive dynamics (section 3.2 of the paper)."""

  depth: int = 8
  """Layers, a multiple of 4."""
  num_spatial_tokens: int = 16
  """Tokens a frame's latents are packed into."""
  num_action_tokens: int = 1
  """Tokens that carry the previous action."""
  num_registers: int = 2
  """Learned register tokens per frame."""
  max_steps: int = 64
  """K_max, the finest sampling grid; a power of two."""
  context_signal: float = 0.9
  """Signal level of past frames while sampling, snapped to the grid."""

  def __post_init__(self):
    super().__post_init__()
    _require_depth('DynamicsConfig.depth', self.depth)
    require(
      self.num_spatial_tokens >= 1,
      'DynamicsConfig.num_spatial_tokens',
      self.num_spatial_tokens,
      'must be at least 1',
    )
    require(
      self.num_action_tokens >= 1,
      'DynamicsConfig.num_action_tokens',
      self.num_action_tokens,
      'must be at least 1',
    )
    require(
      self.num_registers >= 0,
      'DynamicsConfig.num_registers',
      self.num_registers,
      'must not be negative',
    )
    require(
      _is_power_of_two(self.max_steps),
      'DynamicsConfig.max_steps',
      self.max_steps,
      'must be a power of two, 64 by default',
    )
    require(
      0 < self.context_signal < 1,
      'DynamicsConfig.context_signal',
      self.context_signal,
      'must lie strictly between 0 and 1',
    )

  @property
  def context_index(self) -> int:
    """Signal index of past frames: `context_signal` on the grid, below 1."""
    index = round(self.context_signal * self.max_steps)
    return min(index, self.max_steps - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentConfig:
  """Task embedding and heads (section 3.3 of the paper)."""

  num_tasks: int = 1
  """Number of task ids."""
  hidden: int = 128
  """Width of the MLP heads."""
  layers: int = 2
  """Hidden layers of the MLP heads."""
  distances: int = 8
  """Multi-token prediction: steps n = 0..distances-1 predicted at once."""
  bins: int = 255
  """Bins of the symexp two-hot distribution; odd."""
  bin_limit: float = 20.0
  """Bins are symexp(linspace(-limit, limit))."""

  def __post_init__(self):
    for name in ('num_tasks', 'hidden', 'layers', 'distances'):
      value = getattr(self, name)
      require(value >= 1, f'AgentConfig.{name}', value, 'must be at least 1')
    require(
      self.bins >= 3 and self.bins % 2 == 1,
      'AgentConfig.bins',
      self.bins,
      'must be odd and at least 3, so that 0 is a bin',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """Optimizer and learning-rate schedule (warm-up, constant, decay)."""

  name: Literal['adamw', 'muon'] = 'adamw'
  """Update rule."""
  learning_rate: float = 1e-3
  """Peak learning rate."""
  warmup_steps: int = 50
  """Steps of linear warm-up."""
  decay_share: float = 0.3
  """Last share of the phase's steps, with linear decay."""
  final_scale: float = 0.1
  """Learning rate at the end, relative to the peak."""
  weight_decay: float = 0.0
  """Decoupled weight decay."""
  clip_norm: float = 1.0
  """Global gradient norm is clipped to this."""
  b1: float = 0.9
  """Decay of the first moment."""
  b2: float = 0.99
  """Decay of the second moment."""
  ema_decay: float = 0.99
  """Decay of the parameter average used by later phases; 0 turns it off."""

  def __post_init__(self):
    require(
      self.learning_rate > 0,
      'OptimizerConfig.learning_rate',
      self.learning_rate,
      'must be positive',
    )
    require(
      0 <= self.ema_decay < 1,
      'OptimizerConfig.ema_decay',
      self.ema_decay,
      'must lie in [0, 1)',
    )
    require(
      0 <= self.decay_share <= 1,
      'OptimizerConfig.decay_share',
      self.decay_share,
      'must lie in [0, 1]',
    )
    require(
      self.clip_norm > 0,
      'OptimizerConfig.clip_norm',
      self.clip_norm,
      'must be positive',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig:
  """What every training phase has."""

  steps: int = 1000
  """Train steps."""
  batch_size: int = 16
  """Clips in a global batch."""
  clip_length: int = 16
  """Frames of a short clip, T1."""
  long_clip_length: int = 0
  """Frames of a long clip, T2; 0 trains on short clips only."""
  long_every: int = 4
  """Every n-th step takes a long clip."""
  separate_images: float = 0.0
  """Share of clips whose frames are treated as separate images."""
  log_every: int = 20
  """Steps between metric lines."""
  checkpoint_every: int = 200
  """Steps between checkpoints."""
  optimizer: OptimizerConfig = OptimizerConfig()
  """Optimizer of this phase."""

  def __post_init__(self):
    room = type(self).__name__
    for name in (
      'steps',
      'batch_size',
      'clip_length',
      'long_every',
      'log_every',
      'checkpoint_every',
    ):
      value = getattr(self, name)
      require(value >= 1, f'{room}.{name}', value, 'must be at least 1')
    require(
      self.long_clip_length == 0 or self.long_clip_length > self.clip_length,
      f'{room}.long_clip_length',
      self.long_clip_length,
      f'must exceed clip_length = {self.clip_length}, or be 0',
    )
    require(
      0 <= self.separate_images <= 1,
      f'{room}.separate_images',
      self.separate_images,
      'must lie in [0, 1]',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerPhase(PhaseConfig):
  """Training of the tokenizer."""

  max_mask_ratio: float = 0.9
  """Each image masks its patches with probability p ~ U(0, this)."""
  lpips_weight: float = 0.2
  """Weight of the LPIPS term; off while lpips_path is empty."""
  lpips_path: str = ''
  """Local file with LPIPS weights; empty turns the term off."""

  def __post_init__(self):
    super().__post_init__()
    require(
      0 <= self.max_mask_ratio < 1,
      'TokenizerPhase.max_mask_ratio',
      self.max_mask_ratio,
      'must lie in [0, 1); the paper uses 0.9',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicsPhase(PhaseConfig):
  """Training of the dynamics by shortcut forcing."""

  bootstrap_rows: float = 0.25
  """Share of the batch's rows that train coarse steps; 1/n for whole n."""
  bootstrap_start: int = 0
  """First step that bootstraps; before it the extra passes do not run."""
  bootstrap_every: int = 1
  """Bootstrap on every n-th step only (for one row per device)."""

  def __post_init__(self):
    super().__post_init__()
    rows = self.bootstrap_rows
    room = type(self).__name__
    require(
      0 < rows <= 1 and abs(1 / rows - round(1 / rows)) < 1e-6,
      f'{room}.bootstrap_rows',
      rows,
      'must be 1/n for a whole number n, for example 0.25',
    )
    require(
      self.batch_size % round(1 / rows) == 0,
      f'{room}.batch_size',
      self.batch_size,
      f'must be divisible by 1 / bootstrap_rows = {round(1 / rows)}',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetunePhase(DynamicsPhase):
  """Agent finetuning: dynamics loss, behaviour cloning, reward model."""

  relevant_share: float = 0.5
  """Share of clips in which a task is achieved."""
  dynamics_weight: float = 1.0
  """Weight of the dynamics loss, on uniform clips."""
  policy_weight: float = 1.0
  """Weight of behaviour cloning, on relevant clips."""
  reward_weight: float = 1.0
  """Weight of the reward likelihood, on all clips."""
  cont_weight: float = 1.0
  """Weight of the continuation likelihood, on all clips."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImaginationPhase(PhaseConfig):
  """Reinforcement learning inside the world model."""

  horizon: int = 15
  """Imagined frames per rollout."""
  sampling_steps: int = 4
  """Denoising steps K per imagined frame; a power of two."""
  gamma: float = 0.997
  """Discount."""
  lam: float = 0.95
  """Lambda of the lambda-returns."""
  alpha: float = 0.5
  """PMPO: weight of the positive set; 1 - alpha for the negative set."""
  beta: float = 0.3
  """PMPO: weight of the KL to the behaviour-cloned prior."""
  kl_direction: Literal['policy_prior', 'prior_policy'] = 'policy_prior'
  """KL[policy || prior], or the reverse of the original PMPO."""
  value_weight: float = 1.0
  """Weight of the value loss."""
  relevant_share: float = 0.5
  """Share of contexts in which a task is achieved."""

  def __post_init__(self):
    super().__post_init__()
    room = type(self).__name__
    require(
      self.horizon >= 1, f'{room}.horizon', self.horizon, 'must be at least 1'
    )
    require(
      _is_power_of_two(self.sampling_steps),
      f'{room}.sampling_steps',
      self.sampling_steps,
      'must be a power of two',
    )
    for name in ('gamma', 'lam', 'alpha'):
      value = getattr(self, name)
      require(0 <= value <= 1, f'{room}.{name}', value, 'must lie in [0, 1]')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phases:
  """The four training phases, in order."""

  tokenizer: TokenizerPhase = TokenizerPhase()
  """Video to latents."""
  dynamics: DynamicsPhase = DynamicsPhase()
  """World model pretraining."""
  finetune: FinetunePhase = FinetunePhase()
  """Agent tokens: policy, reward, continuation."""
  imagination: ImaginationPhase = ImaginationPhase()
  """Reinforcement learning in imagination."""


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
  tokenizer: TokenizerConfig = TokenizerConfig()
  """Tokenizer model."""
  dynamics: DynamicsConfig = DynamicsConfig()
  """Dynamics model."""
  agent: AgentConfig = AgentConfig()
  """Agent token and heads."""
  phases: Phases = Phases()
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
