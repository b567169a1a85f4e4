"""The train state that every phase shares."""

from __future__ import annotations

from flax import struct
import jax
import jax.numpy as jnp
import optax

from dreamer4_jax.models import Params
from dreamer4_jax.objectives import RmsState, rms_init
from dreamer4_jax.types import Array, PyTree


@struct.dataclass
class TrainState:
  """Everything a phase needs to continue.

  Attributes:
    step: `[]` int32, updates so far.
    params: trained parameters, by module.
    ema: their running average; equal to `params` if it is off.
    frozen: parameters that this phase reads but does not train.
    opt_state: optimizer state.
    rms: running RMS of each loss term.
    skipped: `[]` int32, updates skipped because they were not finite.
  """

  step: Array
  params: Params
  ema: Params
  frozen: Params
  opt_state: PyTree
  rms: dict[str, RmsState]
  skipped: Array

  def all_params(self) -> Params:
    """All parameters, trained and frozen."""
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
    skipped=jnp.zeros((), jnp.int32),
  )
