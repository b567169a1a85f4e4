"""Worlds whose dynamics is a known function, and that keep a record."""

import dataclasses
import functools

import jax.numpy as jnp

from dreamer4_jax.models import World, dynamics_cache
from dreamer4_jax.models.dynamics import DynamicsOutput
from dreamer4_jax.nn import KeyValues
from tests.models.tiny_world import CONFIG, random_tokens


@dataclasses.dataclass(frozen=True)
class FakeWorld(World):
  """Calls `predict(z, levels)` instead of the dynamics.

  The tokens of a clip are `random_tokens(5, ...)`, whatever the frames.

  The agent state is the mean of z; what goes into the cache is that of every
  channel. Run it under `jax.disable_jit()` to have concrete values on record.
  """

  predict: object = None
  record: list = dataclasses.field(default_factory=list, compare=False)

  def encode(self, params, frames, **kwargs):
    return random_tokens(5, *frames.shape[:2]), None

  def denoise(self, params, z, levels, action, known, *, cache=None, **kwargs):
    call = dict(z=z, levels=levels, action=action, known=known)
    self.record.append(dict(call, cache=cache, **kwargs))
    width = self.config.dynamics.width
    agent = kwargs.get('agent')
    empty = dynamics_cache(self.dynamics, z.shape[0], agent is not None)
    like = empty.entries.keys
    mark = z.mean((2, 3))[None, :, None, None, :, None]
    entry = jnp.broadcast_to(mark, (*like.shape[:3], 1, z.shape[1], 8))
    h = jnp.broadcast_to(z.mean((2, 3))[..., None], (*z.shape[:2], width))
    return DynamicsOutput(
      prediction=self.predict(z, levels),
      agent=None if agent is None else h,
      new=KeyValues(keys=entry, values=entry),
    )


def make_fake(predict, config=CONFIG):
  """Returns a `FakeWorld` of the tiny configuration."""
  world = World.from_config(config)
  fields = {f.name: getattr(world, f.name) for f in dataclasses.fields(World)}
  return FakeWorld(**fields, predict=predict)


@functools.cache
def steps_up_to(limit):
  """Returns 1, 2, 4, ..., limit."""
  return tuple(2**i for i in range(limit.bit_length()))
