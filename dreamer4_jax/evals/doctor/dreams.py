"""Do dreams go as recordings do? The dynamics."""

from __future__ import annotations

import functools
import itertools
from typing import Any

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import Config
from dreamer4_jax.evals import probes, video
from dreamer4_jax.evals.doctor.clips import Held, before, in_pieces
from dreamer4_jax.evals.findings import Finding, Scale, judge, note
from dreamer4_jax.models import Params, World
from dreamer4_jax.rollout import Replay, context_levels, context_noise, imagine
from dreamer4_jax.types import Actions, Batch, Levels

_EVENTS = 24
"""Events of a task that are dreamed."""


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
  still = _still(world, params, clips, context)
  found = []
  few = 'Train the dynamics longer; look at `dreamer4 dream RUN`.'
  for h in at:
    own = figures[f'psnr_{h}']
    true = dreams.frames[:, h - 1].astype(np.float32) / 255
    repeated = video.psnr(np.square(still - true).mean())
    # Far ahead, a game of chance goes another way than a dream may.
    wrong = 0.0 if h <= 4 else -np.inf
    found.append(
      judge('dynamics', f'dreams above a still picture, {h} ahead',
            own - repeated,
            Scale(fine=1.0, wrong=wrong, digits=1, unit=' dB'), few)
    )  # fmt: skip
    found.append(note('dynamics', f'PSNR {h} ahead', f'{own:.1f} dB', own))
  known = bool(np.asarray(clips.prev_action_mask)[:, context:].any())
  if known:
    found += _actions(world, params, held, sampling_steps)
    found += _events(world, params, held, sampling_steps)
  found += _levels(world, params, held)
  return found


def _still(
  world: World, params: Params, clips: Batch, context: int
) -> np.ndarray:
  """The last frame of each context, decoded, `[B, H, W, C]` in [0, 1]."""

  @jax.jit
  def decode(params: Params, part: Batch):
    z = world.encode_clips(params, part)
    return jnp.clip(world.decode(params, z)[0][:, -1], 0, 1)

  past = jax.tree.map(lambda x: x[:, :context] if x.ndim > 1 else x, clips)
  return in_pieces(lambda part: decode(params, part), past)


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
  if not errors:
    return [note('dynamics', 'a frame is better for its action', 'unknown: '
                 'nothing changes, or few actions are known')]  # fmt: skip
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
    that of another clip. Empty where nothing changed.
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

  true = batch.frames[:, context].astype(np.float32) / 255
  last = batch.frames[:, context - 1].astype(np.float32) / 255
  moved = np.abs(true - last).max(axis=-1) > 0.02
  use = np.all(
    [batch.prev_action_mask[:, context + k] for k in probes.SHIFTS], axis=0
  )
  moved &= use[:, None, None]
  found: dict[Any, float] = {}
  if not moved.any():
    return found
  for name, action in given.items():
    image = next_frame(world, params, past, action, sampling_steps)
    error = np.square(image - true).mean(axis=-1)
    found[name] = float(error[moved].mean())
  return found


def next_frame(
  world: World,
  params: Params,
  past: Batch,
  action: Actions,
  sampling_steps: int,
) -> np.ndarray:
  """Dreams one frame for given actions.

  Args:
    world: modules.
    params: of the world model.
    past: contexts `[B, T, ...]`, without a terminal frame.
    action: components `[B, 1, ...]`.
    sampling_steps: K.

  Returns:
    `[B, H, W, C]` float32 in [0, 1].
  """
  return in_pieces(
    lambda part: _ahead(
      world, sampling_steps, params, part.replace(relevant=None), part.relevant
    ),
    past.replace(relevant=action),
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ahead(
  world: World, steps: int, params: Params, past: Batch, action: Actions
):
  rollout = imagine(
    world, params, past, jax.random.key(1),
    policy=Replay(action), horizon=1, sampling_steps=steps,
  )  # fmt: skip
  z = jnp.concatenate([world.encode_clips(params, past), rollout.z], axis=1)
  return jnp.clip(world.decode(params, z)[0][:, -1], 0, 1)


def event_changes(
  world: World, params: Params, held: Held, sampling_steps: int
) -> dict[str, list[float]]:
  """What events change in the picture, and what of it is dreamed.

  Args:
    world: modules.
    params: of the world model.
    held: clips of frames.
    sampling_steps: K.

  Returns:
    For each event by the name of its task, the share of the patches that change
    on its frame which are dreamed nearer to what they become than to what they
    were, one frame ahead with the recorded action. Patches of the tokenizer
    that change by less than a tenth anywhere do not count.
  """
  batch, rng = held.batch, np.random.default_rng(0)
  paid = (batch.reward != 0) & np.asarray(batch.prev_action_mask)[..., None]
  paid[:, :2] = False  # Too little comes before them.
  rows, frames, tasks = [], [], []
  for task in np.flatnonzero(paid.any(axis=(0, 1))):
    at = rng.permutation(np.argwhere(paid[..., task]))[:_EVENTS]
    rows += at[:, 0].tolist()
    frames += at[:, 1].tolist()
    tasks += [world.config.tasks[task]] * len(at)
  found: dict[str, list[float]] = {}
  if not rows:
    return found
  row, frame = np.array(rows), np.array(frames)
  past = before(batch, row, frame, world.config.dynamics.context_length)
  action = {k: np.asarray(v)[row, frame][:, None]
            for k, v in batch.prev_action.items()}  # fmt: skip
  dreamed = next_frame(world, params, past, action, sampling_steps)
  scaled = lambda x: np.asarray(x, np.float32) / 255
  true, last = scaled(batch.frames[row, frame]), scaled(past.frames[:, -1])
  side = world.config.tokenizer.patch_size
  cut = lambda x: _patches(x, side)
  changed = cut(np.abs(true - last)).max(axis=-1) > 0.1
  error = lambda x: cut(np.square(dreamed - x)).sum(axis=-1)
  right = error(true) < error(last)
  for i, task in enumerate(tasks):
    if changed[i].any():
      found.setdefault(task, []).append(float(right[i][changed[i]].mean()))
  return found


def _patches(x: np.ndarray, side: int) -> np.ndarray:
  """Cuts `[B, H, W, C]` into patches `[B, n, values]`; edges are cut off."""
  height, width = (n // side * side for n in x.shape[1:3])
  return rearrange(
    x[:, :height, :width], 'b (r y) (c z) k -> b (r c) (y z k)', y=side, z=side
  )


def _events(
  world: World, params: Params, held: Held, sampling_steps: int
) -> list[Finding]:
  """Do events happen in dreams?"""
  by_task = event_changes(world, params, held, sampling_steps)
  every = [share for shares in by_task.values() for share in shares]
  if len(every) < 8:
    return []
  means = {task: float(np.mean(x)) for task, x in by_task.items()}
  worst = sorted(means, key=means.get)[:5]
  return [
    judge('dynamics', 'of what an event changes, dreamed 1 ahead',
          float(np.mean([*means.values()])), Scale(fine=0.9, wrong=0.7),
          'Actions lead to something else in dreams, or to nothing: train the '
          'dynamics longer, or raise forcing.event_weight.'),
    note('dynamics', 'the least of it',
         ', '.join(f'{t} {means[t]:.2f}' for t in worst)),
  ]  # fmt: skip


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


def memory(phase: str, trained: Config, current: Config) -> Finding:
  """Is the context longer than anything the phase was trained on?

  Args:
    phase: name of the phase.
    trained: config that its checkpoint was made with.
    current: config that is used now.
  """
  model = 'tokenizer' if phase == 'tokenizer' else 'dynamics'
  length = getattr(current, model).context_length
  longest = getattr(trained.phases, phase).longest_clip
  return Finding(
    phase=phase,
    name=f'context of the {model}',
    value=float(length),
    text=f'{length} frames, trained on clips of {longest}',
    usual='no longer than the clips',
    verdict='fine' if length <= longest else 'wrong',
    advice='It looks further back than it was ever trained to: lower '
    f'{model}.context_length, or train on longer clips.',
  )
