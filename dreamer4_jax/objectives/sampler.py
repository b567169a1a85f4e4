"""Sampling by shortcut forcing: from noise to data in K steps.

Source: section 3.2 of arXiv 2509.24527.
"""

from __future__ import annotations

from jax import lax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.objectives._shapes import (
  check_lead,
  f32,
  lead_shape,
  like,
  same_shape,
)
from dreamer4_jax.objectives.levels import finest_step_index
from dreamer4_jax.objectives.shortcut import Denoise
from dreamer4_jax.types import Array, Levels, PyTree


def sample(
  denoise: Denoise,
  noise: Array,
  *given: PyTree,
  steps: int,
  max_steps: int,
  lead_axes: int = 1,
  taken: int = 0,
) -> Array:
  """Turns noise into data.

  Args:
    denoise: the network, as in `shortcut_loss`; called K times, in a scan.
    noise: `[*lead, ...]` standard normal.
    *given: passed on to the denoiser.
    steps: K, a power of two in 1..`max_steps`.
    max_steps: K_max with which the network was trained, a power of two.
    lead_axes: how many axes `lead` has, as when training.
    taken: how many of the K steps have been taken before, of which `noise` is
      what they left.

  Returns:
    `[*lead, ...]` float32.

  Raises:
    ValueError: `steps` or `max_steps` is invalid, or a shape is wrong.
  """
  levels = sampling_levels(steps, max_steps)
  lead = lead_shape(lead_axes, noise=noise)

  def step(z: Array, signal_index: Array) -> tuple[Array, None]:
    now = levels.replace(signal_index=signal_index)
    return euler_step(z, denoise(z, now.broadcast(lead), *given), now), None

  rest = jnp.asarray(levels.signal_index[taken:])
  return lax.scan(step, f32(noise), rest)[0]


def sampling_levels(steps: int, max_steps: int) -> Levels:
  """Lists the levels at which a sampler of K = `steps` calls the denoiser.

  Args:
    steps: K, a power of two in 1..`max_steps`.
    max_steps: K_max, a power of two.

  Returns:
    Levels tau = s / K for s = 0..K-1, `signal_index` `[K]`, at one step size,
    `step_index` `[]`.

  Raises:
    ValueError: unless both are powers of two, and `steps` is within range.
  """
  finest_step_index(max_steps)
  if not 1 <= steps <= max_steps or steps & (steps - 1):
    raise ValueError(
      f'steps = {steps}: must be a power of two from 1 to {max_steps}'
    )
  return Levels(
    signal_index=np.arange(0, max_steps, max_steps // steps, dtype=np.int32),
    step_index=np.int32(finest_step_index(steps)),
    max_steps=max_steps,
  )


def euler_step(z: Array, clean: Array, levels: Levels) -> Array:
  """Moves `z` one step: `z + (clean - z) d / (1 - tau)`.

  Written as a weighted mean, so that the last step (tau = 1 - d) returns
  `clean` bit for bit.

  Args:
    z: `[*lead, ...]` at level tau.
    clean: `[*lead, ...]` the denoiser's prediction from `z`.
    levels: `[*lead]`, or one for all, of `z`, with tau + d <= 1.

  Returns:
    `[*lead, ...]` float32 at level tau + d.
  """
  same_shape(z=z, clean=clean)
  check_lead(levels, z=z)
  share = like(levels.step_size / (1 - levels.signal_level), z)
  return (1 - share) * f32(z) + share * f32(clean)
