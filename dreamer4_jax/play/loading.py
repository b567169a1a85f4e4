"""What a run directory has to act in, or to act with."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax import checkpoint
from dreamer4_jax.config import PHASES, Config, require, saved
from dreamer4_jax.data import Draws, held_out, make_loader
from dreamer4_jax.models import Params, World
from dreamer4_jax.play.dream import Dream
from dreamer4_jax.types import Batch

STREAM = 2
"""Stream of held-out clips that the contexts of dreams are."""
_WITH_DYNAMICS = PHASES[1:]
_WITH_AGENT = PHASES[2:]
_SEARCHED = 50
"""Batches that are searched for each that is kept."""
_BATCH = 16


class LoadedDream(NamedTuple):
  """A world to dream in, its parameters, and where dreams begin."""

  dream: Dream
  params: Params
  contexts: Batch
  """`[N, T, ...]` clips, as latents."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Starts:
  """Which real clips dreams begin with.

  Attributes:
    count: how many are read; dreams begin with any of them.
    frames: real frames T of each; 0 takes `eval.context_frames`.
    split: of the first dataset; empty takes the held-out one.
    seed: which ones.
  """

  count: int = 256
  frames: int = 0
  split: str = ''
  seed: int = 0

  def __post_init__(self):
    require(self.count >= 1, 'Starts.count', self.count, 'must be at least 1')
    require(
      self.frames >= 0,
      'Starts.frames',
      self.frames,
      'must be at least 1, or 0 for eval.context_frames',
    )


def load_dream(
  run_dir: str | pathlib.Path,
  *,
  phase: str | None = None,
  starts: Starts | None = None,
  task: str | int | None = None,
  prompt: Sequence[str] | None = None,
  context_signal: float | None = None,
  **settings: Any,
) -> LoadedDream:
  """Loads the world model of a run to act in, and clips to begin with.

  Args:
    run_dir: run directory.
    phase: whose world model and heads; by default the latest that has them.
    starts: which clips; by default 256 of the held-out split.
    task: name or id that is held in all dreams; by default, as in imagination,
      what comes next in the episode after the clip.
    prompt: TASK or TASK:COUNT, pursued one after another instead; empty is the
      prompt of the run.
    context_signal: how clear past frames are to the model, in its place in
      `dynamics`.
    **settings: fields of `Dream`. By default `horizon`, `sampling_steps` and,
      without a prompt, `stop_at_event` are those of `phases.imagination`.

  Raises:
    FileNotFoundError: there is no run, or no dataset; or the phase is not
      trained.
    ValueError: something does not fit; the message names it.
    TypeError: there is no such setting.
  """
  run_dir = pathlib.Path(run_dir)
  config = saved.load_run(run_dir)
  heads = settings.get('heads', True)
  phase = _phase(run_dir, phase, heads)
  if context_signal is not None:
    # No module depends on it.
    config = config.edit({'dynamics.context_signal': context_signal})
  require(
    task is None or prompt is None,
    'prompt',
    prompt,
    f'goes on from task to task, and task = {task!r} is held; give one',
  )
  trained = config.phases.imagination
  defaults: dict[str, Any] = {
    'horizon': trained.horizon, 'sampling_steps': trained.sampling_steps,
  }  # fmt: skip
  if prompt is not None:
    defaults['prompt'] = config.stages(prompt or None)
  elif heads:
    defaults['stop_at_event'] = trained.stop_at_event
  world = World.from_config(config)
  dream = Dream(world=world, **{**defaults, **settings})
  params, _ = checkpoint.load_params(run_dir, phase)
  needed = ('tokenizer', 'latents', 'dynamics')
  if heads:
    needed += ('task', 'task_vectors', 'reward', 'continuation', 'policy',
               'value')  # fmt: skip
  params = {name: params[name] for name in needed if name in params}
  params = jax.jit(world.for_inference)(jax.tree.map(jnp.asarray, params))
  contexts = read_contexts(world, params, starts or Starts(), heads=heads)
  if task is not None:
    held = np.full(contexts.cont.shape, task_id(config, task), np.int32)
    contexts = contexts.replace(task=jnp.asarray(held))
  return LoadedDream(dream, params, contexts)


def read_contexts(
  world: World, params: Params, starts: Starts, *, heads: bool
) -> Batch:
  """Reads clips that dreams begin with, the same each time.

  None ends an episode. With heads they are labeled as contexts of imagination
  are, which takes a dataset with tasks.

  Args:
    world: modules.
    params: entry `tokenizer`.
    starts: which clips.
    heads: whether tasks are needed.

  Returns:
    `[count, T, ...]` on the device; frames are latents `[count, T, L, b]`, so
    that as many fit as are wanted.

  Raises:
    FileNotFoundError: there is no dataset.
    ValueError: the split has no such clips.
  """
  config = world.config
  split = starts.split or config.data.eval_split
  clips = make_loader(
    config.data.path,
    split,
    held_out.expected(config),
    Draws(
      length=starts.frames or config.eval.context_frames,
      batch_size=_BATCH,
      seed=config.eval.seed + STREAM + starts.seed,
      milestones=heads and config.milestones,
      purpose='dreams' if heads else 'video',
    ),
  )

  kept: list[Batch] = []
  found = 0
  for _ in range(_SEARCHED * -(-starts.count // _BATCH)):
    batch = next(clips)
    goes_on = np.flatnonzero(batch.cont[:, -1] > 0)[: starts.count - found]
    encoded = encode(world, params, batch)
    kept.append(jax.tree.map(lambda x, rows=goes_on: x[rows], encoded))
    found += len(goes_on)
    if found == starts.count:
      return jax.tree.map(lambda *x: jnp.concatenate(x), *kept)
  raise ValueError(
    f'starts = {starts}: hardly a clip of {split!r} in {config.data.path} ends '
    'before its episode does; take fewer, or shorter ones'
  )


@functools.partial(jax.jit, static_argnums=0)
def encode(world: World, params: Params, batch: Batch) -> Batch:
  """Returns clips with latents as frames, and without vectors."""
  latents, _ = world.latents(
    params, batch.frames, vectors=batch.vectors, segment_ids=batch.segment_ids
  )
  return batch.replace(frames=latents, vectors={})


def load_policy(
  run_dir: str | pathlib.Path, phase: str
) -> tuple[World, Params]:
  """Loads what acts: modules, and parameters of the policy of a phase.

  Raises:
    FileNotFoundError: there is no run, or the phase is not trained.
    ValueError: the phase has no policy.
  """
  run_dir = pathlib.Path(run_dir)
  config = saved.load_run(run_dir)
  _require_phase(phase, _WITH_AGENT, 'has no policy')
  params, _ = checkpoint.load_params(run_dir, phase)
  world = World.from_config(config)
  needed = ('tokenizer', 'latents', 'dynamics', 'task', 'task_vectors')
  needed += ('policy', 'reward', 'continuation')
  params = {name: params[name] for name in needed if name in params}
  return world, jax.jit(world.for_inference)(jax.tree.map(jnp.asarray, params))


def task_id(config: Config, task: str | int) -> int:
  """Returns the id of a task that is named, or checks an id.

  Raises:
    ValueError: the run has no such task.
  """
  names = config.tasks
  known = config.num_tasks + len(config.baselines)
  require(
    task in names if isinstance(task, str) else 0 <= task < known,
    'task',
    task,
    f'must be one of {", ".join(names)}, or an id below {known}',
  )
  return names.index(task) if isinstance(task, str) else int(task)


def _phase(run_dir: pathlib.Path, phase: str | None, heads: bool) -> str:
  """Returns the phase to load."""
  known = _WITH_AGENT if heads else _WITH_DYNAMICS
  untrained = (
    'heads of reward and continuation are not trained there; train finetune, '
    'or dream without them, by heads=False'
    if heads
    else 'has no world model'
  )
  if phase is not None:
    _require_phase(phase, known, untrained)
    return phase
  for name in reversed(known):
    if checkpoint.latest_step(run_dir, name):
      return name
  raise FileNotFoundError(
    f'{run_dir}: none of the phases {", ".join(known)} is trained, '
    + (
      'so there are no heads of reward and continuation; train finetune with '
      '`dreamer4 train`, or dream without them, by heads=False'
      if heads
      else 'so there is no world model; train with `dreamer4 train`'
    )
  )


def _require_phase(phase: str, known: Sequence[str], else_: str) -> None:
  require(
    phase in known, 'phase', phase, f'{else_}; must be {" or ".join(known)}'
  )
