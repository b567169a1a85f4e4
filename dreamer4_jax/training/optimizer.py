"""Optimizers and the learning-rate schedule; all from optax."""

from __future__ import annotations

from collections.abc import Mapping
import functools

import jax
import optax

from dreamer4_jax.config import Config, OptimizerConfig
from dreamer4_jax.types import PyTree

FINAL_SCALE = 0.1
"""Learning rate at the end, relative to the peak."""


def make_schedule(
  config: OptimizerConfig, peak: float, steps: int
) -> optax.Schedule:
  """Returns linear warm-up, a plateau, and linear decay over `steps`."""
  warmup = min(config.warmup_steps, steps // 2)
  decay = min(round(config.decay_share * steps), steps - warmup)
  pieces = [
    optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup, 1)),
    optax.constant_schedule(peak),
  ]
  if not decay:
    # So that runs which differ in their number of steps share one program.
    return optax.join_schedules(pieces, [warmup])
  last = optax.linear_schedule(peak, peak * FINAL_SCALE, decay)
  return optax.join_schedules([*pieces, last], [warmup, steps - decay])


def make_optimizer(
  run: Config, phase: str, rates: Mapping[str, float] | None = None
) -> optax.GradientTransformation:
  """Returns the clipped optimizer of a phase.

  Args:
    run: its groups `optimizer` and `phases`.
    phase: one of `config.PHASES`.
    rates: learning rates of some modules, relative to that of the others.
  """
  config, settings = run.optimizer, getattr(run.phases, phase)
  schedule = make_schedule(config, settings.learning_rate, settings.steps)
  if phase in config.muon:
    update = optax.contrib.muon(
      schedule,
      weight_decay=config.weight_decay,
      adam_b1=config.betas[0],
      adam_b2=config.betas[1],
      muon_weight_dimension_numbers=_muon_dimensions,
      # Updates as large as Adam's, so that one learning rate serves both.
      consistent_rms=0.2,
    )
  else:
    update = optax.adamw(
      schedule,
      b1=config.betas[0],
      b2=config.betas[1],
      weight_decay=config.weight_decay,
      mask=_matrices,
    )
  scales = [
    optax.masked(optax.scale(rate), functools.partial(_within, module))
    for module, rate in (rates or {}).items()
  ]
  clip = optax.clip_by_global_norm(config.clip_norm)
  return optax.chain(clip, update, *scales)


def _within(module: str, params: PyTree) -> PyTree:
  return {
    name: jax.tree.map(lambda _, own=name == module: own, tree)
    for name, tree in params.items()
  }


def _is_kernel(path: tuple) -> bool:
  return any(getattr(k, 'key', None) == 'kernel' for k in path)


def _is_scanned(path: tuple) -> bool:
  return any(getattr(k, 'key', None) == 'periods' for k in path)


def _matrices(params: PyTree) -> PyTree:
  """True for kernels: norms and embeddings do not decay."""
  return jax.tree.map_with_path(lambda path, _: _is_kernel(path), params)


def _muon_dimensions(params: PyTree) -> PyTree:
  """Muon for the transformer's kernels, Nesterov Adam for the rest.

  A kernel of the scan is `[periods, in, *out]`: the first axis is a batch of
  matrices.
  """

  def dimensions(path, x):
    if not (_is_kernel(path) and _is_scanned(path)):
      return None
    return optax.contrib.MuonDimensionNumbers(
      reduction_axis=1, output_axis=tuple(range(2, x.ndim))
    )

  return jax.tree.map_with_path(dimensions, params)
