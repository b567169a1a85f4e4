"""A phase that takes no time: a linear model on random clips."""

import json

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dreamer4_jax import sharding
from dreamer4_jax.config import (
  Config,
  DataConfig,
  MeshConfig,
  Phases,
  SavingConfig,
  TokenizerPhase,
)
from dreamer4_jax.training import loop

CONFIG = Config(
  seed=3,
  phases=Phases(
    tokenizer=TokenizerPhase(steps=14, batch_size=8, clip_lengths=(2, 4))
  ),
  data=DataConfig(long_every=3),
  saving=SavingConfig(log_every=2, checkpoint_every=5),
)
STEPS = 'phases.tokenizer.steps'
EVERY_LINE = {'saving.log_every': 1}
OPTIMIZER = optax.adam(0.05)


@struct.dataclass
class State:
  params: dict
  opt: optax.OptState


class Interrupted(Exception):
  pass


class Clips:
  """Random clips by number; stops the run when it comes to `stop_at`."""

  def __init__(self, length, stop_at=None, value=None):
    self.length = length
    self.next = 0
    self.stop_at = stop_at
    self.value = value
    self.served = []

  def __next__(self):
    if self.next == self.stop_at:
      raise Interrupted
    rng = np.random.default_rng((self.length, self.next))
    self.served.append(self.next)
    self.next += 1
    x = rng.normal(size=(8, self.length, 8)).astype(np.float32)
    return {'x': x if self.value is None else np.full_like(x, self.value)}

  def get_state(self):
    return str(self.next).encode()

  def set_state(self, state):
    self.next = int(state)


def init_state():
  init = nn.with_logical_partitioning(nn.initializers.normal(), ('embed',))
  params = {'w': init(jax.random.key(1), (8,)), 'b': jnp.zeros(())}
  return State(params=params, opt=OPTIMIZER.init(params))


def step_fn(state, batch, key):
  noise = jax.random.normal(key, batch['x'].shape)

  def loss_fn(params):
    y = jnp.einsum('btd,d->bt', batch['x'] + 0.1 * noise, params['w'])
    return jnp.square(y + params['b'] - 1.0).mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params)
  updates, opt = OPTIMIZER.update(grads, state.opt)
  params = optax.apply_updates(state.params, updates)
  metrics = {
    'loss': loss,
    'toy/noise': noise.mean(),
    'toy/frames': jnp.float32(batch['x'].shape[1]),
  }
  return State(params=params, opt=opt), metrics


def make_mesh(fsdp, data=1):
  count = fsdp * data
  return sharding.make_mesh(
    MeshConfig(data=data, fsdp=fsdp), jax.devices()[:count]
  )


def run(
  directory,
  fields=(),
  iterators=None,
  *,
  phase='tokenizer',
  step_fn=step_fn,
  mesh=None,
  look=None,
  **others,
):
  """Trains a phase of `CONFIG` with other fields, by dotted name."""
  return loop.run_phase(
    phase,
    CONFIG.edit(dict(fields)),
    directory,
    loop.Work(
      init_state=init_state,
      step_fn=step_fn,
      iterators=iterators or {2: Clips(2), 4: Clips(4)},
      look=look,
    ),
    mesh=mesh or make_mesh(2, data=2),
    progress=False,
    **others,
  )


def lines(directory, phase='tokenizer'):
  text = (directory / phase / 'metrics.jsonl').read_text()
  found = [json.loads(line) for line in text.splitlines()]
  for line in found:
    line.pop('time')
  return found
