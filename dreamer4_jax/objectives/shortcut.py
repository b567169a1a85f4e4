"""Shortcut forcing: levels, corruption, bootstrap targets, losses, sampling.

The grid. `max_steps` = K_max is a power of two. A step size d is one of
1, 1/2, ..., 1/K_max and a signal level tau one of 0, d, ..., 1-d; tau = 0 is
noise, tau = 1 is data. Both travel as integers, `step_index = log2(1/d)` and
`signal_index = tau K_max`, so that no level is ever rounded. The denoiser is
always told the level of what it is given. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Callable

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.objectives._shapes import same_shape
from dreamer4_jax.types import Array

Denoise = Callable[[Array, Array, Array], Array]
"""`(z [B, T, N, C], signal_index [B, T], step_index [B, T]) -> clean z`."""


@struct.dataclass
class Levels:
  """Where each frame stands on the grid.

  Attributes:
    signal_index: `[B, T]` int32, tau K_max, in 0..K_max-1 while training.
    step_index: `[B, T]` int32, log2(1/d), in 0..log2(K_max).
  """

  signal_index: Array
  step_index: Array


@struct.dataclass
class ShortcutLosses:
  """Weighted losses per frame; every frame has one of the two.

  Attributes:
    flow: `[B, T]` float32, 0 where not `is_flow`.
    bootstrap: `[B, T]` float32, 0 where `is_flow`.
    is_flow: `[B, T]` bool, the frame has the finest step.
  """

  flow: Array
  bootstrap: Array
  is_flow: Array


def finest(max_steps: int) -> int:
  """Returns the step index of d = 1 / `max_steps`, log2 of it.

  Raises:
    ValueError: unless `max_steps` is a power of two.
  """
  if max_steps < 1 or max_steps & (max_steps - 1):
    raise ValueError(f'max_steps = {max_steps}: must be a power of two')
  return int(max_steps).bit_length() - 1


def signal(index: Array, max_steps: int) -> Array:
  """Returns tau = index / `max_steps`, float32 and exact, shape of `index`."""
  finest(max_steps)
  return jnp.asarray(index).astype(jnp.float32) / max_steps


def step_size(step_index: Array) -> Array:
  """Returns d = 2**-step_index, float32 and exact, shape of the argument."""
  steps = jnp.left_shift(1, jnp.asarray(step_index))
  return 1.0 / steps.astype(jnp.float32)


def ramp(signal: Array, low: float = 0.1) -> Array:
  """Returns the loss weight `(1 - low) tau + low`.

  Args:
    signal: tau.
    low: weight of pure noise; 0.1 in the paper (section 3.2).
  """
  return (1 - low) * signal + low


def draw_levels(
  key: Array,
  shape: tuple[int, int],
  coarse: Array,
  max_steps: int,
  end_share: float = 0.0,
  clear_share: float = 0.0,
) -> Levels:
  """Draws a step size and a signal level for each frame on its own.

  Where `coarse`, the step index is uniform over 0..log2(K_max), the finest
  included; elsewhere it is the finest. Given d, tau is uniform over
  {0, d, ..., 1-d} (equation 4 of the paper, whose "1/d" is a slip).

  A share of the frames can be drawn from the ends: from the lowest or the
  highest eighth of the grid, each as likely. What an action does is learned
  from a noisy frame after a clear one, which independent uniform levels seldom
  make: the lowest eighth follows the highest in 1 of 64 pairs, and in 1 of 7
  pairs with `end_share` = 0.7.

  In a share of the clips every other frame is clear, from the highest eighth of
  the grid, and of those between three in four are noisy and the others clear.
  There a noisy frame always follows a clear one, as when sampling. A third of
  the noisy ones is pure noise, where sampling begins; the others are drawn as
  elsewhere, from the ends by `end_share`. They alone draw a coarse step.

  Args:
    key: PRNG key, used here only.
    shape: `(B, T)`.
    coarse: bool, `[B, 1]` or `[B, T]`.
    max_steps: K_max, a power of two.
    end_share: share of frames from the ends, in [0, 1]; the paper has 0.
    clear_share: share of clips that alternate, in [0, 1]; likewise.

  Returns:
    Levels `[B, T]`.
  """
  last = finest(max_steps)
  step_key, signal_key, end_key = jax.random.split(key, 3)
  step = jax.random.randint(step_key, shape, 0, last + 1, jnp.int32)
  step = jnp.where(jnp.broadcast_to(coarse, shape), step, last)
  # Dropping the low bits of a uniform index leaves it uniform on the grid
  # of d = 2**-step, whose points are 2**(last - step) apart.
  fine = jax.random.randint(signal_key, shape, 0, max_steps, jnp.int32)
  if end_share:
    # Squeezes either half of the grid into the eighth at its end.
    depth = jnp.minimum(fine, max_steps - 1 - fine) // 4
    end = jnp.where(fine < max_steps // 2, depth, max_steps - 1 - depth)
    fine = jnp.where(jax.random.bernoulli(end_key, end_share, shape), end, fine)
  if clear_share:
    chosen, noisy, pure = _alternating(
      jax.random.fold_in(key, 3), shape, clear_share
    )
    clear = chosen & ~noisy
    fine = jnp.where(clear, max_steps - 1 - fine // 8, fine)
    fine = jnp.where(chosen & pure, 0, fine)
    # On a coarse grid there is hardly a clear level.
    step = jnp.where(clear, last, step)
  drop = last - step
  return Levels(
    signal_index=jnp.left_shift(jnp.right_shift(fine, drop), drop),
    step_index=step,
  )


def _alternating(
  key: Array, shape: tuple[int, int], share: float
) -> tuple[Array, Array, Array]:
  """Draws clips `[B, 1]` that alternate; `[B, T]` noisy frames, and pure ones.

  Pure noise is noisy as well.
  """
  chosen_key, odd_key, noisy_key = jax.random.split(key, 3)
  chosen = jax.random.bernoulli(chosen_key, share, (shape[0], 1))
  begin = jax.random.randint(odd_key, (shape[0], 1), 0, 2)
  odd = (jnp.arange(shape[1])[None] + begin) % 2 == 1
  # Of four frames between two clear ones one is pure noise, and two are noisy.
  kind = jax.random.randint(noisy_key, shape, 0, 4)
  return chosen, odd & (kind < 3), odd & (kind == 0)


def corrupt(
  z1: Array, noise: Array, signal_index: Array, max_steps: int
) -> Array:
  """Returns `z_tau = (1 - tau) noise + tau z1` (section 3.2 of the paper).

  Args:
    z1: `[B, T, N, C]` data.
    noise: `[B, T, N, C]` standard normal.
    signal_index: `[B, T]` or a scalar, in 0..K_max.
    max_steps: K_max.

  Returns:
    `[B, T, N, C]` float32.
  """
  same_shape(z1=z1, noise=noise)
  tau = _per_frame(signal(signal_index, max_steps), z1)
  return (1 - tau) * _f32(noise) + tau * _f32(z1)


def bootstrap_velocity(
  denoise: Denoise, z_tau: Array, levels: Levels, max_steps: int
) -> Array:
  """Computes the velocity that two half steps take together.

  `b1 = (f(z_tau, tau, d/2) - z_tau) / (1 - tau)`,
  `z' = z_tau + b1 d/2`, `b2 = (f(z', tau + d/2, d/2) - z') / (1 - tau - d/2)`,
  target `(b1 + b2) / 2` (equation 7 of the paper). A frame that already has
  the finest step cannot be halved: both passes see it as it is.

  Args:
    denoise: the network; called twice.
    z_tau: `[B, T, N, C]` corrupted latents.
    levels: their levels, `[B, T]`.
    max_steps: K_max.

  Returns:
    `[B, T, N, C]` float32 without gradient, 0 on frames of the finest step.
  """
  last = finest(max_steps)
  z = _f32(z_tau)
  coarse = levels.step_index < last
  half = jnp.minimum(levels.step_index + 1, last)
  # Points of the finest grid in half a step; frames that stay move by none.
  move = jnp.where(coarse, jnp.right_shift(max_steps, half), 0)
  first = _velocity(denoise, z, levels.signal_index, half, max_steps)
  moved = z + first * _per_frame(signal(move, max_steps), z)
  second = _velocity(
    denoise, moved, levels.signal_index + move, half, max_steps
  )
  target = jnp.where(_per_frame(coarse, z), (first + second) / 2, 0.0)
  # The coarse step learns from the finer ones, never the reverse.
  return lax.stop_gradient(target)


def shortcut_losses(
  prediction: Array,
  z1: Array,
  z_tau: Array,
  levels: Levels,
  target_velocity: Array | None,
  max_steps: int,
  low_weight: float = 0.1,
) -> ShortcutLosses:
  """Computes the shortcut forcing loss per frame (equation 7 of the paper).

  Frames of the finest step: `||z1_hat - z1||^2`. Others:
  `(1 - tau)^2 ||(z1_hat - z_tau) / (1 - tau) - target||^2`, computed as
  `||z1_hat - z_tau - (1 - tau) target||^2`, the same without a division. Both
  are means over N and C and both carry the weight `ramp(tau, low_weight)`.

  Args:
    prediction: `[B, T, N, C]` predicted clean latents z1_hat.
    z1: `[B, T, N, C]` clean latents.
    z_tau: `[B, T, N, C]` what the network was given.
    levels: its levels, `[B, T]`.
    target_velocity: `[B, T, N, C]` from `bootstrap_velocity`, or None on a
      step that does not bootstrap: then `bootstrap` is 0 everywhere.
    max_steps: K_max.
    low_weight: of a frame of pure noise, see `ramp`.

  Returns:
    The two losses and the frames they belong to.
  """
  same_shape(prediction=prediction, z1=z1, z_tau=z_tau)
  prediction, z1, z_tau = _f32(prediction), _f32(z1), _f32(z_tau)
  is_flow = levels.step_index == finest(max_steps)
  tau = signal(levels.signal_index, max_steps)
  goal = z1
  if target_velocity is not None:
    same_shape(prediction=prediction, target_velocity=target_velocity)
    ahead = z_tau + _per_frame(1 - tau, z1) * _f32(target_velocity)
    goal = jnp.where(_per_frame(is_flow, z1), z1, ahead)
  error = jnp.mean(jnp.square(prediction - goal), axis=(-2, -1))
  error = ramp(tau, low_weight) * error
  bootstrap = jnp.zeros_like(error)
  if target_velocity is not None:
    bootstrap = jnp.where(is_flow, 0.0, error)
  return ShortcutLosses(
    flow=jnp.where(is_flow, error, 0.0), bootstrap=bootstrap, is_flow=is_flow
  )


def sampling_levels(steps: int, max_steps: int) -> tuple[np.ndarray, int]:
  """Lists the levels at which a sampler of K = `steps` calls the denoiser.

  Args:
    steps: K, a power of two in 1..`max_steps`.
    max_steps: K_max.

  Returns:
    `[K]` int32 signal indices, of tau = s / K for s = 0..K-1, and the step
    index log2(K), the same for all.

  Raises:
    ValueError: unless `steps` is a power of two within range.
  """
  finest(max_steps)
  if not 1 <= steps <= max_steps or steps & (steps - 1):
    raise ValueError(
      f'steps = {steps}: must be a power of two from 1 to {max_steps}'
    )
  stride = max_steps // steps
  return np.arange(0, max_steps, stride, dtype=np.int32), finest(steps)


def euler_step(
  z: Array,
  clean: Array,
  signal_index: Array,
  step_index: Array,
  max_steps: int,
) -> Array:
  """Moves `z` one step: `z + (clean - z) d / (1 - tau)`.

  Written as a weighted mean, so that the last step (tau = 1 - d) returns
  `clean` to the bit.

  Args:
    z: `[B, T, N, C]` at level tau.
    clean: `[B, T, N, C]` the denoiser's prediction from `z`.
    signal_index: `[B, T]` or a scalar, the level of `z`, below K_max.
    step_index: `[B, T]` or a scalar, log2(1/d), with tau + d <= 1.
    max_steps: K_max.

  Returns:
    `[B, T, N, C]` float32 at level tau + d.
  """
  same_shape(z=z, clean=clean)
  left = 1 - signal(signal_index, max_steps)
  share = _per_frame(step_size(step_index) / left, z)
  return (1 - share) * _f32(z) + share * _f32(clean)


def _velocity(
  denoise: Denoise,
  z: Array,
  signal_index: Array,
  step_index: Array,
  max_steps: int,
) -> Array:
  """Returns `(f(z, tau, d) - z) / (1 - tau)`, `[B, T, N, C]` float32."""
  clean = _f32(denoise(z, signal_index, step_index))
  same_shape(z=z, clean=clean)
  return (clean - z) / _per_frame(1 - signal(signal_index, max_steps), z)


def _per_frame(level: Array, like: Array) -> Array:
  """Appends axes to a `[B, T]` level up to the rank of `like`."""
  missing = like.ndim - level.ndim if level.ndim else 0
  return jnp.expand_dims(level, tuple(range(level.ndim, level.ndim + missing)))


def _f32(x: Array) -> Array:
  return jnp.asarray(x).astype(jnp.float32)
