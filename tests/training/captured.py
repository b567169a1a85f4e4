"""What tests of fields share: a run, and the parts of a train step."""

import dataclasses

import jax.numpy as jnp

from dreamer4_jax.config import (
  DynamicsPhase,
  FinetunePhase,
  ImaginationPhase,
  Phases,
  TokenizerPhase,
)
from dreamer4_jax.models import World
from dreamer4_jax.training import phases, update
from dreamer4_jax.training.update import Objective
from tests.models.tiny_world import CONFIG
from tests.rollout.fakes import make_fake

COMMON = dict(batch_size=8, clip_lengths=(5,))
BASE = dataclasses.replace(
  CONFIG,
  phases=Phases(
    tokenizer=TokenizerPhase(**COMMON),
    dynamics=DynamicsPhase(**COMMON),
    finetune=FinetunePhase(**COMMON),
    imagination=ImaginationPhase(**COMMON),
  ),
)


def names(group, **configs):
  """Dotted names of all fields of configs, given by their names in a group."""
  lead = f'{group}.' if group else ''
  return {
    f'{lead}{name}.{field.name}'
    for name, config in configs.items()
    for field in dataclasses.fields(config)
  }


@dataclasses.dataclass
class Captured:
  objective: Objective
  optimizer: object
  world: World


def captured(phase, monkeypatch, config=BASE):
  """The parts that a phase's train step hands to `update`."""
  world = world_of(config)
  with monkeypatch.context() as patch:
    patch.setattr(update, 'update', lambda *args: args)
    _, step = phases.init_and_step(world, phase)
    _, _, _, objective, optimizer, given = step(None, None, None)
  assert given is config
  return Captured(objective, optimizer, world)


def world_of(config):
  """A world that predicts what it is given, with heads without opinion.

  It also keeps a record of the frames that it encodes.
  """
  world = make_fake(lambda z, *_: z, config)
  agent, encode = config.agent, world.encode

  def recorded(params, frames, **kwargs):
    world.record.append({'frames': frames})
    return encode(params, frames, **kwargs)

  def head(params, name, h):
    del params
    lead = (*h.shape[:2], agent.distances if name != 'value' else 1)
    if name in ('policy', 'prior'):
      return {
        'move': jnp.zeros((*lead, 3)),
        'keys': jnp.zeros((*lead, 2)),
        'look': jnp.zeros((*lead, 2, 3)),
      }
    width = () if name == 'continuation' else (agent.bins,)
    return jnp.zeros((*lead, *width))

  object.__setattr__(world, 'encode', recorded)
  object.__setattr__(world, 'head', head)
  object.__setattr__(
    world, 'agent_token', lambda params, task: jnp.zeros((*task.shape, 1, 16))
  )
  return world
