"""The four training phases, and what they share."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses

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

  muon: tuple[str, ...] = ()
  """Phases in which Muon updates the matrices of transformers; AdamW updates
  everything else."""
  warmup_steps: int = 50
  """Steps of linear warm-up."""
  decay_share: float = 0.3
  """Share of the phase's steps, at its end, over which the learning rate decays
  linearly to a tenth."""
  weight_decay: float = 0.0
  """Decoupled weight decay."""
  clip_norm: float = 1.0
  """Global gradient norm is clipped to this."""
  betas: tuple[float, float] = (0.9, 0.99)
  """Decays of the first and second moment."""
  ema_decay: float = 0.99
  """Decay of the parameter average used by later phases; 0 turns it off."""

  def __post_init__(self):
    unknown = [name for name in self.muon if name not in PHASES]
    require(
      not unknown,
      'OptimizerConfig.muon',
      self.muon,
      f'must be among {", ".join(PHASES)}',
    )
    require(
      0 <= self.ema_decay < 1,
      'OptimizerConfig.ema_decay',
      self.ema_decay,
      'must lie in [0, 1)',
    )
    shares(self, 'decay_share')
    require(
      all(0 <= beta < 1 for beta in self.betas),
      'OptimizerConfig.betas',
      self.betas,
      'must lie in [0, 1)',
    )
    require(
      self.clip_norm > 0,
      'OptimizerConfig.clip_norm',
      self.clip_norm,
      'must be positive',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForcingConfig:
  """Shortcut forcing: how dynamics and finetuning noise the frames of clips."""

  bootstrap_share: float = 0.25
  """Share of the frames in the dynamics loss that train coarse steps, and
  about the share of rows that the two extra passes run on; 1/n for a whole n.
  The rows of a device are split into equal groups of at most n, and one row of
  each takes the passes, so their number is best a multiple of n. With fewer
  rows than n, all of them take the passes, on every n-th step."""
  end_share: float = 0.0
  """Share of frames whose signal level is drawn from the lowest or the highest
  eighth of the grid. Actions are learned from noisy frames after clear ones, of
  which uniform levels, as in the paper, yield few."""
  clear_share: float = 0.0
  """Share of clips in which every noisy frame follows a clear one: how a frame
  and an action determine the next frame is learned from these. Of their frames,
  only the noisy ones bootstrap."""
  low_weight: float = 0.1
  """Weight of a frame that is all noise, relative to a clear one; linear in the
  signal level between them. The paper uses 0.1. What an action does is decided
  at low signal levels, which weigh more at 1."""
  event_weight: float = 1.0
  """Weight of a frame on which something is achieved, relative to others. What
  an action does to one tile is a small part of the loss where every step brings
  new ground into view, and is then learned late."""

  def __post_init__(self):
    share = self.bootstrap_share
    require(
      0 < share <= 1 and abs(1 / share - round(1 / share)) < 1e-6,
      'ForcingConfig.bootstrap_share',
      share,
      'must be 1/n for a whole number n, for example 0.25',
    )
    shares(self, 'end_share', 'clear_share', 'low_weight')
    require(
      self.event_weight > 0,
      'ForcingConfig.event_weight',
      self.event_weight,
      'must be positive',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig:
  """Settings of every training phase."""

  steps: int = 1000
  """Train steps."""
  learning_rate: float = 1e-3
  """Peak learning rate."""
  batch_size: int = 16
  """Clips in a global batch."""
  clip_lengths: tuple[int, ...] = (16,)
  """Frames of a clip. With two lengths, T1 and T2 of the paper, data.long_every
  says which steps take clips of the second, longer one."""

  def __post_init__(self):
    kind = type(self).__name__
    at_least(1, self, 'steps', 'batch_size')
    require(
      self.learning_rate > 0,
      f'{kind}.learning_rate',
      self.learning_rate,
      'must be positive',
    )
    lengths = self.clip_lengths
    require(
      len(lengths) in (1, 2)
      and lengths[0] >= 1
      and (len(lengths) == 1 or lengths[1] > lengths[0]),
      f'{kind}.clip_lengths',
      lengths,
      'must be one length, or a short one and a longer one',
    )

  @property
  def clip_length(self) -> int:
    """Frames of a short clip."""
    return self.clip_lengths[0]

  @property
  def longest_clip(self) -> int:
    """Frames of the longest clips."""
    return self.clip_lengths[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerPhase(PhaseConfig):
  """Training of the tokenizer."""

  max_mask_ratio: float = 0.9
  """Each image masks its patches with probability p ~ U(0, this)."""
  latent_noise: float = 0.0
  """In training, the decoder sees latents with noise of standard deviation
  s ~ U(0, this), drawn for each frame, in units of each latent value's spread
  over the batch. Frames that differ in a small detail then lie further apart
  than the noise, and dreams keep the detail. The paper has none."""
  lpips_path: str = ''
  """Local file with LPIPS weights; the term weighs 0.2 in the loss. Empty turns
  it off."""

  def __post_init__(self):
    super().__post_init__()
    require(
      0 <= self.max_mask_ratio < 1,
      'TokenizerPhase.max_mask_ratio',
      self.max_mask_ratio,
      'must lie in [0, 1); the paper uses 0.9',
    )
    at_least(0, self, 'latent_noise')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicsPhase(PhaseConfig):
  """Training of the dynamics by shortcut forcing."""

  bootstrap_start: int = 0
  """First step that bootstraps; before it the extra passes do not run."""
  relevant_share: float = 0.0
  """Share of clips in which a task is achieved, each task equally often. Where
  no dataset has events, it is the share of clips with actions."""

  def __post_init__(self):
    super().__post_init__()
    at_least(0, self, 'bootstrap_start')
    shares(self, 'relevant_share')


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetunePhase(PhaseConfig):
  """Agent finetuning: dynamics loss, behaviour cloning, reward model."""

  relevant_share: float = 0.5
  """Share of clips in which a task is achieved. Behaviour is cloned from
  these, up to the action that achieves the task. Where no dataset has events,
  it is the share of clips with actions."""
  context_share: float = 0.25
  """Share of the other clips that is noised to the context level, as relevant
  ones are, and trains reward and continuation on behalf of all of them, not the
  dynamics. At 0, only relevant clips train reward and continuation."""
  baseline_share: float = 0.0
  """Share of the clips that train cloning baselines: half of them clone the
  actions of all recordings, half those of the better half by return, each under
  a prompt of its own, which is not a task. They train only the policy."""
  dynamics_rate: float = 1.0
  """Learning rate of the pretrained dynamics, relative to that of the new
  parts. A short finetuning at the full rate unlearns some of it."""
  distance_decay: float = 1.0
  """Multi-token prediction weights distance n by this to the power n. Below 1,
  what imagining and acting use (n = 0) is not drowned out by what nobody can
  know, such as the reward seven actions ahead; the paper weights all alike."""

  def __post_init__(self):
    super().__post_init__()
    shares(self, 'relevant_share', 'baseline_share', 'dynamics_rate')
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

  relevant_share: float = 0.5
  """Share of contexts in which a task is achieved or, where that ends the
  episode, soon after which it is; as in finetuning."""
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
  world_rate: float = 0.0
  """Learning rate of the world model and of the prior, relative to that of
  policy and value. 0 freezes them, as in the paper. Above 0, the losses of
  policy and value reach the transformer too, and those of finetuning continue
  on as many clips again, with the shares of phases.finetune, and this phase's
  batch and clip lengths."""
  stop_at_event: bool = False
  """For tasks whose reward is an event, 1 when it happens: a rollout counts
  only up to the event. When acting, the prompt then moves on to the next task;
  a model that forgets would reward one event again and again."""

  def __post_init__(self):
    super().__post_init__()
    at_least(1, self, 'horizon')
    shares(self, 'relevant_share', 'gamma', 'lam', 'alpha', 'world_rate')
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

  def __iter__(self) -> Iterator[PhaseConfig]:
    """Yields the phases in order."""
    return iter(getattr(self, name) for name in PHASES)
