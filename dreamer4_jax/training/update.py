"""The one update that all phases share.

A phase says what it learns in two parts: data without a gradient, such as noisy
frames and their targets, and loss terms of the parameters, each a weighted mean
over the data. A batch may then be processed in parts, one after another, to
save memory: means of parts add up to those of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses

from einops import rearrange
import jax
import jax.numpy as jnp
import optax

from dreamer4_jax import sharding
from dreamer4_jax.config import Config
from dreamer4_jax.models import Params
from dreamer4_jax.objectives import Mean, RmsState, rms_normalize
from dreamer4_jax.training.state import TrainState
from dreamer4_jax.types import Array, PyTree

Metrics = dict[str, Array]
Means = dict[str, Mean]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What a phase learns.

  Attributes:
    prepare: `(state, batch, key) -> data`, all randomness included; its arrays
      lead with the batch's rows, and no gradient flows into it.
    terms: `(params, state, data) -> (terms, others)`: loss terms and other
      means of interest, by name. The parameters are those to differentiate;
      what is frozen comes from the state.
    weights: of the terms in the loss.
    plain: terms that are not divided by their running RMS.
    report: `(means of terms and others) -> metrics` by `module/name`.
  """

  prepare: Callable[[TrainState, PyTree, Array], PyTree]
  terms: Callable[[Params, TrainState, PyTree], tuple[Means, Means]]
  weights: Mapping[str, float]
  report: Callable[[dict[str, Array]], Metrics]
  plain: tuple[str, ...] = ()


def in_parts(
  function: Callable[[Array, PyTree], PyTree], rows: PyTree, parts: int
) -> PyTree:
  """Applies a function to a batch in parts, one after another.

  Each device gives a share of its own rows to every part.

  Args:
    function: `(number of the part, rows of the part) -> result`, whose arrays
      lead with the rows.
    rows: tree of arrays `[B, ...]`.
    parts: how many; they divide the rows of a device.

  Returns:
    The results of all rows, in their order.
  """
  if parts == 1:
    return function(jnp.zeros((), jnp.int32), rows)
  devices = sharding.batch_shards()
  found = jax.lax.map(
    lambda part: function(*part), (jnp.arange(parts), _split(rows, parts))
  )
  join = lambda x: rearrange(x, 'n (d b) ... -> (d n b) ...', d=devices)
  return jax.tree.map(join, found)


def _split(rows: PyTree, parts: int) -> PyTree:
  devices = sharding.batch_shards()
  split = lambda x: rearrange(
    x, '(d n b) ... -> n (d b) ...', d=devices, n=parts
  )
  return jax.tree.map(split, rows)


def update(
  state: TrainState,
  batch: PyTree,
  key: Array,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  config: Config,
) -> tuple[TrainState, Metrics]:
  """Takes one gradient step; none if the loss or the gradient is not finite.

  Args:
    state: the state before.
    batch: of this step, arrays `[B, ...]`.
    key: all randomness.
    objective: what is learned.
    optimizer: as given to `make_state`.
    config: for the decay of the parameter average and `accumulate`, the number
      of parts in which the gradient of the whole batch is computed.

  Returns:
    The state after, and metrics with `loss`, the norms of gradient and update,
    also by module, and `skipped`, 1 if there was no update.
  """
  data = jax.lax.stop_gradient(objective.prepare(state, batch, key))
  loss, rms, metrics, grads = _gradients(
    state, data, objective, config.accumulate
  )
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  # Early averages forget the initialisation as fast as they gather data.
  limit = config.optimizer.ema_decay
  decay = jnp.minimum(limit, (1 + state.step) / (10 + state.step))
  ema = jax.tree.map(
    lambda a, b: decay * a + (1 - decay) * b, state.ema, params
  )
  # A choice for each value costs nothing: it is fused into the update.
  old = (state.params, state.ema, state.opt_state, state.rms)
  params, ema, opt_state, rms = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (params, ema, opt_state, rms),
    old,
  )
  state = state.replace(
    step=state.step + 1,
    params=params,
    ema=ema,
    opt_state=opt_state,
    rms=rms,
    skipped=state.skipped + ~finite,
  )
  metrics = {
    **metrics,
    'loss': loss,
    'grad_norm': grad_norm,
    'update_norm': optax.tree.norm(updates),
    'skipped': (~finite).astype(jnp.float32),
    'skipped_total': state.skipped.astype(jnp.float32),
  }
  if len(grads) > 1:
    for module in grads:
      metrics[f'{module}/grad_norm'] = optax.tree.norm(grads[module])
      metrics[f'{module}/update_norm'] = optax.tree.norm(updates[module])
  return state, metrics


def make_step(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  config: Config,
) -> Callable[[TrainState, PyTree, Array], tuple[TrainState, Metrics]]:
  """Returns the pure train step `(state, batch, key) -> (state, metrics)`.

  Arguments as in `update`.
  """

  def step(state: TrainState, batch: PyTree, key: Array):
    return update(state, batch, key, objective, optimizer, config)

  return step


def total(terms: Means, weights: Mapping[str, float] | None = None) -> Array:
  """Adds loss terms up, as they are.

  A train step also divides most terms by their running RMS, see `combine`.

  Args:
    terms: means, as the loss of a phase returns them.
    weights: of the terms; 1 for those that are not named.

  Returns:
    `[]` float32.
  """
  weights = weights or {}
  return sum(weights.get(k, 1.0) * mean.value() for k, mean in terms.items())


def combine(
  terms: Means, rms: Mapping[str, RmsState], objective: Objective
) -> tuple[Array, dict[str, RmsState]]:
  """Returns the loss, and the running RMS of all terms, updated with these.

  A term is divided by its running RMS and weighted. One without data adds
  nothing and leaves its statistics alone.
  """
  loss, new = jnp.zeros(()), dict(rms)
  for name, mean in terms.items():
    value = mean.value()
    if name not in objective.plain:
      value, new[name] = rms_normalize(value, rms[name], active=mean.weight > 0)
    loss += objective.weights[name] * value
  return loss, new


def _gradients(
  state: TrainState, data: PyTree, objective: Objective, parts: int
) -> tuple[Array, dict[str, RmsState], Metrics, Params]:
  """Returns loss, running RMS, metrics and gradient of the whole batch."""

  def report(terms: Means, others: Means) -> Metrics:
    return objective.report(
      {k: m.value() for k, m in {**terms, **others}.items()}
    )

  if parts == 1:

    def loss_fn(params):
      terms, others = objective.terms(params, state, data)
      loss, rms = combine(terms, state.rms, objective)
      return loss, (rms, report(terms, others))

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (rms, metrics)), grads = grad_fn(state.params)
    return loss, rms, metrics, grads

  pieces = _split(data, parts)

  def add_up(function: Callable[[PyTree], PyTree]) -> PyTree:
    """Sum of a function over the parts."""
    first = jax.tree.map(lambda x: x[0], pieces)
    shapes = jax.eval_shape(function, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    add = lambda so_far, part: (
      jax.tree.map(jnp.add, so_far, function(part)),
      None,
    )
    return jax.lax.scan(add, zeros, pieces)[0]

  # The loss is a function of the terms' totals. Its slopes there say how much
  # the gradient of each counts, and are known once all parts have been seen:
  # with several terms, from a forward pass before; with one, scaling waits.
  def loss_of(totals, terms):
    own = {k: m.replace(total=totals[k]) for k, m in terms.items()}
    return combine(own, state.rms, objective)

  def slopes_of(terms):
    totals = {k: m.total for k, m in terms.items()}
    return jax.value_and_grad(loss_of, has_aux=True)(totals, terms)

  alone = len(objective.weights) == 1
  if alone:
    slopes = {name: jnp.ones(()) for name in objective.weights}
  else:
    terms = add_up(lambda part: objective.terms(state.params, state, part)[0])
    (loss, rms), slopes = slopes_of(terms)

  def part_of(part):
    def weighted(params):
      terms, others = objective.terms(params, state, part)
      return sum(slopes[k] * m.total for k, m in terms.items()), (terms, others)

    return jax.grad(weighted, has_aux=True)(state.params)

  grads, (terms, others) = add_up(part_of)
  if alone:
    (loss, rms), slopes = slopes_of(terms)
    (slope,) = slopes.values()
    grads = jax.tree.map(lambda g: g * slope, grads)
  return loss, rms, report(terms, others), grads
