"""What tests of phases' fields share: settings, and the parts of a step."""

import dataclasses
import typing

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

COMMON = dict(batch_size=8, clip_length=5, best_metric='toy/loss')
BASE = {
  'tokenizer': TokenizerPhase(**COMMON),
  'dynamics': DynamicsPhase(**COMMON),
  'finetune': FinetunePhase(**COMMON),
  'imagination': ImaginationPhase(**COMMON),
}


def numeric(cls):
  """Names of the fields that hold a number."""
  kinds = typing.get_type_hints(cls)
  return {
    f.name for f in dataclasses.fields(cls) if kinds[f.name] in (int, float)
  }


@dataclasses.dataclass
class Captured:
  objective: Objective
  optimizer: object
  world: World


def captured(phase, settings, monkeypatch, config=CONFIG):
  """The parts that a phase's train step hands to `update`."""
  config = dataclasses.replace(config, phases=Phases(**{phase: settings}))
  world = world_of(config)
  monkeypatch.setattr(update, 'update', lambda *args: args)
  _, step = phases.init_and_step(world, phase)
  _, _, _, objective, optimizer, given = step(None, None, None)
  assert given is settings
  return Captured(objective, optimizer, world)


def world_of(config):
  """A world that predicts what it is given, with heads without opinion."""
  world = make_fake(lambda z, *_: z, config)
  agent = config.agent

  def head(params, room, h):
    del params
    lead = (*h.shape[:2], agent.distances if room != 'value' else 1)
    if room in ('policy', 'prior'):
      return {
        'move': jnp.zeros((*lead, 3)),
        'keys': jnp.zeros((*lead, 2)),
        'look': jnp.zeros((*lead, 2, 3)),
      }
    width = () if room == 'continuation' else (agent.bins,)
    return jnp.zeros((*lead, *width))

  object.__setattr__(world, 'head', head)
  object.__setattr__(
    world, 'agent_token', lambda params, task: jnp.zeros((*task.shape, 1, 16))
  )
  return world
