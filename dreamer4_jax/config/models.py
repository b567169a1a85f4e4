"""Sizes of the models, and the action space."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from dreamer4_jax.checks import at_least, is_power_of_two, require
from dreamer4_jax.nn.config import LayersConfig


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
class VectorComponent:
  """One named vector that is seen beside each image, such as proprioception."""

  name: str
  """Key of this vector in dictionaries; a Python identifier."""
  size: int
  """Values."""
  mean: tuple[float, ...] = (0.0,)
  """Mean in the data's units, one for each value or one for all of them."""
  std: tuple[float, ...] = (1.0,)
  """Standard deviation, likewise; the tokenizer sees (x - mean) / std."""

  def __post_init__(self):
    label = f'vectors[{self.name}]'
    # It names parameters and fields of files.
    require(
      self.name.isidentifier(),
      'vectors.name',
      self.name,
      'must be a Python identifier: letters, digits and underscores',
    )
    require(self.size >= 1, f'{label}.size', self.size, 'must be at least 1')
    for field in ('mean', 'std'):
      value = getattr(self, field)
      require(
        len(value) in (1, self.size) and all(map(math.isfinite, value)),
        f'{label}.{field}',
        value,
        f'must be one finite number, or size = {self.size} of them',
      )
    require(
      min(self.std) > 0,
      f'{label}.std',
      self.std,
      'must be positive; 1 will do for what never changes',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig(LayersConfig):
  """Causal tokenizer (section 3.1 of the paper)."""

  image_height: int = 64
  """Frame height in pixels."""
  image_width: int = 64
  """Frame width in pixels."""
  channels: int = 3
  """Colour channels."""
  patch_size: int = 16
  """Patch side in pixels; frames are padded with black to a multiple."""
  grid_rows: int = 0
  """Rows of patches, where frames are to be padded further than to the next
  multiple: the paper's 360 pixels make 24 rows of 16. 0 takes as many as are
  needed."""
  grid_columns: int = 0
  """Columns of patches, likewise."""
  num_latents: int = 16
  """Latent tokens per frame, L."""
  bottleneck_dim: int = 16
  """Channels of a latent token."""
  bottleneck_gain: float = 0.05
  """Factor before the tanh. At 1 it saturates in a few hundred steps, and what
  has little variance, like a small thing that moves, is learned late."""
  aligned_latents: bool = False
  """Latent i starts from patch i as it is embedded, or hidden, and the query of
  patch i from latent i. For a latent for each patch: which of them is to hold
  which patch need not be found out then, which takes long where it succeeds."""
  encoder_depth: int = 4
  """Encoder layers, a multiple of `time_every`."""
  decoder_depth: int = 4
  """Decoder layers, a multiple of `time_every`."""

  def __post_init__(self):
    super().__post_init__()
    require(
      self.bottleneck_gain > 0,
      'TokenizerConfig.bottleneck_gain',
      self.bottleneck_gain,
      'must be positive',
    )
    at_least(1, self, 'image_height', 'image_width', 'channels', 'patch_size')
    at_least(1, self, 'num_latents', 'bottleneck_dim')
    for field, side in (
      ('grid_rows', self.image_height),
      ('grid_columns', self.image_width),
    ):
      count, least = getattr(self, field), -(-side // self.patch_size)
      require(
        count == 0 or count >= least,
        f'TokenizerConfig.{field}',
        count,
        f'must be 0, or at least {least} to hold {side} pixels in patches of '
        f'{self.patch_size}',
      )
    patches = self.grid[0] * self.grid[1]
    require(
      not self.aligned_latents or self.num_latents == patches,
      'TokenizerConfig.aligned_latents',
      self.aligned_latents,
      f'needs num_latents = {self.num_latents} to be the number of patches, '
      f'{patches}',
    )
    self._check_depth('encoder_depth')
    self._check_depth('decoder_depth')

  @property
  def frame_shape(self) -> tuple[int, int, int]:
    """Height, width and channels of a frame."""
    return self.image_height, self.image_width, self.channels

  @property
  def grid(self) -> tuple[int, int]:
    """Patch rows and columns after padding."""
    p = self.patch_size
    return (
      self.grid_rows or -(-self.image_height // p),
      self.grid_columns or -(-self.image_width // p),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicsConfig(LayersConfig):
  """Interactive dynamics (section 3.2 of the paper)."""

  depth: int = 8
  """Layers, a multiple of `time_every`."""
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
  whitening_floor: float = 0.0
  """0 only standardises latents. Above 0 they are decorrelated as well, and
  directions with less than this share of the mean variance stay small. For
  tokenizers with up to a few thousand values a frame."""

  def __post_init__(self):
    super().__post_init__()
    self._check_depth('depth')
    at_least(1, self, 'num_spatial_tokens', 'num_action_tokens')
    at_least(0, self, 'num_registers', 'whitening_floor')
    require(
      is_power_of_two(self.max_steps),
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
  task_vector_size: int = 0
  """Entries of the vectors that tasks are given as, such as text embeddings,
  one for each task id in data.task_vectors; 0 learns one for each id."""
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
    at_least(1, self, 'num_tasks', 'hidden', 'layers', 'distances')
    at_least(0, self, 'task_vector_size')
    require(
      self.bins >= 3 and self.bins % 2 == 1,
      'AgentConfig.bins',
      self.bins,
      'must be odd and at least 3, so that 0 is a bin',
    )
