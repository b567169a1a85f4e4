"""Do the heads know what the recordings show?"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import Config
from dreamer4_jax.evals.doctor.clips import Held, before, in_pieces, values_of
from dreamer4_jax.evals.findings import Finding, Scale, judge, note
from dreamer4_jax.models import Params, World, distributions
from dreamer4_jax.objectives import TwoHot
from dreamer4_jax.rollout import (
  Replay,
  context_levels,
  context_noise,
  imagine,
)
from dreamer4_jax.types import Array, Batch

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
  """Reward on and off the frames of events, `[B, T]`."""
  if events.sum() < 5:
    few = f'{int(events.sum())} events in held-out clips'
    return [note('finetune', 'reward on the frame of an event', few)]
  hit = float(np.clip(reward, 0, 1)[events].mean())
  false = float(np.clip(reward, 0, 1)[~events].mean())
  found = [
    judge('finetune', 'reward on the frame of an event', hit,
          Scale(fine=0.5, wrong=0.2), _BLIND),
    judge('finetune', 'reward elsewhere, relative to how often events are',
          false / float(events.mean()), Scale(fine=0.5, wrong=1.0),
          'The reward head pays for what does not happen; see '
          'phases.finetune.context_share.'),
  ]  # fmt: skip
  everywhere = np.ones(events.shape, bool)
  timing = reward_timing('finetune', reward, events, everywhere)
  return found + ([timing] if timing else [])


def reward_timing(
  phase: str, reward: np.ndarray, events: np.ndarray, live: np.ndarray
) -> Finding | None:
  """Says at which frame rewards are read, relative to events.

  Args:
    phase: of the finding.
    reward: `[B, T]` expected reward.
    events: `[B, T]` bool, what really happened.
    live: `[B, T]` bool, frames that count.

  Returns:
    None if there are too few events or frames to tell.
  """
  most, length = 2, reward.shape[1]
  if length <= 2 * most:
    return None
  inner = slice(most, length - most)
  curve = {}
  for k in range(-most, most + 1):
    moved = events[:, most + k : length - most + k]
    use = live[:, inner] & live[:, most + k : length - most + k]
    if moved[use].sum() < 5:
      return None
    curve[k] = correlation(reward[:, inner][use], moved[use])
  best = max(curve, key=curve.get)
  sure = curve[best] > 0.1 and curve[best] - curve[0] > 0.05
  side = 'early: before the action is known' if best > 0 else 'late'
  return Finding(
    phase=phase,
    name='reward by the step of the event',
    value=float(best),
    usual='best at +0',
    text=', '.join(f'{k:+d}: {v:.2f}' for k, v in curve.items()),
    verdict='wrong' if best and sure else 'fine',
    advice=f'Rewards are read {abs(best)} frame(s) {side}. Were the events '
    'of the recordings written to another row than the frame that shows them?',
  )


def _blindness(
  world: World, params: Params, batch: Batch, events: np.ndarray
) -> list[Finding]:
  """Dreams one frame ahead to an event: with its own action, and another."""
  rows, frames = np.nonzero(events)
  keep = frames >= 2
  rows, frames = rows[keep][:128], frames[keep][:128]
  own = {k: np.asarray(v)[rows, frames] for k, v in batch.prev_action.items()}
  others = {k: np.roll(v, 1, axis=0) for k, v in own.items()}
  # Any action of a clip will do, as long as it is another one.
  rng = np.random.default_rng(0)
  for _ in range(20):
    same = _same(own, others)
    drawn = rng.integers(batch.task.size, size=int(same.sum()))
    for name, value in others.items():
      every = np.asarray(batch.prev_action[name])
      value[same] = every.reshape(-1, *every.shape[2:])[drawn]
  differs = ~_same(own, others)
  rows, frames = rows[differs], frames[differs]
  if len(rows) < 8:
    return []
  past = before(batch, rows, frames, world.config.dynamics.context_length)
  # The task of the event, from the first frame on.
  held = np.broadcast_to(batch.task[rows, frames][:, None], past.task.shape)
  past = past.replace(task=held)
  found = {}
  for name, action in (('own', own), ('other', others)):
    given = {k: v[differs][:, None] for k, v in action.items()}
    found[name] = float(np.mean(dreamed_reward(world, params, past, given)))
  ratio = found['other'] / max(found['own'], 1e-3)
  return [
    judge('finetune', 'reward dreamed for the action of an event',
          found['own'], Scale(fine=0.4, wrong=0.15), _BLIND),
    judge('finetune', 'and for another action, relative to it', ratio,
          Scale(fine=0.5, wrong=0.8), _BLIND),
  ]  # fmt: skip


def _same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> Array:
  """Which rows of two actions are equal, `[n]` bool."""
  return np.all(
    [(a[k] == b[k]).reshape(len(a[k]), -1).all(axis=1) for k in a], axis=0
  )


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
      # Bins as the policy has them, around their centres.
      place = (value - part.low) / (part.high - part.low) * (part.bins - 1)
      place = np.clip(np.round(place), 0, part.bins - 1).astype(np.int64)
      for column in place.T:
        share = np.bincount(column, minlength=part.bins) / len(column)
        total -= float((share[share > 0] * np.log(share[share > 0])).sum())
  return total


def random_surprise(config: Config) -> float:
  """Entropy of uniform actions, in nats: a scale for those of a policy."""
  total = 0.0
  for part in config.actions:
    classes = {'categorical': part.size, 'binary': 2}
    count = 1 if part.kind == 'categorical' else part.size
    total += count * float(np.log(classes.get(part.kind, part.bins)))
  return total


def correlation(a: np.ndarray, b: np.ndarray) -> float:
  """Pearson's correlation of two arrays; 0 if one does not vary."""
  a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
  if a.std() < 1e-9 or b.std() < 1e-9:
    return 0.0
  return float(np.corrcoef(a, b)[0, 1])
