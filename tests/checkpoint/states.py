"""Small train states, saved."""

from flax import struct
import jax
import jax.numpy as jnp
import optax

from dreamer4_jax.checkpoint import Best, Checkpoints
from dreamer4_jax.config import Config

BEST = Best(metric='toy/loss', mode='min')


@struct.dataclass
class State:
  params: dict
  opt: tuple
  step: jax.Array


def make_state(value: float, width: int = 3) -> State:
  params = {
    'a': {'w': jnp.full((4, width), float(value))},
    'b': jnp.arange(2.0),
  }
  opt = optax.adam(1e-3).init(params)
  return State(params=params, opt=opt, step=jnp.int32(value))


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def save_two(path):
  with Checkpoints(path, best=BEST) as checkpoints:
    for step, value, data in ((10, 1.0, b'\x00ten'), (20, 2.0, b'\xfftwenty')):
      state = make_state(value)
      checkpoints.save(step, state, {'8': data}, Config(), value=value)


def files(directory):
  return sorted(p for p in directory.rglob('*') if p.is_file())
