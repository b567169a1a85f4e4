"""Do frames survive? The recordings themselves, and the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import ActionComponent
from dreamer4_jax.envs import Environment
from dreamer4_jax.evals import probes, tiles, video
from dreamer4_jax.evals.check import timing, when
from dreamer4_jax.evals.closed_loop import random_agent, streaming_agent
from dreamer4_jax.evals.doctor.clips import Held
from dreamer4_jax.evals.findings import Finding, Scale, judge, note
from dreamer4_jax.models import Params, World

_PROBED = 200
"""Steps of the episodes that probes see."""
_EARLY = (
  'Train the tokenizer longer; nothing after it can see what it drops. Look at '
  'worst.png of `dreamer4 evaluate`.'
)


def recorded(held: Held, space: Sequence[ActionComponent]) -> Finding:
  """Says whether actions stand where they act; see `evals.check.timing`.

  Args:
    held: clips of frames.
    space: the action space.
  """
  batch = held.batch
  actions = probes.encode_actions(batch.action, space)
  clips = [
    timing.Clip.of_frames(int(episode), frames, action, known)
    for episode, frames, action, known in zip(
      held.episode, batch.frames, actions, batch.action_mask, strict=True
    )
  ]
  return dataclasses.replace(when(timing.measure(clips)), phase='data')


def tokenizer(
  world: World, params: Params, held: Held, palette: tiles.Palette | None
) -> list[Finding]:
  """Measures reconstructions, and what they show of the smallest things."""
  batch = held.batch
  parts = [
    jax.tree.map(lambda x, i=i: x[i : i + 16], batch)
    for i in range(0, len(batch.task) - 15, 16)
  ] or [batch]
  given: dict[str, Any] = {}
  if palette:
    given = {'side': palette.tiles.side, 'name': palette.read}
  seen = video.reconstructions(world, params, parts, **given)
  figures = video.summary(seen.errors)
  decibels = functools.partial(Scale, digits=1, unit=' dB')
  found = [
    judge('tokenizer', name, figures[key], scale, _EARLY)
    for name, key, scale in (
      ('PSNR', 'psnr', decibels(fine=30, wrong=24)),
      ('of the worst frame in a hundred', 'psnr_worst_1pct',
       decibels(fine=22, wrong=17)),
      ('of the pixels that change', 'psnr_changed',
       decibels(fine=24, wrong=19)),
      ('of the worst region of each frame', 'psnr_worst_regions',
       decibels(fine=18, wrong=12)),
    )
  ]  # fmt: skip
  if palette and palette.tiles.pictures is not None:
    share = tiles.reconstruction_tiles(
      palette.tiles, seen.names, seen.names_decoded
    )
    rows = {
      'frames with every tile right': share['exact'],
      'rare tiles right': share['rare_tiles'],
    }
    for place, own in share.get('player', {}).items():
      rows[f'player right, {place}'] = own['right']
    right = Scale(fine=0.98, wrong=0.9, digits=3)
    found += [
      judge('tokenizer', name, value, right, _EARLY)
      for name, value in rows.items()
    ]
  return found


def readable(
  world: World, params: Params, env: Environment, seeds: Sequence[int]
) -> list[Finding]:
  """What a linear probe reads off the latents of single frames.

  Plays by the policy, or at random before there is one.

  Args:
    world: modules.
    params: of the tokenizer, and of an agent if there is one.
    env: functional environment that states facts.
    seeds: one per episode.
  """
  play, memory = random_agent(world), ()
  if 'policy' in params:
    play, memory = streaming_agent(world, len(seeds), tasks=env.spec.tasks)

  @jax.jit
  def turn(params, env_state, step, memory, t):
    first = jnp.full(step.reward.shape, t == 0)
    key = jax.random.fold_in(jax.random.key(6), t)
    actions, memory = play(params, memory, step, first, key)
    return *env.step(env_state, actions), memory

  @jax.jit
  def look(params, env_state, step):
    vectors = {k: v[:, None] for k, v in step.vectors.items()}
    z, _ = world.latents(params, step.frame[:, None], vectors=vectors)
    live = ~(step.terminal | step.timeout)
    return z.reshape(len(z), -1), env.spec.facts(env_state), live

  keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
  env_state, step = jax.jit(env.reset)(keys)
  seen = []
  for t in range(min(env.spec.max_steps, _PROBED)):
    if t % max(1, min(env.spec.max_steps, _PROBED) // 40) == 0:
      seen.append(jax.device_get(look(params, env_state, step)))
    env_state, step, memory = turn(
      params, env_state, step, memory, np.uint32(t)
    )
  z, facts, live = jax.tree.map(lambda *x: np.stack(x), *seen)
  # Whole episodes are held out.
  test = np.broadcast_to(np.arange(live.shape[1]) % 4 == 0, live.shape)[live]
  episode = np.broadcast_to(np.arange(live.shape[1]), live.shape)[live]
  values, lacking = {}, []
  for name, value in facts.items():
    value = np.asarray(value, np.float64)[live]
    # What one episode alone shows says nothing of others.
    odd = [
      len(set(episode[side & (value != np.median(value))]))
      for side in (test, ~test)
    ]
    if min(odd) >= 4:
      values[name] = value
    else:
      lacking.append(name)
  if not values:
    return []
  share = probes.explained(
    z[live], np.stack(list(values.values()), axis=1), test
  )
  found = dict(zip(values, share.tolist(), strict=True))
  worst = sorted(found, key=found.get)
  text = ', '.join(f'{name} {found[name]:.2f}' for name in worst[:8])
  mean = float(np.mean([np.clip(v, 0, 1) for v in found.values()]))
  never = f'; never varied: {", ".join(lacking)}' if lacking else ''
  return [
    judge('tokenizer', 'state read by a linear probe, variance explained',
          mean, Scale(fine=0.8, wrong=0.5), _EARLY),
    note('tokenizer', 'the least readable of it', text + never),
  ]  # fmt: skip
