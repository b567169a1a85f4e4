"""Shortcut forcing: corruption, bootstrap targets, losses, steps of a sampler.

Arrays have leading axes, each entry of which has a level of its own: `[B, ...]`
for examples, `[B, T, ...]` for the frames of clips. What follows them is data
of any shape. The denoiser is always told the level of what it is given.
Everything is float32.

Source: section 3.2 of arXiv 2509.24527.
"""

from __future__ import annotations

from collections.abc import Callable

from flax import struct
from jax import lax
import jax.numpy as jnp

from dreamer4_jax.objectives._shapes import same_shape
from dreamer4_jax.objectives.levels import finest_step_index
from dreamer4_jax.types import Array, Levels

Denoise = Callable[[Array, Levels], Array]
"""`(z [*lead, ...], levels [*lead]) -> clean z`, of the shape of z."""


@struct.dataclass
class ShortcutLosses:
  """Weighted losses of examples or frames; each has one of the two.

  Attributes:
    flow: `[*lead]` float32, 0 where not `is_flow`.
    bootstrap: `[*lead]` float32, 0 where `is_flow`.
    is_flow: `[*lead]` bool, it has the finest step.
  """

  flow: Array
  bootstrap: Array
  is_flow: Array


def ramp(signal_level: Array, low: float = 0.1) -> Array:
  """Returns the loss weight `(1 - low) tau + low`.

  Args:
    signal_level: tau.
    low: weight of pure noise; 0.1 in the paper (section 3.2).
  """
  return (1 - low) * signal_level + low


def corrupt(z1: Array, noise: Array, levels: Levels) -> Array:
  """Returns `z_tau = (1 - tau) noise + tau z1` (section 3.2 of the paper).

  Args:
    z1: `[*lead, ...]` data.
    noise: `[*lead, ...]` standard normal.
    levels: `[*lead]`, or one for all.

  Returns:
    `[*lead, ...]` float32.
  """
  same_shape(z1=z1, noise=noise)
  _check_lead(levels, 'z1', z1)
  tau = _like(levels.signal_level, z1)
  return (1 - tau) * _f32(noise) + tau * _f32(z1)


def bootstrap_velocity(denoise: Denoise, z_tau: Array, levels: Levels) -> Array:
  """Computes the velocity that two half steps take together.

  `b1 = (f(z_tau, tau, d/2) - z_tau) / (1 - tau)`,
  `z' = z_tau + b1 d/2`, `b2 = (f(z', tau + d/2, d/2) - z') / (1 - tau - d/2)`,
  target `(b1 + b2) / 2` (equation 7 of the paper). What already has the finest
  step cannot be halved: both passes see it as it is.

  Args:
    denoise: the network; called twice.
    z_tau: `[*lead, ...]` corrupted data.
    levels: `[*lead]`, where it stands.

  Returns:
    `[*lead, ...]` float32 without gradient, 0 where the step is the finest.
  """
  _check_lead(levels, 'z_tau', z_tau)
  last, max_steps = finest_step_index(levels.max_steps), levels.max_steps
  z = _f32(z_tau)
  coarse = levels.step_index < last
  half = levels.replace(step_index=jnp.minimum(levels.step_index + 1, last))
  # Points of the finest grid in half a step; what stays moves by none.
  move = jnp.where(coarse, jnp.right_shift(max_steps, half.step_index), 0)
  first = _velocity(denoise, z, half)
  moved = z + first * _like(move.astype(jnp.float32) / max_steps, z)
  second = _velocity(
    denoise, moved, half.replace(signal_index=half.signal_index + move)
  )
  target = jnp.where(_like(coarse, z), (first + second) / 2, 0.0)
  # The coarse step learns from the finer ones, never the reverse.
  return lax.stop_gradient(target)


def shortcut_losses(
  prediction: Array,
  z1: Array,
  z_tau: Array,
  levels: Levels,
  target_velocity: Array | None,
  low_weight: float = 0.1,
) -> ShortcutLosses:
  """Computes the shortcut forcing losses (equation 7 of the paper).

  With the finest step: `||z1_hat - z1||^2`. Otherwise:
  `(1 - tau)^2 ||(z1_hat - z_tau) / (1 - tau) - target||^2`, computed as
  `||z1_hat - z_tau - (1 - tau) target||^2`, the same without a division. Both
  are means over the trailing axes and carry the weight `ramp(tau, low_weight)`.

  Args:
    prediction: `[*lead, ...]` predicted clean data z1_hat.
    z1: `[*lead, ...]` clean data.
    z_tau: `[*lead, ...]` what the network was given.
    levels: its levels, `[*lead]`.
    target_velocity: `[*lead, ...]` from `bootstrap_velocity`, or None on a
      step that does not bootstrap: then `bootstrap` is 0 everywhere.
    low_weight: of pure noise, see `ramp`.

  Returns:
    The two losses, and where each belongs.
  """
  same_shape(prediction=prediction, z1=z1, z_tau=z_tau)
  _check_lead(levels, 'prediction', prediction)
  prediction, z1, z_tau = _f32(prediction), _f32(z1), _f32(z_tau)
  is_flow = levels.step_index == finest_step_index(levels.max_steps)
  tau = levels.signal_level
  goal = z1
  if target_velocity is not None:
    same_shape(prediction=prediction, target_velocity=target_velocity)
    ahead = z_tau + _like(1 - tau, z1) * _f32(target_velocity)
    goal = jnp.where(_like(is_flow, z1), z1, ahead)
  trailing = tuple(range(tau.ndim, z1.ndim))
  error = jnp.mean(jnp.square(prediction - goal), axis=trailing)
  error = ramp(tau, low_weight) * error
  bootstrap = jnp.zeros_like(error)
  if target_velocity is not None:
    bootstrap = jnp.where(is_flow, 0.0, error)
  return ShortcutLosses(
    flow=jnp.where(is_flow, error, 0.0), bootstrap=bootstrap, is_flow=is_flow
  )


def euler_step(z: Array, clean: Array, levels: Levels) -> Array:
  """Moves `z` one step: `z + (clean - z) d / (1 - tau)`.

  Written as a weighted mean, so that the last step (tau = 1 - d) returns
  `clean` to the bit.

  Args:
    z: `[*lead, ...]` at level tau.
    clean: `[*lead, ...]` the denoiser's prediction from `z`.
    levels: `[*lead]`, or one for all, of `z`, with tau + d <= 1.

  Returns:
    `[*lead, ...]` float32 at level tau + d.
  """
  same_shape(z=z, clean=clean)
  _check_lead(levels, 'z', z)
  share = _like(levels.step_size / (1 - levels.signal_level), z)
  return (1 - share) * _f32(z) + share * _f32(clean)


def _velocity(denoise: Denoise, z: Array, levels: Levels) -> Array:
  """Returns `(f(z, tau, d) - z) / (1 - tau)`, float32."""
  clean = _f32(denoise(z, levels))
  same_shape(z=z, clean=clean)
  return (clean - z) / _like(1 - levels.signal_level, z)


def _check_lead(levels: Levels, name: str, x: Array) -> None:
  """Raises `ValueError` unless `x` leads with the axes of the levels."""
  shape = jnp.shape(levels.signal_index)
  if tuple(x.shape[: len(shape)]) != shape:
    raise ValueError(
      f'levels {shape} must be the leading axes of {name} {tuple(x.shape)}'
    )


def _like(level: Array, x: Array) -> Array:
  """Appends axes to a level up to the rank of `x`; a scalar stays one."""
  missing = x.ndim - level.ndim if level.ndim else 0
  return jnp.expand_dims(level, tuple(range(level.ndim, level.ndim + missing)))


def _f32(x: Array) -> Array:
  return jnp.asarray(x).astype(jnp.float32)
