"""The four training phases and their optimizers."""

from __future__ import annotations

import dataclasses
from typing import Literal

from dreamer4_jax.checks import (
  at_least,
  is_power_of_two,
  require,
  shares,
)

PHASES = ('tokenizer', 'dynamics', 'finetune', 'imagination')


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
  eps: float = 1e-8
  """Adam: what has a smaller gradient than this is hardly moved."""
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
    shares(self, 'decay_share', 'final_scale')
    require(self.eps > 0, 'OptimizerConfig.eps', self.eps, 'must be positive')
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
  accumulate: int = 1
  """Parts of the batch that are taken one after another, for want of memory.
  The gradient is that of the whole batch; where a loss has several terms, a
  forward pass over all parts comes first."""
  clip_length: int = 16
  """Frames of a short clip, T1."""
  long_clip_length: int = 0
  """Frames of a long clip, T2; 0 trains on short clips only."""
  long_every: int = 4
  """Every n-th step takes a long clip."""
  long_only_share: float = 0.0
  """Last share of the phase's steps, all of which take long clips."""
  separate_images: float = 0.0
  """Share of clips whose frames are treated as separate images."""
  relevant_share: float = 0.0
  """Share of clips in which a task is achieved, each task as often. Where no
  dataset has events, it is the share of clips with actions."""
  novel_share: float = 0.0
  """Share of the other clips that show something rare. The datasets must have
  been measured with `dreamer4 data novelty`."""
  log_every: int = 20
  """Steps between metric lines."""
  checkpoint_every: int = 200
  """Steps between checkpoints."""
  keep_last: int = 2
  """Latest checkpoints kept; if the last is damaged, the one before is used."""
  keep_best: int = 0
  """Best checkpoints kept besides. Above 0, the best one, not the last, is what
  later phases, evaluation and export take from this phase."""
  best_metric: str = ''
  """Name of the metric that makes a checkpoint good, for example dynamics/flow;
  its running mean over about checkpoint_every steps is compared."""
  best_mode: Literal['min', 'max'] = 'min'
  """Whether a low or a high value of best_metric is good."""
  optimizer: OptimizerConfig = OptimizerConfig()
  """Optimizer of this phase."""

  def __post_init__(self):
    kind = type(self).__name__
    at_least(1, self, 'steps', 'batch_size', 'clip_length', 'long_every')
    at_least(1, self, 'accumulate')
    require(
      self.batch_size % self.accumulate == 0,
      f'{kind}.accumulate',
      self.accumulate,
      f'must divide batch_size = {self.batch_size}',
    )
    at_least(1, self, 'log_every', 'checkpoint_every', 'keep_last')
    at_least(0, self, 'keep_best')
    require(
      not self.keep_best or self.best_metric != '',
      f'{kind}.keep_best',
      self.keep_best,
      'needs best_metric, a name in metrics.jsonl; or set it to 0',
    )
    shares(self, 'separate_images', 'long_only_share')
    shares(self, 'relevant_share', 'novel_share')
    require(
      self.long_only_share == 0 or self.long_clip_length > 0,
      f'{kind}.long_only_share',
      self.long_only_share,
      'needs long_clip_length, which is 0; or set it to 0',
    )
    require(
      self.long_clip_length == 0 or self.long_clip_length > self.clip_length,
      f'{kind}.long_clip_length',
      self.long_clip_length,
      f'must exceed clip_length = {self.clip_length}, or be 0',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerPhase(PhaseConfig):
  """Training of the tokenizer."""

  max_mask_ratio: float = 0.9
  """Each image masks its patches with probability p ~ U(0, this)."""
  hard_regions: float = 0.0
  """Squared errors of regions of 8x8 pixels are weighted by this power of
  themselves, so that what is small and wrong counts for more than what is
  large and nearly right. 0 weighs all alike, as in the paper."""
  latent_noise: float = 0.0
  """In training the decoder is given latents with noise of standard deviation
  s ~ U(0, this), drawn for each frame, where the spread of each latent value
  over the batch is 1. Frames that differ in a small thing then lie further
  apart than the noise is wide, and dreams keep it. The paper has none."""
  lpips_weight: float = 0.2
  """Weight of the LPIPS term; off while lpips_path is empty."""
  lpips_path: str = ''
  """Local file with LPIPS weights; empty turns the term off."""
  vector_weight: float = 1.0
  """Weight of the vectors' term; there is none without vectors."""

  def __post_init__(self):
    super().__post_init__()
    require(
      0 <= self.max_mask_ratio < 1,
      'TokenizerPhase.max_mask_ratio',
      self.max_mask_ratio,
      'must lie in [0, 1); the paper uses 0.9',
    )
    at_least(0, self, 'hard_regions', 'latent_noise', 'vector_weight')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicsPhase(PhaseConfig):
  """Training of the dynamics by shortcut forcing."""

  bootstrap_rows: float = 0.25
  """Share of the frames in the dynamics loss that train coarse steps, and
  about the share of rows that the two extra passes run on; 1/n for whole n.
  The rows of a device are cut into equal groups of at most n, each of which
  takes the passes for one row, so they are best a multiple of n; with one row
  per device, set this to 1 and bootstrap_every to n."""
  bootstrap_start: int = 0
  """First step that bootstraps; before it the extra passes do not run."""
  bootstrap_every: int = 1
  """Bootstrap on every n-th step only, of those with short clips and of those
  with long ones (for one row per device)."""
  end_share: float = 0.0
  """Share of frames whose signal level is drawn from the lowest or the highest
  eighth of the grid. Noisy frames after clear ones are what actions are learned
  from, and uniform levels, the paper's, hold few of them."""
  clear_share: float = 0.0
  """Share of clips in which every noisy frame follows a clear one: what a frame
  and an action make of the next one is learned from these. Of their frames the
  noisy ones alone bootstrap."""
  low_weight: float = 0.1
  """Weight of a frame that is all noise, relative to a clear one; linear in the
  signal level between them. The paper has 0.1. What an action does is decided
  at low signal levels, and weighs more with 1."""

  def __post_init__(self):
    super().__post_init__()
    rows = self.bootstrap_rows
    kind = type(self).__name__
    require(
      0 < rows <= 1 and abs(1 / rows - round(1 / rows)) < 1e-6,
      f'{kind}.bootstrap_rows',
      rows,
      'must be 1/n for a whole number n, for example 0.25',
    )
    at_least(0, self, 'bootstrap_start')
    at_least(1, self, 'bootstrap_every')
    shares(self, 'end_share', 'clear_share', 'low_weight')


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetunePhase(DynamicsPhase):
  """Agent finetuning: dynamics loss, behaviour cloning, reward model."""

  relevant_share: float = 0.5
  """Share of clips in which a task is achieved. Behaviour is cloned from
  these, up to the action that achieves the task. Where no dataset has events,
  it is the share of clips with actions."""
  context_share: float = 0.25
  """Share of the other clips that is noised to the context level, as relevant
  ones are, and trains reward and continuation for all of them, not the
  dynamics. At 0 relevant clips alone train reward and continuation."""
  baseline_share: float = 0.0
  """Share of the clips that train baselines of cloning: half of them clone all
  actions of anyone, half those of the better half of the recordings by return,
  each under a prompt of its own, which is no task. They train the policy
  only."""
  dynamics_weight: float = 1.0
  """Weight of the dynamics loss, on uniform clips."""
  policy_weight: float = 1.0
  """Weight of behaviour cloning, on relevant clips."""
  reward_weight: float = 1.0
  """Weight of the reward likelihood, on both kinds of clips."""
  cont_weight: float = 1.0
  """Weight of the continuation likelihood, on both kinds of clips."""
  dynamics_rate: float = 1.0
  """Learning rate of the pretrained dynamics, relative to that of the new
  parts. A short finetuning at the full rate unlearns some of it."""
  distance_decay: float = 1.0
  """Multi-token prediction weights distance n by this to the power n. Below 1,
  what imagining and acting use (n = 0) is not drowned by what nobody can know,
  such as the reward seven actions ahead; the paper weights all alike."""

  def __post_init__(self):
    super().__post_init__()
    shares(self, 'baseline_share', 'dynamics_rate')
    require(
      self.relevant_share + self.baseline_share <= 1,
      'FinetunePhase.baseline_share',
      self.baseline_share,
      f'and relevant_share = {self.relevant_share} must be 1 at most together',
    )
    require(
      0 <= self.context_share < 1,
      'FinetunePhase.context_share',
      self.context_share,
      'must lie in [0, 1), so that some clips train the dynamics',
    )
    require(
      0 < self.distance_decay <= 1,
      'FinetunePhase.distance_decay',
      self.distance_decay,
      'must lie in (0, 1]; the paper uses 1',
    )


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
  """Share of contexts in which a task is achieved, or soon after which it is
  where that ends the episode; as in finetuning."""
  world_rate: float = 0.0
  """Learning rate of the world model and of the prior, relative to that of
  policy and value. 0 freezes them, as in the paper. Above 0, the losses of
  policy and value reach the transformer too, and those of finetuning are kept
  up, on as many clips again: with the weights and shares of phases.finetune,
  and this phase's batch, clip lengths and accumulate."""
  stop_at_event: bool = False
  """For tasks whose reward is an event, 1 when it happens: a rollout counts up
  to the event only. When acting, the prompt then moves on to the next task; a
  model that forgets would be paid for one event again and again."""

  def __post_init__(self):
    super().__post_init__()
    at_least(1, self, 'horizon')
    shares(self, 'gamma', 'lam', 'alpha', 'world_rate')
    require(
      is_power_of_two(self.sampling_steps),
      'ImaginationPhase.sampling_steps',
      self.sampling_steps,
      'must be a power of two',
    )


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
