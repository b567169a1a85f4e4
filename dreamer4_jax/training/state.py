"""The train state that every phase shares, and its one update."""

from __future__ import annotations

from collections.abc import Callable

from flax import struct
import jax
import jax.numpy as jnp
import optax

from dreamer4_jax.config import OptimizerConfig
from dreamer4_jax.models import Params
from dreamer4_jax.objectives import RmsState, rms_init, rms_normalize
from dreamer4_jax.types import Array, PyTree

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
  """

  step: Array
  params: Params
  ema: Params
  frozen: Params
  opt_state: PyTree
  rms: dict[str, RmsState]

  def rooms(self) -> Params:
    """All rooms with the trained parameters."""
    return {**self.frozen, **self.params}


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
  loss_fn: Callable[[Params], tuple[Array, tuple[Metrics, dict]]],
  optimizer: optax.GradientTransformation,
  config: OptimizerConfig,
) -> tuple[TrainState, Metrics]:
  """One gradient step.

  Args:
    state: the state before.
    loss_fn: maps `state.params` to `(loss, (metrics, rms))`.
    optimizer: as given to `make_state`.
    config: for the decay of the parameter average.

  Returns:
    The state after, and metrics with `loss`, `grad_norm`, `update_norm`.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  (loss, (metrics, rms)), grads = grad_fn(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  # Early averages forget the initialisation as fast as they gather data.
  decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
  decay = decay if config.ema_decay else 0.0
  ema = jax.tree.map(
    lambda a, b: decay * a + (1 - decay) * b, state.ema, params
  )
  state = state.replace(
    step=state.step + 1, params=params, ema=ema, opt_state=opt_state, rms=rms
  )
  return state, {
    **metrics,
    'loss': loss,
    'grad_norm': optax.tree.norm(grads),
    'update_norm': optax.tree.norm(updates),
  }


def masked_mean(x: Array, weight: Array) -> Array:
  """Weighted mean over all axes; 0 where nothing has weight."""
  weight = jnp.broadcast_to(weight, x.shape).astype(jnp.float32)
  return (x * weight).sum() / jnp.maximum(weight.sum(), 1e-6)
