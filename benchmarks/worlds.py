"""The models that are measured: sizes, parameters, and dummy batches."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from dreamer4_jax.config import (
  AgentConfig,
  ComputeConfig,
  Config,
  DynamicsConfig,
  DynamicsPhase,
  FinetunePhase,
  ImaginationPhase,
  Phases,
  TokenizerConfig,
  TokenizerPhase,
  presets,
  require,
)
from dreamer4_jax.models import World, no_action
from dreamer4_jax.types import Batch, PyTree

_SIZES = {'width': 256, 'num_heads': 4, 'context_length': 32}
PRESETS = presets.PRESETS | {
  'reference': presets.Preset(
    tokenizer=TokenizerConfig(
      frame_shape=(64, 64, 3),
      patch_size=8,
      num_latents=16,
      bottleneck_dim=32,
      **_SIZES,
    ),
    dynamics=DynamicsConfig(num_spatial_tokens=16, num_registers=4, **_SIZES),
  )
}
"""The package's presets, and the model that is measured on CPUs."""
MODULES = (
  'tokenizer', 'dynamics', 'task', 'policy', 'reward', 'continuation', 'value',
)  # fmt: skip


def make_world(
  preset: str,
  *,
  batch: int = 8,
  length: int = 32,
  depth: int = 0,
  **changes: Any,
) -> World:
  """Returns the modules of a preset.

  Args:
    preset: one of `PRESETS`.
    batch: rows of every phase's batches.
    length: frames of their clips.
    depth: layers of the dynamics, 0 for those of the preset.
    **changes: how it is computed; empty ones are ignored.
  """
  require(
    preset in PRESETS, 'preset', preset, f'must be one of {", ".join(PRESETS)}'
  )
  sizes = PRESETS[preset]
  changes = {name: value for name, value in changes.items() if value}
  same = {'batch_size': batch, 'clip_lengths': (length,)}
  return World.from_config(
    Config(
      tokenizer=sizes.tokenizer,
      dynamics=dataclasses.replace(
        sizes.dynamics, depth=depth or sizes.dynamics.depth
      ),
      agent=AgentConfig(hidden=(sizes.dynamics.width // 2,) * 2),
      compute=ComputeConfig(**{**sizes.compute, **changes}),
      phases=Phases(
        tokenizer=TokenizerPhase(**same),
        dynamics=DynamicsPhase(**same),
        finetune=FinetunePhase(**same),
        imagination=ImaginationPhase(**same),
      ),
    )
  )


def init_params(world: World, modules: Sequence[str] = MODULES) -> PyTree:
  """Returns initial parameters, on the device."""

  def init() -> PyTree:
    t = world.config.tokenizer
    shape = t.latent_shape
    params = nn.meta.unbox(world.init(jax.random.key(0), tuple(modules)))
    params['latents'] = {'mean': jnp.zeros(shape), 'std': jnp.ones(shape)}
    return params

  return jax.jit(init)()


def make_batch(
  world: World, rows: int, length: int, *, pixels: bool = False
) -> Batch:
  """Returns a dummy batch of latents, or of frames."""
  t = world.config.tokenizer
  lead = (rows, length)
  shape, dtype = t.latent_shape, jnp.float16
  if pixels:
    shape, dtype = t.frame_shape, jnp.uint8
  numbers, whole = jnp.zeros(lead), jnp.zeros(lead, jnp.int32)
  action = no_action(world.space, lead)
  return Batch(
    frames=jnp.ones((*lead, *shape), dtype),
    action=action,
    action_mask=numbers == 0,
    prev_action=action,
    prev_action_mask=numbers == 0,
    cloned=numbers == 0,
    reward=jnp.zeros((*lead, len(world.config.tasks))),
    cont=numbers + 1,
    task=whole,
    segment_ids=whole,
    relevant=jnp.ones((rows,), bool),
  )
