"""Task embedding and the heads that read the agent token (section 3.3).

Every head is an MLP with one output layer per distance n = 0..N-1 of
multi-token prediction; axis `M` below is that distance.
"""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp

from dreamer4_jax.config import AgentConfig
from dreamer4_jax.models.actions import ActionSpace
from dreamer4_jax.nn import Embedding, Linear, RmsNorm
from dreamer4_jax.types import Array


class TaskEmbedding(nn.Module):
  """Input of the agent token, `[B, T, D]`, from ids or from vectors.

  Attributes:
    num_tasks: number of ids, those of baselines included.
    width: D.
    vector_size: entries E of the vectors, 0 for ids. Vectors may have any
      scale; only their direction counts.
  """

  num_tasks: int
  width: int
  vector_size: int = 0

  @nn.compact
  def __call__(self, task: Array) -> Array:
    """Embeds `task`, ids `[B, T]` or vectors `[B, T, E]`."""
    if self.vector_size:
      unit = RmsNorm(name='norm')(task.astype(jnp.float32))
      return Linear((self.width,), (None, 'embed'), name='task')(unit)
    return Embedding(self.num_tasks, self.width, scale=0.5, name='task')(task)


class _Trunk(nn.Module):
  """Hidden layers of a head, `[..., D] -> [..., last of hidden]`, float32."""

  config: AgentConfig

  @nn.compact
  def __call__(self, h: Array) -> Array:
    x = h.astype(jnp.float32)
    for i, width in enumerate(self.config.hidden):
      x = Linear((width,), ('embed', 'mlp'), name=f'hidden_{i}')(x)
      x = nn.silu(RmsNorm(name=f'norm_{i}')(x))
    return x


class PolicyHead(nn.Module):
  """Logits of every action component, `[..., D] -> {name: [..., M, ...]}`.

  Categorical `[..., M, n]`, binary `[..., M, bits]`, continuous
  `[..., M, dims, bins]` (a categorical over equal bins per dimension).
  """

  config: AgentConfig
  space: ActionSpace

  @nn.compact
  def __call__(self, h: Array) -> dict[str, Array]:
    x = _Trunk(self.config, name='trunk')(h)
    small = jax.nn.initializers.variance_scaling(1e-4, 'fan_in', 'normal')
    logits = {}
    for part in self.space:
      extra = (part.bins,) if part.kind == 'continuous' else ()
      shape = (self.config.distances, part.size, *extra)
      axes = ('mlp', *(None for _ in shape))
      logits[part.name] = Linear(shape, axes, init=small, name=part.name)(x)
    return logits


class TwoHotHead(nn.Module):
  """Logits over symexp bins, `[..., D] -> [..., M, bins]`; uniform at init."""

  config: AgentConfig
  distances: int

  @nn.compact
  def __call__(self, h: Array) -> Array:
    x = _Trunk(self.config, name='trunk')(h)
    shape, zeros = (self.distances, self.config.bins), nn.initializers.zeros
    return Linear(shape, ('mlp', None, None), init=zeros, name='out')(x)


class ContinuationHead(nn.Module):
  """Logit that the episode goes on, `[..., D] -> [..., M]`."""

  config: AgentConfig

  @nn.compact
  def __call__(self, h: Array) -> Array:
    x = _Trunk(self.config, name='trunk')(h)
    return Linear((self.config.distances,), ('mlp', None), name='out')(x)
