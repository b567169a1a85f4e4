"""The policies of a trained run, played on the same episodes and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from dreamer4_jax import checkpoint
from dreamer4_jax.config import Config, Stages, require
from dreamer4_jax.envs import Environment
from dreamer4_jax.evals.closed_loop import (
  Episodes,
  Evaluator,
  best_policy,
  has_events,
  places,
  random_agent,
  streaming_agent,
  streaming_memory,
)
from dreamer4_jax.evals.statistics import (
  compare_policies,
  compare_steps,
  paired_difference,
)
from dreamer4_jax.models import Params, World

RANDOM = 'random'
"""Name of the policy that draws actions uniformly."""


@dataclasses.dataclass(frozen=True)
class Policy:
  """A trained policy, and what it pursues.

  Attributes:
    params: parameters by module, the policy's own as `policy`.
    prompt: id of the prompt that it follows throughout; None for that of the
      config.
  """

  params: Params
  prompt: int | None = None


def load_policies(
  run_dir: str | pathlib.Path, config: Config
) -> dict[str, Policy]:
  """Loads all trained policies of a run, clones first.

  Args:
    run_dir: run directory.
    config: of the run.

  Returns:
    By name: `bc`, cloned; `bc_all` and `bc_best`, clones without a task, if
    finetuning had baselines; `rl`, after imagination, if that is trained.

  Raises:
    FileNotFoundError: the run has no finetuned phase.
  """
  load = lambda phase: jax.tree.map(
    jax.numpy.asarray, checkpoint.load_params(run_dir, phase)[0]
  )
  if not checkpoint.latest_step(run_dir, 'imagination'):
    cloned, imagined = load('finetune'), None
  else:
    imagined = load('imagination')
    prior = imagined.pop('prior')
    cloned = {**imagined, 'policy': prior}
    if config.phases.imagination.world_rate:
      # The clone is that of finetuning, not what it has become since.
      cloned |= load('finetune')
  policies = {'bc': Policy(cloned)}
  for prompt, name in enumerate(config.baselines, config.num_tasks):
    policies[f'bc_{name}'] = Policy(cloned, prompt)
  if imagined is not None:
    policies['rl'] = Policy(imagined)
  return policies


def play_policies(
  world: World,
  policies: Mapping[str, Policy],
  env: Environment,
  *,
  seeds: Sequence[int],
  key: jax.Array,
  temperatures: Sequence[float] = (1.0,),
  keep_frames: int = 0,
  prompt: Stages | None = None,
) -> dict[str, Episodes]:
  """Plays policies at all temperatures, each on the same episodes.

  Args:
    world: modules.
    policies: by name; all have parameters of the same names.
    env: the environment.
    seeds: one per episode.
    key: of the agents' randomness.
    temperatures: of trained policies; 0 is greedy.
    keep_frames: episodes whose frames are kept.
    prompt: what policies that follow tasks pursue; by default as the config
      says. Its last task makes an episode a success, achieved as often as the
      whole prompt asks for it.

  Returns:
    Episodes by policy, those of random actions first: `rl` at temperature 1,
    `rl_0.5` at another one, `rl_greedy` at 0.
  """
  settings: dict[str, Any] = {
    'seeds': seeds, 'key': key, 'keep_frames': keep_frames
  }  # fmt: skip
  stages = prompt or world.config.stages()
  last = stages[-1][0]
  goal = world.config.tasks[last], sum(n for task, n in stages if task == last)
  random = Evaluator(env, random_agent(world), *goal)
  episodes = {RANDOM: random.play({}, (), label=RANDOM, **settings)}
  streams = places(env, len(seeds))
  agent, _ = streaming_agent(world, streams, tasks=env.spec.tasks)
  trained = Evaluator(env, agent, *goal)  # Compiled once for all of them.
  for kind, policy in policies.items():
    for temperature in temperatures:
      name = tempered(kind, temperature)
      pursued = stages
      if policy.prompt is not None:
        # As many stages, so that one program serves all policies.
        pursued = tuple((policy.prompt, 1) for _ in stages)
      memory = streaming_memory(world, streams, pursued, temperature)
      episodes[name] = trained.play(
        policy.params, memory, label=name, **settings
      )
  return episodes


def tempered(kind: str, temperature: float) -> str:
  """Names a policy: `rl` at temperature 1, `rl_0.5`, `rl_greedy` at 0."""
  if temperature == 1:
    return kind
  return f'{kind}_{temperature:g}' if temperature else f'{kind}_greedy'


def summaries(
  env: Environment, episodes: Mapping[str, Episodes]
) -> dict[str, Any]:
  """Summarises all policies, with the share of episodes with each event."""
  agents: dict[str, Any] = {}
  for name, e in episodes.items():
    rates = {}
    if has_events(env):
      rates = dict(
        zip(env.spec.tasks, e.achieved.mean(axis=0).tolist(), strict=True)
      )
    agents[name] = {**e.summary(), 'events': rates}
  return agents


def outcomes(
  env: Environment, episodes: Mapping[str, Episodes]
) -> dict[str, np.ndarray]:
  """Returns every episode of every policy, as arrays for a file.

  Returns:
    `tasks`, their names; and for each policy `NAME/returns`, `NAME/length`,
    `NAME/achieved`, `NAME/first` and, where it is defined, `NAME/success`, as
    in `Episodes`.
  """
  found = {'tasks': np.array(env.spec.tasks)}
  for name, e in episodes.items():
    for field in ('success', 'returns', 'length', 'achieved', 'first'):
      if getattr(e, field) is not None:
        found[f'{name}/{field}'] = np.asarray(getattr(e, field))
  return found


def compare_achievements(
  env: Environment,
  episodes: Mapping[str, Episodes],
  prompt: Sequence[str],
  agents: Sequence[str] = ('rl',),
) -> dict[str, Any]:
  """Compares agents with every clone by what episodes achieve, paired.

  Args:
    env: the environment.
    episodes: by policy.
    prompt: tasks that are asked for.
    agents: which to compare with all clones.

  Returns:
    `AGENT - CLONE`: `achievements`, of all tasks of the environment, and
    `milestones`, of those of the prompt, each as `paired_difference` of how
    many an episode achieves. Empty where there are no events.
  """
  if not has_events(env):
    return {}
  asked = np.isin(env.spec.tasks, list(prompt))
  found = {}
  for name in agents:
    for other, clone in episodes.items():
      if other.startswith('bc'):
        a, b = episodes[name].achieved, clone.achieved
        found[f'{name} - {other}'] = {
          'achievements': paired_difference(a.sum(axis=1), b.sum(axis=1)),
          'milestones': paired_difference(
            a[:, asked].sum(axis=1), b[:, asked].sum(axis=1)
          ),
        }
  return found


def compare(a: Episodes, b: Episodes) -> dict[str, Any]:
  """Compares two policies by success or return; see `compare_policies`."""
  return compare_policies(a.success, b.success, a.returns, b.returns)


def compare_with_clones(episodes: Mapping[str, Episodes]) -> dict[str, Any]:
  """Compares `rl` at temperature 1 with its clone and with the best clone.

  The best clone is chosen on these very episodes, which favours it.
  """
  clones = {k: e for k, e in episodes.items() if k.startswith('bc')}
  name = best_policy(clones)
  rl, best = episodes['rl'], episodes[name]
  return {
    'best_clone': name,
    'rl_vs_bc': compare(rl, episodes['bc']),
    'rl_vs_best_clone': compare(rl, best),
    'rl_vs_best_clone_steps': compare_steps(
      rl.success, best.success, rl.length, best.length
    ),
  }


def choose(
  policies: Mapping[str, Policy], names: Sequence[str]
) -> dict[str, Policy]:
  """Returns the policies of these names; random ones are always played.

  Raises:
    ValueError: the run has no such policy.
  """
  for name in names:
    require(
      name in policies or name == RANDOM,
      'agents',
      name,
      f'this run has {", ".join([RANDOM, *policies])}',
    )
  return {name: policies[name] for name in names if name != RANDOM}


def against_first(episodes: Mapping[str, Episodes]) -> dict[str, Any]:
  """Compares the first trained policy with every other one, paired."""
  first, *others = [n for n in episodes if n != RANDOM] + [RANDOM]
  found = {}
  for name in others:
    a, b = episodes[first], episodes[name]
    found[f'{first} - {name}'] = {
      **compare(a, b),
      'steps': compare_steps(a.success, b.success, a.length, b.length),
    }
  return found
