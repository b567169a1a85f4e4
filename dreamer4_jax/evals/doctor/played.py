"""Is the agent any good where it goes? Episodes of its own."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.envs import Environment
from dreamer4_jax.evals.doctor.heads import (
  correlation,
  random_surprise,
  reward_timing,
)
from dreamer4_jax.evals.findings import Finding, Scale, judge, note
from dreamer4_jax.models import Params, World, distributions
from dreamer4_jax.objectives import TwoHot
from dreamer4_jax.rollout import (
  act,
  advance,
  init_actor,
  init_prompt,
  own_events,
)
from dreamer4_jax.types import Observation


@dataclasses.dataclass(frozen=True)
class Watched:
  """Episodes of an agent, with what its heads said; `[B, S]`.

  Attributes:
    live: the episode was going on.
    reward: expected reward of the task held, on arriving.
    event: that task's event happened.
    value: of the state, None before imagination.
    entropy: of the policy.
    prior: log-probability of the action under the cloned policy.
    over: the frame is terminal.
    cont: probability that it is not.
  """

  live: np.ndarray
  reward: np.ndarray
  event: np.ndarray
  value: np.ndarray | None
  entropy: np.ndarray
  prior: np.ndarray
  over: np.ndarray
  cont: np.ndarray


def watch(
  world: World,
  params: Params,
  env: Environment,
  seeds: Sequence[int],
  steps: int,
) -> Watched:
  """Lets an agent play, and notes what its heads say.

  Args:
    world: modules.
    params: with `prior`, and with `value` after imagination.
    env: functional environment.
    seeds: one per episode.
    steps: at most.
  """
  agent = world.config.agent
  twohot = TwoHot(agent.bins, agent.bin_limit)
  valued = 'value' in params

  @jax.jit
  def turn(params, env_state, step, actor, prompt, t):
    held = prompt.task()
    events = own_events(world, step.events, env.spec.tasks)
    event = jnp.take_along_axis(events, held[:, None], axis=1)[:, 0]
    # Arriving, the task is still the one that the action was meant for.
    seen = Observation(
      step.frame, jnp.full(step.reward.shape, t == 0), step.vectors
    )
    key = jax.random.fold_in(jax.random.key(5), t)
    _, arrived, _ = act(world, params, actor, seen, held, key)
    prompt = advance(prompt, events)
    action, h, actor = act(world, params, actor, seen, prompt.task(), key)
    now = lambda name: jax.tree.map(
      lambda x: x[:, 0], world.head(params, name, h)
    )
    notes = {
      'reward': twohot.mean(world.head(params, 'reward', arrived)[:, 0]),
      'event': event,
      'entropy': distributions.entropy(now('policy'), world.space),
      'prior': distributions.log_prob(now('prior'), action, world.space),
      'over': step.terminal,
      'cont': jax.nn.sigmoid(world.head(params, 'continuation', arrived)[:, 0]),
      'live': ~(step.terminal | step.timeout),
    }
    if valued:
      notes['value'] = twohot.mean(world.head(params, 'value', h)[:, 0])
    return *env.step(env_state, action), actor, prompt, notes

  keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
  env_state, step = jax.jit(env.reset)(keys)
  actor = init_actor(world, len(seeds))
  prompt = init_prompt(world.config.stages(), len(seeds))
  shown: list[dict[str, Any]] = []
  for t in range(min(steps, env.spec.max_steps)):
    env_state, step, actor, prompt, notes = turn(
      params, env_state, step, actor, prompt, np.uint32(t)
    )
    shown.append(jax.device_get(notes))
    if not shown[-1]['live'].any():
      break
  whole = jax.tree.map(lambda *x: np.stack(x, axis=1), *shown)
  value = whole.pop('value', None)
  # The frame on which an episode ends counts, and none after it.
  live = whole.pop('live')
  first = np.cumsum(~live, axis=1) <= 1
  return Watched(live=first, value=value, **whole)


def judge_episodes(world: World, seen: Watched) -> list[Finding]:
  """Examines an agent in episodes of its own."""
  phase = 'finetune' if seen.value is None else 'imagination'
  live, found = seen.live.copy(), []
  live[:, 0] = False  # Nothing was achieved before.
  reward, event = np.clip(seen.reward, 0, 1)[live], seen.event[live] > 0
  if event.sum() >= 5:
    ratio = reward.sum() / event.sum()
    found += [
      judge(phase, 'events of its own episodes seen by the reward head',
            float(reward[event].mean()), Scale(fine=0.5, wrong=0.2),
            'Where the agent goes, the reward head is blind: it learned from '
            'recordings that look otherwise.'),
      judge(phase, 'rewards without an event, relative to events',
            float(reward[~event].sum() / event.sum()),
            Scale(fine=0.3, wrong=1.0),
            'The reward head pays for phantoms where the agent goes.'),
      note(phase, 'reward predicted, relative to events', f'{ratio:.2f}',
           ratio),
    ]  # fmt: skip
  timing = reward_timing(phase, seen.reward, seen.event > 0, live)
  if timing:
    found.append(timing)
  over = (seen.over & seen.live)[:, 1:]
  if over.sum() >= 5:
    found.append(
      judge(phase, 'continuation where its episodes end',
            float(seen.cont[:, 1:][over].mean()), Scale(fine=0.5, wrong=0.9),
            'The agent does not see its own death coming.')
    )  # fmt: skip
  found.append(
    note(phase, 'entropy of the policy',
         f'{seen.entropy[seen.live].mean():.2f} nats',
         float(seen.entropy[seen.live].mean()))
  )  # fmt: skip
  if seen.value is not None:
    found += _values(world, seen)
    surprise = -float(seen.prior[seen.live].mean())
    found.append(
      judge('imagination', 'surprise of its actions to the clone, relative to '
            'random ones', surprise / random_surprise(world.config),
            Scale(fine=1.5, wrong=3.0),
            'The policy has left the recordings, where the model knows '
            'nothing; raise phases.imagination.beta.')
    )  # fmt: skip
  return found


def _values(world: World, seen: Watched) -> list[Finding]:
  """Compares values with discounted returns up to the next event."""
  phase = world.config.phases.imagination
  paid = seen.event > 0
  returns = np.zeros(paid.shape)
  known = np.zeros(paid.shape, bool)
  after = np.zeros(len(paid))
  sure = np.zeros(len(paid), bool)
  for t in range(paid.shape[1] - 2, -1, -1):
    event, over = paid[:, t + 1], seen.over[:, t + 1] | ~seen.live[:, t + 1]
    after = np.where(event, 1.0, np.where(over, 0.0, phase.gamma * after))
    sure = event | over | sure
    returns[:, t], known[:, t] = after, sure
  # No dream begins on a terminal frame, so that value is not trained.
  use = known & seen.live & ~seen.over
  if use.sum() < 50 or not phase.stop_at_event:
    return []
  value, real = seen.value[use], returns[use]
  slope = float(np.cov(value, real)[0, 1] / max(value.var(ddof=1), 1e-9))
  return [
    judge('imagination', 'value against real returns, correlation',
          correlation(value, real), Scale(fine=0.5, wrong=0.2),
          'Values do not tell good states from bad ones; train longer, or '
          'begin dreams elsewhere (data.lead, relevant_share).'),
    judge('imagination', 'and slope', slope, Scale(fine=0.5, wrong=0.2),
          'Values promise differences that the game does not pay.'),
    note('imagination', 'mean value, and mean real return',
         f'{value.mean():.2f}, {real.mean():.2f}', float(value.mean())),
  ]  # fmt: skip
