"""Shortcut forcing, in one call or in parts.

Arrays have leading axes, each entry of which has a level of its own: `[B, ...]`
for examples, `[B, T, ...]` for the frames of clips. What follows them is data
of any shape. The denoiser is any callable, and is always told the level of its
input. Everything is float32.

Source: section 3.2 of arXiv 2509.24527.
"""

from __future__ import annotations

from collections.abc import Callable

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from dreamer4_jax.config import ForcingConfig
from dreamer4_jax.objectives._shapes import (
  check_lead,
  f32,
  lead_shape,
  like,
  same_shape,
)
from dreamer4_jax.objectives.levels import draw_levels, finest_step_index
from dreamer4_jax.objectives.row_groups import RowGroups, group_size
from dreamer4_jax.types import Array, Levels, PyTree

Denoise = Callable[..., Array]
"""`(z [*lead, ...], levels [*lead], *given) -> clean z`, of the shape of z."""


@struct.dataclass
class ShortcutData:
  """What a denoiser is given, and what it is to learn.

  Attributes:
    z1: `[*lead, ...]` clean data.
    z_tau: `[*lead, ...]` the same, corrupted.
    levels: `[*lead]`, of `z_tau`.
    velocity: `[*lead, ...]` bootstrap target, meaningless where the step is the
      finest; None on a step that does not bootstrap.
  """

  z1: Array
  z_tau: Array
  levels: Levels
  velocity: Array | None


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

  @property
  def loss(self) -> Array:
    """The loss that each has, `[*lead]` float32."""
    return jnp.where(self.is_flow, self.flow, self.bootstrap)


def shortcut_loss(
  denoise: Denoise,
  z1: Array,
  key: Array,
  *given: PyTree,
  max_steps: int,
  lead_axes: int = 1,
  bootstraps: Array | bool = True,
  forcing: ForcingConfig | None = None,
) -> ShortcutLosses:
  """Computes the shortcut forcing losses of a network (equation 7).

  Draws levels and noise, and calls the network three times: on part of the rows
  for either half of a coarse step, and on all rows.

  Args:
    denoise: the network.
    z1: `[*lead, ...]` clean data, of about unit scale.
    key: all randomness.
    *given: passed on to the denoiser, trees of arrays whose leading axis is the
      rows of its input.
    max_steps: K_max, a power of two.
    lead_axes: how many axes `lead` has.
    bootstraps: `[]` bool, whether this step trains coarse steps at all. If not,
      the extra calls are not executed.
    forcing: how levels are drawn and weighted, by default as in the paper, with
      a quarter of coarse steps.

  Returns:
    The losses, whose mean is to be minimised.

  Raises:
    ValueError: a number is out of its range, or a shape is wrong.
  """
  forcing = forcing or ForcingConfig()
  data = prepare_shortcut(
    denoise, z1, key, *given,
    max_steps=max_steps, lead_axes=lead_axes, bootstraps=bootstraps,
    forcing=forcing,
  )  # fmt: skip
  prediction = denoise(data.z_tau, data.levels, *given)
  return prediction_losses(prediction, data, forcing.low_weight)


@struct.dataclass
class Resting:
  """Rows of a batch that do not train the denoiser.

  Attributes:
    trains: `[B]` bool, true for the other rows.
    levels: at which they rest, one for all or `[*lead]`.
    rows_per_group: rows of which one bootstraps; a divisor of the rows.
  """

  trains: Array
  levels: Levels
  rows_per_group: int = struct.field(pytree_node=False)


def prepare_shortcut(
  denoise: Denoise,
  z1: Array,
  key: Array,
  *given: PyTree,
  max_steps: int,
  lead_axes: int = 1,
  bootstraps: Array | bool = True,
  forcing: ForcingConfig | None = None,
  resting: Resting | None = None,
) -> ShortcutData:
  """Does all of `shortcut_loss` that comes before the pass with a gradient.

  One row of each group of neighbours takes part in the extra calls. If groups
  are too small for `forcing.bootstrap_share`, each frame of that row draws a
  coarse step with a probability that makes up for it.

  Args:
    denoise: as in `shortcut_loss`.
    z1: likewise.
    key: likewise.
    *given: likewise.
    max_steps: likewise.
    lead_axes: likewise.
    bootstraps: likewise.
    forcing: likewise; its shares are of the rows that train.
    resting: rows that do not train, by default none.

  Returns:
    What the denoiser is to be given next, and what it is to learn.

  Raises:
    ValueError: a number is out of its range, or a shape is wrong.
  """
  lead = lead_shape(lead_axes, z1=z1)
  forcing = forcing or ForcingConfig()
  _check_given(given, lead[0])
  level_key, noise_key, row_key = jax.random.split(key, 3)
  if resting is None:
    trains = jnp.ones(lead[:1], bool)
    groups = RowGroups.of(trains, group_size(lead[0], forcing.bootstrap_share))
  else:
    trains = resting.trains
    groups = RowGroups.of(trains, resting.rows_per_group)
  chosen = groups.put(groups.take(trains))
  wanted = forcing.bootstrap_share * trains.sum()
  probability = wanted / jnp.maximum(chosen.sum(), 1)
  drawn = jax.random.bernoulli(row_key, probability, lead)
  coarse = like(chosen, drawn) & drawn & bootstraps
  levels = draw_levels(
    level_key, lead, coarse, max_steps, forcing.end_share, forcing.clear_share
  )
  if resting is not None:
    levels = jax.tree.map(
      lambda own, other: jnp.where(like(trains, own), own, other),
      levels,
      resting.levels,
    )
  z_tau = corrupt(z1, jax.random.normal(noise_key, z1.shape), levels)
  velocity = None
  if bootstraps is not False:
    rows = groups.take((z_tau, levels, *given))
    find = lambda rows: bootstrap_velocity(denoise, *rows)
    none = lambda rows: jnp.zeros_like(rows[0])
    sure = bootstraps is True
    found = find(rows) if sure else lax.cond(bootstraps, find, none, rows)
    velocity = groups.put(found)
  return ShortcutData(z1=z1, z_tau=z_tau, levels=levels, velocity=velocity)


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
  check_lead(levels, z1=z1)
  tau = like(levels.signal_level, z1)
  return (1 - tau) * f32(noise) + tau * f32(z1)


def bootstrap_velocity(
  denoise: Denoise, z_tau: Array, levels: Levels, *given: PyTree
) -> Array:
  """Computes the velocity that two half steps take together.

  `b1 = (f(z_tau, tau, d/2) - z_tau) / (1 - tau)`,
  `z' = z_tau + b1 d/2`, `b2 = (f(z', tau + d/2, d/2) - z') / (1 - tau - d/2)`,
  target `(b1 + b2) / 2` (equation 7 of the paper). The finest step cannot be
  halved: both passes see such entries as they are.

  Args:
    denoise: the network; called twice.
    z_tau: `[*lead, ...]` corrupted data.
    levels: `[*lead]`, of `z_tau`.
    *given: passed on to the denoiser.

  Returns:
    `[*lead, ...]` float32 without gradient, 0 where the step is the finest.
  """
  check_lead(levels, z_tau=z_tau)
  last, max_steps = finest_step_index(levels.max_steps), levels.max_steps
  z = f32(z_tau)
  coarse = levels.step_index < last
  half = levels.replace(step_index=jnp.minimum(levels.step_index + 1, last))
  # Points of the finest grid in half a step; 0 where the step is the finest.
  move = jnp.where(coarse, jnp.right_shift(max_steps, half.step_index), 0)
  first = _velocity(denoise, z, half, given)
  moved = z + first * like(move.astype(jnp.float32) / max_steps, z)
  half = half.replace(signal_index=half.signal_index + move)
  second = _velocity(denoise, moved, half, given)
  target = jnp.where(like(coarse, z), (first + second) / 2, 0.0)
  # The coarse step learns from the finer ones, never the reverse.
  return lax.stop_gradient(target)


def prediction_losses(
  prediction: Array, data: ShortcutData, low_weight: float = 0.1
) -> ShortcutLosses:
  """Compares a prediction with what was to be learned (equation 7).

  With the finest step: `||z1_hat - z1||^2`. Otherwise:
  `(1 - tau)^2 ||(z1_hat - z_tau) / (1 - tau) - target||^2`, computed as
  `||z1_hat - z_tau - (1 - tau) target||^2`, the same without a division. Both
  are means over the trailing axes and carry the weight `ramp(tau, low_weight)`.

  Args:
    prediction: `[*lead, ...]` predicted clean data z1_hat.
    data: what it was predicted from.
    low_weight: of pure noise, see `ramp`.

  Returns:
    The two losses, and where each applies; without a bootstrap target
    `bootstrap` is 0 everywhere.
  """
  levels, velocity = data.levels, data.velocity
  same_shape(prediction=prediction, z1=data.z1, z_tau=data.z_tau)
  check_lead(levels, prediction=prediction)
  prediction, z1, z_tau = f32(prediction), f32(data.z1), f32(data.z_tau)
  is_flow = levels.step_index == finest_step_index(levels.max_steps)
  tau = levels.signal_level
  goal = z1
  if velocity is not None:
    same_shape(prediction=prediction, velocity=velocity)
    ahead = z_tau + like(1 - tau, z1) * f32(velocity)
    goal = jnp.where(like(is_flow, z1), z1, ahead)
  trailing = tuple(range(tau.ndim, z1.ndim))
  error = jnp.mean(jnp.square(prediction - goal), axis=trailing)
  error = ramp(tau, low_weight) * error
  bootstrap = jnp.zeros_like(error)
  if velocity is not None:
    bootstrap = jnp.where(is_flow, 0.0, error)
  return ShortcutLosses(
    flow=jnp.where(is_flow, error, 0.0), bootstrap=bootstrap, is_flow=is_flow
  )


def ramp(signal_level: Array, low: float = 0.1) -> Array:
  """Returns the loss weight `(1 - low) tau + low`.

  Args:
    signal_level: tau.
    low: weight of pure noise; 0.1 in the paper (section 3.2).
  """
  return (1 - low) * signal_level + low


def _velocity(
  denoise: Denoise, z: Array, levels: Levels, given: tuple[PyTree, ...]
) -> Array:
  """Returns `(f(z, tau, d) - z) / (1 - tau)`, float32."""
  clean = f32(denoise(z, levels, *given))
  same_shape(z=z, clean=clean)
  return (clean - z) / like(1 - levels.signal_level, z)


def _check_given(given: tuple[PyTree, ...], rows: int) -> None:
  """Raises `ValueError` unless all arrays lead with the rows."""
  for x in jax.tree.leaves(given):
    if jnp.shape(x)[:1] != (rows,):
      raise ValueError(
        f'what is given has an array of shape {jnp.shape(x)}: must lead with '
        f'the {rows} rows of z1; let denoise itself hold what all rows share'
      )
