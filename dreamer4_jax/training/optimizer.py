"""Optimizers and the learning-rate schedule; all from optax."""

from __future__ import annotations

from collections.abc import Mapping
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dreamer4_jax.config import Config, OptimizerConfig
from dreamer4_jax.types import PyTree

_LARGE = 2**20  # Numbers of a kernel that is orthogonalised by itself.
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
    update = _muon(config, schedule)
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


def _muon(
  config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """`optax.contrib.muon`, with matrices of one shape as one batch.

  Muon for the transformer's kernels, Nesterov Adam for the rest. Small matrices
  one by one are hundreds of tiny products: a quarter of what a small model's
  step launches on a GPU, and as much of its compilation.
  """
  matrices = optax.chain(
    _batched_muon(),
    # Updates as large as Adam's, so that one learning rate serves both.
    optax.stateless(
      lambda updates, _: jax.tree.map(
        lambda x: 0.2 * max(x.shape[1], math.prod(x.shape[2:])) ** 0.5 * x,
        updates,
      )
    ),
    optax.add_decayed_weights(config.weight_decay),
    optax.scale_by_learning_rate(schedule),
  )
  rest = optax.nadamw(
    schedule, b1=config.betas[0], b2=config.betas[1], weight_decay=0.0
  )
  label = lambda path, _: (
    'muon' if _is_kernel(path) and _is_scanned(path) else 'adam'
  )
  return optax.partition(
    {'muon': matrices, 'adam': rest},
    functools.partial(jax.tree.map_with_path, label),
  )


def _batched_muon() -> optax.GradientTransformation:
  """Momentum of each kernel, orthogonalised together with others.

  A kernel of the scan is `[periods, in, *out]`: the first axis is a batch of
  matrices.
  """
  # No step of Newton-Schulz: it only divides the momentum by its norm.
  momentum = optax.contrib.scale_by_muon(
    ns_steps=0, weight_dimension_numbers=_matrices_of
  )
  # No momentum: it only orthogonalises.
  orthogonal = optax.contrib.scale_by_muon(
    beta=0.0, nesterov=False, weight_dimension_numbers=_matrices_of
  )

  def update(updates, state, params=None):
    updates, state = momentum.update(updates, state, params)
    leaves, tree = jax.tree.flatten(updates)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, x in enumerate(leaves):
      shape = (x.shape[1], math.prod(x.shape[2:]))
      # What is large is sharded, and fills a device by itself.
      alone = (i,) if x.size > _LARGE else ()
      groups.setdefault((*shape, *alone), []).append(i)
    for (rows, columns, *_), members in groups.items():
      flat = [jnp.reshape(leaves[i], (-1, rows, columns)) for i in members]
      together = jnp.concatenate(flat) if len(flat) > 1 else flat[0]
      found, _ = orthogonal.update(together, orthogonal.init(together))
      ends = np.cumsum([len(x) for x in flat])[:-1]
      parts = jnp.split(found, ends) if len(flat) > 1 else [found]
      for i, part in zip(members, parts, strict=True):
        leaves[i] = jnp.reshape(part, leaves[i].shape)
    return jax.tree.unflatten(tree, leaves), state

  return optax.GradientTransformation(momentum.init, update)


def _matrices_of(tree: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x: optax.contrib.MuonDimensionNumbers(
      reduction_axis=1, output_axis=tuple(range(2, x.ndim))
    ),
    tree,
  )
