"""Is the agent any good: heads on recordings, and in episodes of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import Config
from dreamer4_jax.envs import Environment
from dreamer4_jax.evals.doctor.clips import Held, in_pieces, values_of
from dreamer4_jax.evals.findings import Finding, Scale, judge, note
from dreamer4_jax.models import Params, World, distributions
from dreamer4_jax.objectives import TwoHot
from dreamer4_jax.rollout import (
  Replay,
  act,
  advance,
  context_levels,
  context_noise,
  imagine,
  init_actor,
  init_prompt,
  own_events,
)
from dreamer4_jax.types import Array, Batch, Observation

_BLIND = (
  'The reward head cannot tell what an action did: is the event on the frame '
  'that the action leads to, and not on the one before?'
)
_NOISE = (
  'The policy knows no more than how often each action is taken: are the '
  'recordings played at random, or the task labels wrong?'
)


@dataclasses.dataclass(frozen=True)
class Read:
  """What the heads say of clips; `[B, T]`.

  Attributes:
    reward: expected reward of the task held, on arriving at each frame.
    cont: probability that the episode goes on.
    log_prob: of the action taken.
    entropy: of the policy.
  """

  reward: np.ndarray
  cont: np.ndarray
  log_prob: np.ndarray
  entropy: np.ndarray


def read(
  world: World, params: Params, batch: Batch, z: np.ndarray | None = None
) -> Read:
  """Reads the heads on clips at the context level, as when acting.

  Args:
    world: modules.
    params: of finetuning.
    batch: clips, with the tasks that the agent is given.
    z: `[B, T, N_z, C]` tokens to read instead of those of the frames.
  """
  agent = world.config.agent
  twohot = TwoHot(agent.bins, agent.bin_limit)

  @jax.jit
  def run(params: Params, batch: Batch, z: Array | None):
    if z is None:
      z = world.encode_clips(params, batch)
    noise = jax.random.normal(jax.random.key(3), z.shape)
    h = world.denoise(
      params,
      context_noise(world, z, noise),
      context_levels(world, z.shape[:2]),
      batch.prev_action,
      batch.prev_action_mask,
      agent=world.agent_token(params, batch.task),
      segment_ids=batch.segment_ids,
    ).agent
    logits = jax.tree.map(lambda x: x[:, :, 0], world.head(params, 'policy', h))
    return (
      twohot.mean(world.head(params, 'reward', h)[:, :, 0]),
      jax.nn.sigmoid(world.head(params, 'continuation', h)[:, :, 0]),
      distributions.log_prob(logits, batch.action, world.space),
      distributions.entropy(logits, world.space),
    )

  if z is None:
    found = in_pieces(lambda part: run(params, part, None), batch)
  else:
    found = in_pieces(
      lambda part: run(params, part.replace(relevant=None), part.relevant),
      batch.replace(relevant=z),
    )
  return Read(*found)


def reward_of_task(batch: Batch) -> np.ndarray:
  """Reward of the task held at each frame, `[B, T]`."""
  return np.take_along_axis(batch.reward, batch.task[..., None], axis=-1)[
    ..., 0
  ]


def _arriving(batch: Batch) -> Batch:
  """Holds, at a frame, the task that was held at the one before.

  Labels that advance have left a task on the frame of its event.
  """
  task = np.concatenate([batch.task[:, :1], batch.task[:, :-1]], axis=1)
  return batch.replace(task=task)


def finetuned(world: World, params: Params, held: Held) -> list[Finding]:
  """Examines the heads on held-out clips in which tasks are achieved."""
  batch = _arriving(held.batch)
  events = reward_of_task(batch) > 0
  got = read(world, params, batch)
  found = []
  if world.config.tasks != ('reward',):
    found += _rewards(got.reward, events)
    found += _blindness(world, params, batch, events)
  found += _policy(world, params, held)
  over = np.asarray(batch.cont) == 0
  if over.any():
    found.append(
      judge('finetune', 'continuation where an episode ends',
            float(got.cont[over].mean()), Scale(fine=0.5, wrong=0.9),
            'Deaths are rare: raise phases.finetune.context_share, or record '
            'more of them.')
    )  # fmt: skip
  found.append(
    judge('finetune', 'continuation elsewhere', float(got.cont[~over].mean()),
          Scale(fine=0.98, wrong=0.9, digits=3),
          'The model thinks that it dies: horizons become short.')
  )  # fmt: skip
  return found


def _rewards(reward: np.ndarray, events: np.ndarray) -> list[Finding]:
  hit = float(np.clip(reward, 0, 1)[events].mean()) if events.any() else None
  false = float(np.clip(reward, 0, 1)[~events].mean())
  rate = float(events.mean())
  inner = slice(3, reward.shape[1] - 3)
  curve = {}
  for k in (-2, -1, 0, 1, 2):
    moved = np.roll(events, -k, axis=1)[:, inner]
    curve[k] = float(_correlation(reward[:, inner], moved))
  best = max(curve, key=curve.get)
  return [
    judge('finetune', 'reward on the frame of an event', hit,
          Scale(fine=0.5, wrong=0.2), _BLIND),
    judge('finetune', 'reward elsewhere, relative to how often events are',
          false / max(rate, 1e-6), Scale(fine=0.5, wrong=1.0),
          'The reward head pays for what does not happen; see '
          'phases.finetune.context_share.'),
    Finding(
      phase='finetune', name='reward by the step of the event',
      value=float(best), usual='best at +0',
      text=', '.join(f'{k:+d}: {v:.2f}' for k, v in curve.items()),
      verdict='fine' if best == 0 else 'wrong',
      advice='Rewards are read at another frame than events are seen on: they '
      'were recorded early or late.',
    ),
  ]  # fmt: skip


def _blindness(
  world: World, params: Params, batch: Batch, events: np.ndarray
) -> list[Finding]:
  """Dreams one frame ahead to an event: with its own action, and another's."""
  rows, frames = np.nonzero(events)
  keep = frames >= 2
  rows, frames = rows[keep], frames[keep]
  if len(rows) < 8:
    return []
  rows, frames = rows[:128], frames[:128]
  length = min(int(frames.max()), world.config.dynamics.context_length)
  at = frames[:, None] - length + np.arange(length)[None]
  clip = np.maximum(at, 0)

  def cut(x: np.ndarray) -> np.ndarray:
    return x[rows[:, None], clip] if x.ndim > 1 else x[rows]

  past = jax.tree.map(cut, batch)
  # What lies before the clip is a segment of its own, not seen.
  segments = (at >= 0).astype(np.int32)
  past = past.replace(
    segment_ids=segments, cont=np.ones(segments.shape, np.float32)
  )
  own = jax.tree.map(lambda x: x[rows, frames][:, None], batch.prev_action)
  others = jax.tree.map(lambda x: np.roll(x, 1, axis=0), own)
  found = {}
  for name, action in (('own', own), ('other', others)):
    found[name] = float(np.mean(dreamed_reward(world, params, past, action)))
  ratio = found['other'] / max(found['own'], 1e-3)
  return [
    judge('finetune', 'reward dreamed for the action of an event',
          found['own'], Scale(fine=0.4, wrong=0.15), _BLIND),
    judge('finetune', 'and for another action, relative to it', ratio,
          Scale(fine=0.5, wrong=0.8), _BLIND),
  ]  # fmt: skip


def dreamed_reward(
  world: World, params: Params, past: Batch, actions: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Dreams given actions from contexts, and reads the reward of the task held.

  Args:
    world: modules.
    params: of finetuning.
    past: contexts `[B, T, ...]`, without a terminal frame.
    actions: components `[B, H, ...]`.

  Returns:
    `[B, H]` expected reward on arriving at each frame.
  """
  agent = world.config.agent
  twohot = TwoHot(agent.bins, agent.bin_limit)
  steps = world.config.phases.imagination.sampling_steps
  horizon = next(iter(actions.values())).shape[1]

  @jax.jit
  def run(params: Params, past: Batch, actions):
    rollout = imagine(
      world, params, past, jax.random.key(4), policy=Replay(actions),
      horizon=horizon, sampling_steps=steps,
    )  # fmt: skip
    on = lambda x: jnp.repeat(x[:, -1:], horizon, axis=1)
    join = lambda a, b: jnp.concatenate([a, b], axis=1)
    h = world.denoise(
      params,
      rollout.noisy,
      context_levels(world, rollout.noisy.shape[:2]),
      jax.tree.map(join, past.prev_action, actions),
      join(past.prev_action_mask, jnp.ones_like(on(past.prev_action_mask))),
      agent=world.agent_token(params, join(past.task, on(past.task))),
      segment_ids=join(past.segment_ids, on(past.segment_ids)),
    ).agent
    return twohot.mean(world.head(params, 'reward', h)[:, -horizon:, 0])

  return in_pieces(
    lambda part: run(params, part.replace(relevant=None), part.relevant),
    past.replace(relevant=dict(actions)),
  )


def _policy(world: World, params: Params, held: Held) -> list[Finding]:
  """How likely the policy finds the actions of the recordings."""
  batch = held.batch
  got = read(world, params, batch)
  use = np.asarray(batch.cloned)
  if not use.any():
    return []
  nll = -float(got.log_prob[use].mean())
  marginal = _marginal(batch, use, world.config)
  found = [
    judge('finetune', 'information of the policy about actions',
          marginal - nll, Scale(fine=0.15, wrong=0.03, unit=' nats'), _NOISE),
    note('finetune', 'negative log-likelihood of actions',
         f'{nll:.2f} nats, of their frequencies {marginal:.2f}', nll),
  ]  # fmt: skip
  groups = values_of(held.attributes, 'noise')
  if len(set(groups)) > 1:
    parts = []
    for value in sorted(set(groups)):
      own = use & (groups == value)[:, None]
      if own.any():
        parts.append(f'{value or "?"}: {-got.log_prob[own].mean():.2f}')
    found.append(
      note('finetune', 'the same by noise of the player', ', '.join(parts))
    )
  return found


def _marginal(batch: Batch, use: np.ndarray, config: Config) -> float:
  """Negative log-likelihood of actions under their own frequencies."""
  total = 0.0
  for part in config.actions:
    value = np.asarray(batch.action[part.name])[use]
    if part.kind == 'categorical':
      share = np.bincount(value, minlength=part.size) / len(value)
      total -= float((share[share > 0] * np.log(share[share > 0])).sum())
    elif part.kind == 'binary':
      share = np.clip(value.mean(axis=0), 1e-9, 1 - 1e-9)
      total -= float(
        (share * np.log(share) + (1 - share) * np.log(1 - share)).sum()
      )
    else:
      edges = np.linspace(part.low, part.high, part.bins + 1)[1:-1]
      for column in np.digitize(value, edges).T:
        share = np.bincount(column, minlength=part.bins) / len(column)
        total -= float((share[share > 0] * np.log(share[share > 0])).sum())
  return total


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
  a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
  if a.std() < 1e-9 or b.std() < 1e-9:
    return 0.0
  return float(np.corrcoef(a, b)[0, 1])


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


def played(world: World, seen: Watched) -> list[Finding]:
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
      judge('imagination', 'surprise of its actions to the clone', surprise,
            Scale(fine=3.0, wrong=6.0, unit=' nats'),
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
  use = known & seen.live
  if use.sum() < 50 or not phase.stop_at_event:
    return []
  value, real = seen.value[use], returns[use]
  slope = float(np.cov(value, real)[0, 1] / max(value.var(ddof=1), 1e-9))
  return [
    judge('imagination', 'value against real returns, correlation',
          _correlation(value, real), Scale(fine=0.5, wrong=0.2),
          'Values do not tell good states from bad ones; train longer, or '
          'begin dreams elsewhere (data.lead, relevant_share).'),
    judge('imagination', 'and slope', slope, Scale(fine=0.5, wrong=0.2),
          'Values promise differences that the game does not pay.'),
    note('imagination', 'mean value, and mean real return',
         f'{value.mean():.2f}, {real.mean():.2f}', float(value.mean())),
  ]  # fmt: skip
