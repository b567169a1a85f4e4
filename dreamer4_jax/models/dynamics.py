"""Interactive dynamics: predicts the clean tokens of every frame.

Source: section 3.2 of arXiv 2509.24527. The tokens of a frame are, in order,
`[z | action | registers | agent (optional) | shortcut]`.
"""

from __future__ import annotations

from einops import rearrange
from flax import linen as nn
from flax import struct
import jax.numpy as jnp

from dreamer4_jax.config import ComputeConfig, DynamicsConfig
from dreamer4_jax.models.actions import ActionEmbedding, ActionSpace
from dreamer4_jax.nn import (
  Embedding,
  KeyValues,
  Linear,
  SpaceTimeTransformer,
  TimeCache,
  init_cache,
  masks,
)
from dreamer4_jax.types import Actions, Array, Levels


@struct.dataclass
class DynamicsOutput:
  """Result of a pass.

  Attributes:
    prediction: `[B, T, N_z, C]` float32, the clean tokens z1.
    agent: `[B, T, D]` output of the agent token, or None without one.
    new: keys and values of the time layers, for the cache.
  """

  prediction: Array
  agent: Array | None
  new: KeyValues


class Dynamics(nn.Module):
  """The world model; it has no parameter for the agent token.

  Attributes:
    config: sizes.
    space: action space.
    channels: channels C of a z token.
    compute: how it is computed.
  """

  config: DynamicsConfig
  space: ActionSpace
  channels: int
  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(
    self,
    z: Array,
    levels: Levels,
    prev_action: Actions,
    prev_action_mask: Array,
    *,
    agent: Array | None = None,
    segment_ids: Array | None = None,
    cache: TimeCache | None = None,
  ) -> DynamicsOutput:
    """Denoises the frames of a clip, or the next frames of a stream.

    Args:
      z: `[B, T, N_z, C]` noisy standardised tokens z_tau.
      levels: `[B, T]`, of z as given, on the grid of `config.max_steps`.
      prev_action: action that led to each frame, components `[B, T, ...]`.
      prev_action_mask: `[B, T]` bool, whether it is known.
      agent: `[B, T, D]` input of the agent token; None leaves it out. No other
        token sees it, so it never changes the prediction.
      segment_ids: `[B, T]` int32.
      cache: made by `dynamics_cache`; these are then its next frames.

    Returns:
      A `DynamicsOutput`.

    Raises:
      ValueError: the levels are of another grid.
    """
    c = self.config
    if levels.max_steps != c.max_steps:
      raise ValueError(
        f'levels.max_steps = {levels.max_steps}: this model has '
        f'dynamics.max_steps = {c.max_steps}; give levels of that grid'
      )
    dtype = jnp.dtype(self.compute.dtype)
    n_z, lead = c.num_spatial_tokens, z.shape[:2]
    slots = n_z + c.num_registers
    learned = Embedding(slots, c.width, dtype, name='slots').table()
    x = Linear((c.width,), (None, 'embed'), dtype, name='z_in')(z)
    x = x + learned[None, None, :n_z]
    action = ActionEmbedding(self.space, c.width, dtype, name='action')(
      prev_action, prev_action_mask
    )
    registers = jnp.broadcast_to(
      learned[None, None, n_z:], (*lead, c.num_registers, c.width)
    )
    half = c.width // 2
    embed = lambda count, name: Embedding(count, half, dtype, name=name)
    signal = embed(c.max_steps + 1, 'signal')(levels.signal_index)
    step = embed(c.max_steps.bit_length(), 'step')(levels.step_index)
    shortcut = jnp.concatenate([signal, step], axis=-1)[:, :, None]
    hidden = None if agent is None else slots + 1
    extra = [] if agent is None else [agent.astype(dtype)[:, :, None]]
    tokens = jnp.concatenate(
      [x, action[:, :, None], registers, *extra, shortcut], axis=2
    )
    mask = masks.hidden_token_mask(tokens.shape[2], hidden)
    y, new = SpaceTimeTransformer(
      c.transformer(self.compute, c.num_kv_heads), name='transformer'
    )(tokens, space_mask=mask, segment_ids=segment_ids, cache=cache)
    prediction = Linear(
      (self.channels,),
      ('embed', None),
      dtype,
      nn.initializers.zeros,
      name='z_out',
    )(y[:, :, :n_z])
    return DynamicsOutput(
      prediction=prediction.astype(jnp.float32),
      agent=None if hidden is None else y[:, :, hidden],
      new=new,
    )


def num_tokens(config: DynamicsConfig, agent: bool) -> int:
  """Tokens of a frame, with or without the agent token."""
  # Plus the action token and the shortcut token.
  return config.num_spatial_tokens + config.num_registers + 2 + int(agent)


def dynamics_cache(dynamics: Dynamics, batch: int, agent: bool) -> TimeCache:
  """Returns an empty cache for `batch` streams."""
  c = dynamics.config
  layers = c.transformer(dynamics.compute, c.num_kv_heads)
  return init_cache(layers, batch, num_tokens(c, agent))


def pack(z: Array, num_spatial_tokens: int) -> Array:
  """Reshapes latents `[B, T, L, b]` to tokens `[B, T, N_z, L * b / N_z]`."""
  z = rearrange(z, 'b t l c -> b t (l c)')
  return rearrange(z, 'b t (n d) -> b t n d', n=num_spatial_tokens)


def unpack(z: Array, num_latents: int) -> Array:
  """Inverts `pack`, to `[B, T, num_latents, b]`."""
  z = rearrange(z, 'b t n d -> b t (n d)')
  return rearrange(z, 'b t (l c) -> b t l c', l=num_latents)
