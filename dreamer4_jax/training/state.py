"""The train state that every phase shares, and its one update."""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from flax import struct
import jax
import jax.numpy as jnp
import optax

from dreamer4_jax import sharding
from dreamer4_jax.config import PhaseConfig
from dreamer4_jax.models import Params
from dreamer4_jax.objectives import RmsState, rms_init, rms_normalize
from dreamer4_jax.types import Array, Batch, PyTree

Metrics = dict[str, Array]


@struct.dataclass
class TrainState:
  """Everything a phase needs to go on.

  Attributes:
    step: `[]` int32, updates so far.
    params: trained rooms.
    ema: their running average; the same arrays as `params` if it is off.
    frozen: rooms that this phase reads and does not train.
    opt_state: optimizer state.
    rms: running RMS of each loss term.
    skipped: `[]` int32, updates left out since they were not finite.
  """

  step: Array
  params: Params
  ema: Params
  frozen: Params
  opt_state: PyTree
  rms: dict[str, RmsState]
  skipped: Array

  def rooms(self) -> Params:
    """All rooms with the trained parameters."""
    return {**self.frozen, **self.params}


# (params, state, batch, key) -> (loss, (metrics, rms)). The state's own
# parameters are for what is not differentiated.
LossFn = Callable[
  [Params, TrainState, Batch, Array], tuple[Array, tuple[Metrics, dict]]
]


def make_state(
  params: Params,
  frozen: Params,
  optimizer: optax.GradientTransformation,
  terms: tuple[str, ...],
) -> TrainState:
  """Returns the state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema=jax.tree.map(jnp.copy, params),
    frozen=frozen,
    opt_state=optimizer.init(params),
    rms={term: rms_init() for term in terms},
    skipped=jnp.zeros((), jnp.int32),
  )


def normalize_losses(
  losses: dict[str, Array],
  rms: dict[str, RmsState],
  active: dict[str, Array],
) -> tuple[dict[str, Array], dict[str, RmsState]]:
  """Divides each term by its running RMS; terms without data stay still."""
  scaled, new = {}, {}
  for term, loss in losses.items():
    scaled[term], new[term] = rms_normalize(
      loss, rms[term], active=active.get(term)
    )
  return scaled, new


def update(
  state: TrainState,
  batch: Batch,
  key: Array,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  phase: PhaseConfig,
) -> tuple[TrainState, Metrics]:
  """One gradient step; none if the loss or the gradient is not finite.

  Args:
    state: the state before.
    batch: of this step.
    key: all randomness.
    loss_fn: of `state.params`.
    optimizer: as given to `make_state`.
    phase: for the decay of the parameter average and `accumulate`.

  Returns:
    The state after, and metrics with `loss`, the norms of gradient and update,
    also by room, and `skipped`, 1 if there was no update.
  """
  (loss, (metrics, rms)), grads = _gradients(
    state, batch, key, loss_fn, phase.accumulate
  )
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  # Early averages forget the initialisation as fast as they gather data.
  limit = phase.optimizer.ema_decay
  decay = jnp.minimum(limit, (1 + state.step) / (10 + state.step))
  decay = decay if limit else 0.0
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
    for room in grads:
      metrics[f'{room}/grad_norm'] = optax.tree.norm(grads[room])
      metrics[f'{room}/update_norm'] = optax.tree.norm(updates[room])
  return state, metrics


def _gradients(
  state: TrainState, batch: Batch, key: Array, loss_fn: LossFn, parts: int
) -> tuple[tuple[Array, tuple[Metrics, dict]], Params]:
  """Loss and gradient; means over `parts` of the batch, one after another.

  Each device gives a share of its own rows to every part.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  if parts == 1:
    return grad_fn(state.params, state, batch, key)
  devices = sharding.batch_shards()
  split = lambda x: rearrange(
    x, '(d n b) ... -> n (d b) ...', d=devices, n=parts
  )
  own = jax.tree.map(split, batch)
  keys = jax.random.split(key, parts)

  def add(total: PyTree, part: tuple[Batch, Array]) -> tuple[PyTree, None]:
    found = grad_fn(state.params, state, *part)
    return jax.tree.map(lambda a, b: a + b / parts, total, found), None

  one = jax.tree.map(lambda x: x[0], (own, keys))
  shapes = jax.eval_shape(grad_fn, state.params, state, *one)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(add, zeros, (own, keys))[0]


def masked_mean(x: Array, weight: Array) -> Array:
  """Weighted mean over all axes; 0 where nothing has weight."""
  weight = jnp.broadcast_to(weight, x.shape).astype(jnp.float32)
  return (x * weight).sum() / jnp.maximum(weight.sum(), 1e-6)
