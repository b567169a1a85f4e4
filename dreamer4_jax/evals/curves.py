"""Learning curves in the real environment, measured while a run trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

from dreamer4_jax.config import Config, require
from dreamer4_jax.envs import Environment, make_env
from dreamer4_jax.evals.closed_loop import (
  Evaluator,
  has_events,
  places,
  streaming_agent,
)
from dreamer4_jax.models import World
from dreamer4_jax.types import PyTree

SEEDS = 2**30
"""First seed of these episodes, which no dataset and no evaluation has."""
_PLAYED = ('finetune', 'imagination')


def play_along(
  config: Config, episodes: int = 64, env: Environment | None = None
) -> Callable[[str, int, PyTree], Mapping[str, float]]:
  """Plays the policy in the real environment with every checkpoint.

  The curves stand beside the dreamed return in `metrics.jsonl`, TensorBoard and
  `training.png`. They are for looking at: choosing a checkpoint by them would
  be training on the environment, which an offline agent has not.

  Args:
    config: of the run.
    episodes: how many are played, always the same ones, at temperature 1.
    env: where; by default in that of the config.

  Returns:
    What `train(..., look=...)` takes. Means over episodes: `real/return`, and
    where the environment has events `real/success`, `real/achievements`, of all
    tasks, and `real/milestones`, of those of the prompt.

  Raises:
    ValueError: there are no episodes, or no such environment.
  """
  require(episodes >= 1, 'episodes', episodes, 'must be at least 1')
  env = env or make_env(config.env)
  world = World.from_config(config)
  stages = config.stages()
  last = stages[-1][0]
  times = sum(n for task, n in stages if task == last)
  agent, memory = streaming_agent(
    world, places(env, episodes), tasks=env.spec.tasks
  )
  evaluator = Evaluator(env, agent, config.tasks[last], times)
  asked = np.isin(env.spec.tasks, [config.tasks[task] for task, _ in stages])

  def look(phase: str, step: int, state: PyTree) -> Mapping[str, float]:
    if phase not in _PLAYED:
      return {}
    found = evaluator.play(
      {**state.frozen, **state.ema},
      memory,
      seeds=range(SEEDS, SEEDS + episodes),
      key=jax.random.key(config.eval.seed),
      label=f'{phase} {step:,}',
    )
    values = {'real/return': float(found.returns.mean())}
    if has_events(env):
      achieved = found.achieved
      values |= {
        'real/success': float(found.success.mean()),
        'real/achievements': float(achieved.sum(axis=1).mean()),
        'real/milestones': float(achieved[:, asked].sum(axis=1).mean()),
      }
    return values

  return look
