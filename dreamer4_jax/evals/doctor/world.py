"""Is the world model any good? Tokenizer and dynamics on recordings."""

from __future__ import annotations

from collections.abc import Sequence
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import Config
from dreamer4_jax.envs import Environment
from dreamer4_jax.evals import probes, tiles, video
from dreamer4_jax.evals.closed_loop import random_agent, streaming_agent
from dreamer4_jax.evals.doctor.clips import Held, in_pieces
from dreamer4_jax.evals.findings import Finding, Scale, judge, note
from dreamer4_jax.models import Params, World
from dreamer4_jax.rollout import Replay, context_levels, context_noise, imagine
from dreamer4_jax.types import Actions, Batch, Levels

_PROBED = 200
"""Steps of the episodes that probes see."""
_EARLY = (
  'Train the tokenizer longer; nothing after it can see what it drops. Look at '
  'worst.png of `dreamer4 evaluate`.'
)


def recorded(world: World, params: Params, held: Held) -> list[Finding]:
  """Says whether actions stand where they act, by a probe of the latents."""
  batch = held.batch
  encode = jax.jit(world.encode_clips)
  z = in_pieces(lambda part: encode(params, part), batch)
  actions = probes.encode_actions(batch.prev_action, world.space)
  curve = probes.action_timing(z, actions, np.asarray(batch.prev_action_mask))
  best = max(curve, key=curve.get)
  name = 'actions explain the change of a frame'
  text = ', '.join(f'{k:+d}: {v:.2f}' for k, v in curve.items())
  if curve[best] < 0.02:
    return [
      Finding(
        phase='data', name=name, value=0.0, text=text, verdict='look',
        usual='best at +0',
        advice='Frames tell nothing of the actions near them: are they those '
        'of these recordings?',
      )
    ]  # fmt: skip
  late = 'late' if best > 0 else 'early'
  return [
    Finding(
      phase='data', name=name, value=float(best), text=text,
      usual='best at +0',
      # A tie between neighbours is no proof.
      verdict='fine' if curve[0] > 0.9 * curve[best] else 'wrong',
      advice=f'The actions of the recordings are {abs(best)} row(s) {late}: '
      'what led to a frame stands beside another. Convert them again.',
    )
  ]  # fmt: skip


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


def dynamics(
  world: World,
  params: Params,
  held: Held,
  *,
  sampling_steps: int,
) -> list[Finding]:
  """Measures dreams of held-out clips with their own actions."""
  config, key = world.config, jax.random.key(0)
  e = config.eval
  context, horizon = e.context_frames, max(e.horizons)
  clips = jax.tree.map(
    lambda x: x[:, : context + horizon] if x.ndim > 1 else x, held.batch
  )
  dreams = video.open_loop(
    world, params, clips, key, context_frames=context,
    sampling_steps=sampling_steps,
  )  # fmt: skip
  at = sorted({1, min(4, horizon), horizon})
  figures = video.open_loop_psnr(dreams, at)
  found = []
  few = 'Train the dynamics longer; look at `dreamer4 dream RUN`.'
  for h in at:
    own, still = figures[f'psnr_{h}'], figures[f'psnr_{h}_repeat_last']
    found.append(
      judge('dynamics', f'dreams above a still picture, {h} ahead', own - still,
            Scale(fine=1.5, wrong=0.0, digits=1, unit=' dB'), few)
    )  # fmt: skip
    found.append(note('dynamics', f'PSNR {h} ahead', f'{own:.1f} dB', own))
  known = bool(np.asarray(clips.prev_action_mask)[:, context:].any())
  if known:
    found += _actions(world, params, held, sampling_steps)
  found += _levels(world, params, held)
  found.append(_memory(world.config))
  return found


def _actions(
  world: World,
  params: Params,
  held: Held,
  sampling_steps: int,
) -> list[Finding]:
  """Does the model use the action that led to a frame, and no other?"""
  ignored = (
    'The dynamics ignores its actions: check that they are labeled '
    '(`labeled_share`, `action_known`), train it longer, or raise '
    'forcing.clear_share, forcing.end_share and forcing.low_weight.'
  )
  errors = action_curve(world, params, held, sampling_steps)
  gain = 10 * np.log10(errors['shuffled'] / errors[0])
  curve = {k: 10 * np.log10(errors['shuffled'] / errors[k])
           for k in probes.SHIFTS}  # fmt: skip
  best = max(curve, key=curve.get)
  text = ', '.join(f'{k:+d}: {v:.2f}' for k, v in curve.items())
  timing = best == 0 or curve[best] - curve[0] < 0.05
  return [
    judge(
      'dynamics', 'a frame is better for its action', float(gain),
      Scale(fine=0.3, wrong=0.1, unit=' dB'), ignored,
    ),
    Finding(
      phase='dynamics', name='gain by the step of the action', text=text,
      value=float(best), usual='best at +0',
      verdict='fine' if timing else 'wrong',
      advice='The model was taught actions of another step than it is given.',
    ),
  ]  # fmt: skip


def action_curve(
  world: World, params: Params, held: Held, sampling_steps: int
) -> dict[Any, float]:
  """Squared error of the next frame, by which action the model is given.

  Args:
    world: modules.
    params: of the world model.
    held: clips.
    sampling_steps: K.

  Returns:
    Mean squared error, over the pixels that changed, of one frame ahead: by k
    of `probes.SHIFTS`, given the action k steps later; and `shuffled`, given
    that of another clip.
  """
  most = max(probes.SHIFTS)
  context = max(world.config.eval.context_frames, most + 1)
  batch = jax.tree.map(
    lambda x: x[:, : context + most + 1] if x.ndim > 1 else x, held.batch
  )
  given = {
    k: jax.tree.map(lambda x, k=k: x[:, context + k][:, None],
                    batch.prev_action)
    for k in probes.SHIFTS
  }  # fmt: skip
  given['shuffled'] = jax.tree.map(lambda x: np.roll(x, 1, axis=0), given[0])
  past = jax.tree.map(lambda x: x[:, :context] if x.ndim > 1 else x, batch)
  past = past.replace(cont=np.ones_like(past.cont))

  @jax.jit
  def ahead(params: Params, past: Batch, action: Actions):
    rollout = imagine(
      world, params, past, jax.random.key(1),
      policy=Replay(action), horizon=1, sampling_steps=sampling_steps,
    )  # fmt: skip
    z = jnp.concatenate([world.encode_clips(params, past), rollout.z], axis=1)
    return jnp.clip(world.decode(params, z)[0][:, -1], 0, 1)

  true = batch.frames[:, context].astype(np.float32) / 255
  last = batch.frames[:, context - 1].astype(np.float32) / 255
  moved = np.abs(true - last).max(axis=-1) > 0.02
  use = np.all(
    [batch.prev_action_mask[:, context + k] for k in probes.SHIFTS], axis=0
  )
  moved &= use[:, None, None]
  found = {}
  for name, action in given.items():
    image = in_pieces(
      lambda part: ahead(params, part.replace(relevant=None), part.relevant),
      past.replace(relevant=action),
    )
    error = np.square(image - true).mean(axis=-1)
    found[name] = float(error[moved].mean()) if moved.any() else 1.0
  return found


def _levels(world: World, params: Params, held: Held) -> list[Finding]:
  """Error of the denoised tokens by signal level, other frames clear."""
  steps = world.config.dynamics.max_steps
  length = min(world.config.dynamics.context_length, held.batch.task.shape[1])
  batch = jax.tree.map(lambda x: x[:, :length] if x.ndim > 1 else x, held.batch)

  @jax.jit
  def error(params: Params, batch: Batch, level):
    z = world.encode_clips(params, batch)
    noise = jax.random.normal(jax.random.key(2), z.shape)
    levels = context_levels(world, z.shape[:2])
    last = jnp.arange(length)[None] == length - 1
    index = jnp.where(last, level, levels.signal_index)
    levels = Levels(
      index, jnp.where(last, jnp.int32(np.log2(steps)), levels.step_index),
      steps,
    )  # fmt: skip
    tau = levels.signal_level[..., None, None]
    noisy = jnp.where(
      last[..., None, None], tau * z + (1 - tau) * noise,
      context_noise(world, z, noise),
    )  # fmt: skip
    found = world.denoise(
      params, noisy, levels, batch.prev_action, batch.prev_action_mask,
      segment_ids=batch.segment_ids,
    ).prediction  # fmt: skip
    return jnp.square(found[:, -1] - z[:, -1]).mean(axis=(1, 2))

  shown = []
  for share in (0.0, 0.25, 0.5, 0.75, 0.9):
    level = jnp.int32(min(round(share * steps), steps - 1))
    own = in_pieces(lambda part, level=level: error(params, part, level), batch)
    shown.append((share, float(np.mean(own))))
  values = [value for _, value in shown]
  falls = all(b <= a * 1.05 for a, b in itertools.pairwise(values))
  return [
    Finding(
      phase='dynamics', name='error of a frame by signal level',
      text=', '.join(f'{s:g}: {v:.3f}' for s, v in shown), value=values[0],
      usual='falls, and is below 1 (the variance of the tokens)',
      verdict='fine' if falls and values[0] < 1 else 'look',
      advice='A level that is worse than a noisier one was hardly trained: '
      'see forcing.end_share.',
    )
  ]  # fmt: skip


def _memory(config: Config) -> Finding:
  """Is the context longer than anything the model was trained on?"""
  try:
    config.check_context(('tokenizer', 'dynamics', 'finetune'))
    verdict, text = 'fine', 'within the clips of every phase'
  except ValueError as error:
    verdict, text = 'wrong', str(error).split(': ', 1)[0]
  length = config.dynamics.context_length
  return Finding(
    phase='dynamics', name='context', value=float(length),
    text=f'{length} frames, {text}', usual='within the clips of training',
    verdict=verdict,
    advice='The model looks further back than it was ever trained to: lower '
    'dynamics.context_length, or train on longer clips.',
  )  # fmt: skip


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
  found, lacking = {}, []
  for name, value in facts.items():
    value = np.asarray(value, np.float64)[live][:, None]
    if value[test].std() > 1e-6 and value[~test].std() > 1e-6:
      found[name] = float(probes.explained(z[live], value, test)[0])
    else:
      lacking.append(name)
  if not found:
    return []
  worst = sorted(found, key=found.get)
  text = ', '.join(f'{name} {found[name]:.2f}' for name in worst[:8])
  mean = float(np.mean([np.clip(v, 0, 1) for v in found.values()]))
  never = f'; never varied: {", ".join(lacking)}' if lacking else ''
  return [
    judge('tokenizer', 'state read by a linear probe, variance explained',
          mean, Scale(fine=0.8, wrong=0.5), _EARLY),
    note('tokenizer', 'the least readable of it', text + never),
  ]  # fmt: skip
