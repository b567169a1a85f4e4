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
  """Classes per dimension in a continuous component's discretised policy."""

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
  """One named vector observed along with each image, such as proprioception."""

  name: str
  """Key of this vector in dictionaries; a Python identifier."""
  size: int
  """Number of values."""
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
  """Causal tokenizer (section 3.1 of the paper); encoder and decoder alike."""

  frame_shape: tuple[int, int, int] = (64, 64, 3)
  """Height and width of a frame in pixels, and its channels."""
  patch_size: int = 16
  """Patch side in pixels; frames are padded with black to a multiple."""
  patch_grid: tuple[int, int] | None = None
  """Rows and columns of patches, to pad frames beyond the next multiple: the
  paper's 360 pixels make 24 rows of 16. None takes as many as are needed."""
  num_latents: int = 16
  """Latent tokens per frame, L."""
  bottleneck_dim: int = 16
  """Channels of a latent token."""
  bottleneck_gain: float = 0.05
  """Factor before the tanh. At 1 the tanh saturates in a few hundred steps, and
  what has little variance, such as a small moving object, is learned late."""
  aligned_latents: bool = False
  """Latent i starts from the embedding of patch i, masked or not, and the query
  of patch i from latent i. Needs one latent per patch. Which latent holds which
  patch need not be learned then, which takes long where it succeeds."""

  def __post_init__(self):
    super().__post_init__()
    require(
      min(self.frame_shape) >= 1,
      'TokenizerConfig.frame_shape',
      self.frame_shape,
      'must be at least 1 each',
    )
    at_least(1, self, 'patch_size', 'num_latents', 'bottleneck_dim')
    require(
      self.bottleneck_gain > 0,
      'TokenizerConfig.bottleneck_gain',
      self.bottleneck_gain,
      'must be positive',
    )
    least = tuple(-(-side // self.patch_size) for side in self.frame_shape[:2])
    require(
      self.grid[0] >= least[0] and self.grid[1] >= least[1],
      'TokenizerConfig.patch_grid',
      self.patch_grid,
      f'must be none, or at least {least} to hold {self.frame_shape[:2]} '
      f'pixels in patches of {self.patch_size}',
    )
    patches = self.grid[0] * self.grid[1]
    require(
      not self.aligned_latents or self.num_latents == patches,
      'TokenizerConfig.aligned_latents',
      self.aligned_latents,
      f'needs num_latents = {self.num_latents} to be the number of patches, '
      f'{patches}',
    )

  @property
  def grid(self) -> tuple[int, int]:
    """Patch rows and columns after padding."""
    if self.patch_grid is not None:
      return self.patch_grid
    height, width, _ = self.frame_shape
    return -(-height // self.patch_size), -(-width // self.patch_size)

  @property
  def latent_shape(self) -> tuple[int, int]:
    """Latents of a frame: how many, and channels of each."""
    return self.num_latents, self.bottleneck_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicsConfig(LayersConfig):
  """Interactive dynamics (section 3.2 of the paper)."""

  depth: int = 8
  """Layers, a multiple of `time_every`."""
  num_kv_heads: int = 4
  """Key/value heads (grouped-query attention); divides num_heads."""
  num_spatial_tokens: int = 16
  """Tokens a frame's latents are packed into."""
  num_registers: int = 2
  """Learned register tokens per frame."""
  max_steps: int = 64
  """K_max, the finest sampling grid; a power of two."""
  context_signal: float = 0.9
  """Signal level of past frames while sampling, snapped to the grid."""

  def __post_init__(self):
    super().__post_init__()
    at_least(1, self, 'num_kv_heads', 'num_spatial_tokens')
    require(
      self.num_heads % self.num_kv_heads == 0,
      'DynamicsConfig.num_kv_heads',
      self.num_kv_heads,
      f'must divide num_heads = {self.num_heads}',
    )
    at_least(0, self, 'num_registers')
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

  task_vector_size: int = 0
  """Entries of the vectors that describe tasks, such as text embeddings, one
  for each task id in data.task_vectors; 0 learns one for each id."""
  hidden: tuple[int, ...] = (128, 128)
  """Widths of the hidden layers of the MLP heads."""
  distances: int = 8
  """Multi-token prediction: steps n = 0..distances-1 predicted at once."""
  bins: int = 255
  """Bins of the symexp two-hot distribution; odd."""
  bin_limit: float = 20.0
  """Bins are symexp(linspace(-limit, limit))."""

  def __post_init__(self):
    at_least(1, self, 'distances')
    at_least(0, self, 'task_vector_size')
    require(
      len(self.hidden) > 0 and min(self.hidden) >= 1,
      'AgentConfig.hidden',
      self.hidden,
      'needs at least one layer, each at least 1 wide',
    )
    require(
      self.bins >= 3 and self.bins % 2 == 1,
      'AgentConfig.bins',
      self.bins,
      'must be odd and at least 3, so that 0 is a bin',
    )
