"""Levels of shortcut forcing, as training draws them.

`dreamer4_jax.types.Levels` says what a level is. Source: equation 4 of arXiv
2509.24527, whose "1/d" is a slip: tau is a multiple of d.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamer4_jax.types import Array, Levels


def finest_step_index(max_steps: int) -> int:
  """Returns the step index of d = 1 / `max_steps`, log2(`max_steps`).

  Raises:
    ValueError: unless `max_steps` is a power of two.
  """
  if max_steps < 1 or max_steps & (max_steps - 1):
    raise ValueError(f'max_steps = {max_steps}: must be a power of two')
  return int(max_steps).bit_length() - 1


def draw_levels(
  key: Array,
  shape: tuple[int, ...],
  coarse: Array,
  max_steps: int,
  end_share: float = 0.0,
  clear_share: float = 0.0,
) -> Levels:
  """Draws a step size and a signal level for each example or frame.

  Where `coarse`, the step index is uniform over 0..log2(K_max), the finest
  included; elsewhere it is the finest. Given d, tau is uniform over
  {0, d, ..., 1-d}.

  A share of the frames can be drawn from the ends: from the lowest or the
  highest eighth of the grid, each equally likely. What an action does is
  learned from a noisy frame after a clear one, which independent uniform levels
  seldom yield: the lowest eighth follows the highest in 1 of 64 pairs, and in 1
  of 7 pairs with `end_share` = 0.7.

  In a share of the clips every other frame is clear, from the highest eighth of
  the grid; of those in between, three in four are noisy and the rest clear. So
  a noisy frame always follows a clear one, as when sampling. A third of the
  noisy ones is pure noise, where sampling begins; the others are drawn as
  elsewhere, from the ends by `end_share`. Only noisy ones draw a coarse step.

  Args:
    key: PRNG key, used here only.
    shape: `[...]`, such as `(B,)`, or `(B, T)` for clips.
    coarse: bool, broadcast to `shape`.
    max_steps: K_max, a power of two.
    end_share: share of frames from the ends, in [0, 1]; the paper has 0.
    clear_share: share of clips that alternate, in [0, 1]; likewise. The last
      axis is then time.

  Returns:
    Levels of that shape.

  Raises:
    ValueError: `max_steps` is not a power of two, a share does not lie in
      [0, 1], or `clear_share` is positive without a time axis.
  """
  last = finest_step_index(max_steps)
  for name, share in (('end_share', end_share), ('clear_share', clear_share)):
    if not 0 <= share <= 1:
      raise ValueError(f'{name} = {share}: must lie in [0, 1]')
  if clear_share and len(shape) < 2:
    raise ValueError(
      f'clear_share = {clear_share}: needs clips, levels of shape (B, T), not '
      f'{tuple(shape)}; leave it at 0'
    )
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
    # A coarse grid has hardly any clear level.
    step = jnp.where(clear, last, step)
  drop = last - step
  return Levels(
    signal_index=jnp.left_shift(jnp.right_shift(fine, drop), drop),
    step_index=step,
    max_steps=max_steps,
  )


def _alternating(
  key: Array, shape: tuple[int, ...], share: float
) -> tuple[Array, Array, Array]:
  """Draws which clips `[..., 1]` alternate, noisy frames `[..., T]`, pure ones.

  Frames of pure noise count as noisy, too.
  """
  clips = (*shape[:-1], 1)
  chosen_key, odd_key, noisy_key = jax.random.split(key, 3)
  chosen = jax.random.bernoulli(chosen_key, share, clips)
  begin = jax.random.randint(odd_key, clips, 0, 2)
  odd = (jnp.broadcast_to(jnp.arange(shape[-1]), shape) + begin) % 2 == 1
  # Of four frames in between, one is pure noise, two are noisy, one is clear.
  kind = jax.random.randint(noisy_key, shape, 0, 4)
  return chosen, odd & (kind < 3), odd & (kind == 0)
