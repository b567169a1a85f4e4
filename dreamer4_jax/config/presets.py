"""Model sizes from test to paper.

An experiment applies one to its config and may change any field afterwards:

    config = presets.apply(config, 'small')

Parameters of each preset, in millions, at its own image size and with one
categorical action of ten classes:

| preset | frames  | tokenizer | dynamics |
|--------|---------|-----------|----------|
| tiny   | 32x32   |       0.2 |      0.1 |
| small  | 64x64   |       6.6 |     12.6 |
| base   | 128x128 |      26.6 |     75.6 |
| paper  | 360x640 |     409.4 |   1595.8 |
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

from dreamer4_jax.config import (
  PHASES,
  ComputeConfig,
  Config,
  DynamicsConfig,
  TokenizerConfig,
  require,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """Sizes of the two transformers that go together, and what fits them."""

  tokenizer: TokenizerConfig
  """Tokenizer, with the image size it was chosen for."""
  dynamics: DynamicsConfig
  """Dynamics."""
  phases: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  """Fields of the phases, by phase."""
  agent: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  """Fields of the agent."""
  compute: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  """Fields of the group `compute`; the others have their defaults."""
  forcing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  """Fields of the group `forcing`."""
  data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  """Fields of the data."""


def _every_phase(**fields: Any) -> dict[str, dict[str, Any]]:
  return {phase: dict(fields) for phase in PHASES}


TINY = Preset(
  tokenizer=TokenizerConfig(
    frame_shape=(32, 32, 3),
    patch_size=8,
    num_latents=8,
    bottleneck_dim=8,
    depth=2,
    time_every=2,
    width=64,
    num_heads=2,
    context_length=8,
  ),
  dynamics=DynamicsConfig(
    width=64,
    depth=2,
    time_every=2,
    num_heads=2,
    num_kv_heads=1,
    num_spatial_tokens=4,
    num_registers=1,
    context_length=8,
  ),
  phases=_every_phase(clip_lengths=(8,)),
)
"""For tests: a train step compiles in seconds on a CPU."""

SMALL = Preset(
  tokenizer=TokenizerConfig(
    frame_shape=(64, 64, 3),
    patch_size=8,
    num_latents=32,
    bottleneck_dim=16,
    width=256,
    num_heads=4,
    context_length=32,
  ),
  dynamics=DynamicsConfig(
    width=384,
    depth=8,
    num_heads=6,
    num_kv_heads=2,
    num_spatial_tokens=16,
    num_registers=4,
    context_length=32,
  ),
  phases=_every_phase(clip_lengths=(16, 48)),
)
"""For small frames and one GPU."""

BASE = Preset(
  tokenizer=TokenizerConfig(
    frame_shape=(128, 128, 3),
    patch_size=16,
    num_latents=64,
    bottleneck_dim=16,
    width=512,
    num_heads=8,
    context_length=64,
  ),
  dynamics=DynamicsConfig(
    width=768,
    depth=12,
    num_heads=12,
    num_kv_heads=4,
    num_spatial_tokens=32,
    num_registers=4,
    context_length=64,
  ),
  compute={'remat': 'dots', 'dtype': 'bfloat16'},
  phases=_every_phase(clip_lengths=(32, 96)),
)
"""For a few accelerators."""

_CLIPS = {'clip_lengths': (64, 256)}
PAPER = Preset(
  tokenizer=TokenizerConfig(
    frame_shape=(360, 640, 3),
    patch_size=16,
    patch_grid=(24, 40),
    num_latents=512,
    bottleneck_dim=16,
    bottleneck_gain=1.0,
    depth=16,
    width=1024,
    num_heads=16,
    context_length=192,
  ),
  dynamics=DynamicsConfig(
    width=2048,
    depth=36,
    num_heads=16,
    num_kv_heads=4,
    num_spatial_tokens=256,
    num_registers=4,
    context_length=192,
  ),
  compute={'remat': 'full', 'dtype': 'bfloat16'},
  agent={'distances': 8},
  forcing={'end_share': 0.0, 'clear_share': 0.0, 'low_weight': 0.1},
  data={'separate_images': 0.3},
  phases={
    'tokenizer': {**_CLIPS, 'max_mask_ratio': 0.9},
    'dynamics': _CLIPS,
    'finetune': {
      **_CLIPS,
      'relevant_share': 0.5,
      'dynamics_rate': 1.0,
      'distance_decay': 1.0,
    },
    'imagination': {
      **_CLIPS,
      'sampling_steps': 4,
      'gamma': 0.997,
      'lam': 0.95,
      'alpha': 0.5,
      'beta': 0.3,
      'stop_at_event': False,
      'world_rate': 0.0,
    },
  },
)
"""Minecraft in the paper: 400 M + 1.6 B parameters.

From the paper: the frame of 360x640, padded to 384x640 (960 patches), 512
latents of 16 channels packed into 256 tokens of 32, the context of 192 frames,
grouped-query attention in the dynamics, and the two totals. Clips of 64 and 256
frames, 30 % of them separate images, masking of up to 90 % of the patches, four
sampling steps, and the constants of reinforcement learning.

Ours, since the paper does not say: widths, depths, heads (of 64 in the
tokenizer, of 128 in the dynamics), a SwiGLU of about 8/3 of the width, equal
depth on both sides of the tokenizer, four registers. Dreams never start from
separate images: nobody acts from a single frame.
"""

PRESETS = {'tiny': TINY, 'small': SMALL, 'base': BASE, 'paper': PAPER}
"""All presets by name, from small to large."""


def apply(config: Config, name: str) -> Config:
  """Returns the config with the sizes of a preset, and clips that fit them.

  Image size and channels stay those of `config`, as does what a preset does not
  mention: actions, tasks, data, and the steps, batch sizes and optimizers of
  the phases. The rows and columns of patches are the preset's if the image size
  is.

  Args:
    config: the config to start from; it is not changed.
    name: one of `PRESETS`.

  Raises:
    ValueError: there is no such preset.
  """
  require(
    name in PRESETS, 'preset', name, f'must be one of {", ".join(PRESETS)}'
  )
  preset, replace = PRESETS[name], dataclasses.replace
  now, own = config.tokenizer, preset.tokenizer
  same = now.frame_shape[:2] == own.frame_shape[:2]
  phases = {
    phase: replace(getattr(config.phases, phase), **fields)
    for phase, fields in preset.phases.items()
  }
  return replace(
    config,
    tokenizer=replace(
      own,
      frame_shape=now.frame_shape,
      patch_grid=own.patch_grid if same else now.patch_grid,
    ),
    dynamics=preset.dynamics,
    agent=replace(config.agent, **preset.agent),
    compute=ComputeConfig(**preset.compute),
    forcing=replace(config.forcing, **preset.forcing),
    data=replace(config.data, **preset.data),
    phases=replace(config.phases, **phases),
  )
