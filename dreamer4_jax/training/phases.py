"""The four phases in order: what each starts from and how it is fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import logging
import pathlib
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from dreamer4_jax import checkpoint, sharding
from dreamer4_jax.config import PHASES, Config, PhaseConfig
from dreamer4_jax.models import Params, World
from dreamer4_jax.runtime.clock import Clock
from dreamer4_jax.runtime.preemption import PreemptedError, Sigterm
from dreamer4_jax.training import (
  dynamics_step,
  finetune_step,
  imagination_step,
  tokenizer_step,
)
from dreamer4_jax.training.loop import ClipIterator, Look, Work, run_phase
from dreamer4_jax.training.state import TrainState

_LOG = logging.getLogger(__name__)

GIVEN = {'latents', 'task_vectors'}
"""Parameters that are given rather than initialised."""
STATISTICS_BATCHES = 32
"""Batches over which the latents' statistics are taken."""

Steps = tuple[Callable[..., TrainState], Callable[[World], Callable[..., Any]]]
"""How a phase begins, `(world, key, what was trained before) -> state`, and
`world -> train step`."""
STEPS: dict[str, Steps] = {
  'tokenizer': (
    tokenizer_step.init_tokenizer_state,
    tokenizer_step.make_tokenizer_step,
  ),
  'dynamics': (
    dynamics_step.init_dynamics_state,
    dynamics_step.make_dynamics_step,
  ),
  'finetune': (
    finetune_step.init_finetune_state,
    finetune_step.make_finetune_step,
  ),
  'imagination': (
    imagination_step.init_imagination_state,
    imagination_step.make_imagination_step,
  ),
}
# (config, phase name, clip length, fingerprint of the trained tokenizer or '')
# -> endless iterator of batches
Loaders = Callable[[Config, str, int, str], ClipIterator]


def train_phases(
  config: Config,
  run_dir: str | pathlib.Path,
  phases: Sequence[str] = PHASES,
  *,
  loaders: Loaders,
  progress: bool = True,
  world: World | None = None,
  steps: Mapping[str, Steps] = STEPS,
  look: Look | None = None,
) -> None:
  """Trains phases one after another; resumes where it was interrupted.

  Args:
    config: the run.
    run_dir: where checkpoints and metrics go, a directory per phase.
    phases: names of phases; each needs the one before, trained now or earlier.
    loaders: makes the data iterators. Those of imagination with `world_rate`
      yield a `DreamBatch`.
    progress: show progress bars.
    world: modules, by default those of the config.
    steps: how some phases begin, and their train steps; the others are as in
      the paper.
    look: called as `look(phase, steps done, state)` with every checkpoint that
      is due; what it returns is written to `metrics.jsonl`. It needs one
      process.

  Raises:
    ValueError: an unknown phase, a context longer than the clips, or data or
      checkpoints that disagree with the config.
    FileNotFoundError: the phase before has not been trained.
    PreemptedError: SIGTERM asked the process to stop; what was done is saved.
  """
  unknown = [p for p in phases if p not in PHASES]
  if unknown:
    raise ValueError(f'phases = {unknown}: must be among {PHASES}')
  config.check_context(phases)
  checkpoint.check_run(run_dir, config)
  world = world or World.from_config(config)
  if world.config != config:
    raise ValueError('world: was made of another config than the run has')
  mesh = sharding.make_mesh(config.mesh)
  _check_batches(config, phases, mesh)
  # Over all phases, so that none begins after the signal.
  with Sigterm(active=jax.process_count() == 1) as sigterm:
    for phase in phases:
      if sigterm.received:
        raise PreemptedError(f'{phase}: asked to stop before it began')
      work = _work(
        world, pathlib.Path(run_dir), phase, loaders, {**STEPS, **steps}[phase]
      )
      run_phase(
        phase,
        config,
        run_dir,
        dataclasses.replace(work, look=look),
        mesh=mesh,
        progress=progress,
        sigterm=sigterm,
        clock=Clock(run_dir, phase),
      )
    if sigterm.received:
      raise PreemptedError(f'asked to stop after {phases[-1]}')


def _check_batches(
  config: Config, phases: Sequence[str], mesh: jax.sharding.Mesh
) -> None:
  for phase in phases:
    settings: PhaseConfig = getattr(config.phases, phase)
    try:
      sharding.check_batch(mesh, settings.batch_size, config.accumulate)
    except ValueError as error:
      raise ValueError(f'phases.{phase}.{error}') from error


def _work(
  world: World,
  run_dir: pathlib.Path,
  phase: str,
  loaders: Loaders,
  steps: Steps,
) -> Work:
  """Loads what a phase starts from, and makes its state, step and batches."""
  config = world.config
  settings: PhaseConfig = getattr(config.phases, phase)
  before = PHASES.index(phase) - 1
  given = {}
  if before >= 0:
    given, _ = checkpoint.load_params(run_dir, PHASES[before])
  tokenizer = world.fingerprint(given) if given else ''
  iterators = {
    n: loaders(config, phase, n, tokenizer) for n in settings.clip_lengths
  }
  if phase == 'dynamics':
    fresh = loaders(config, phase, settings.clip_length, tokenizer)
    batches = [next(fresh) for _ in range(STATISTICS_BATCHES)]
    given['latents'] = tokenizer_step.latent_statistics(world, given, batches)
  if phase == 'finetune' and config.data.task_vectors:
    given['task_vectors'] = load_task_vectors(config)
  if phase == 'tokenizer':
    _say_if_lpips_is_off(config, run_dir)
  init, make_step = steps
  # A stream of its own: the loop's step keys come from the same seed.
  key = jax.random.fold_in(jax.random.key(config.seed), 1_000 + before)
  return Work(
    init_state=functools.partial(init, world, key),
    given=(boxed(world, given),),
    step_fn=make_step(world),
    iterators=iterators,
  )


def _say_if_lpips_is_off(config: Config, run_dir: pathlib.Path) -> None:
  """Says it only if the tokenizer is still to be trained."""
  settings = config.phases.tokenizer
  done = checkpoint.latest_step(run_dir, 'tokenizer') or 0
  if not settings.lpips_path and done < settings.steps:
    _LOG.info(
      'tokenizer: LPIPS is off, it needs weights in '
      'phases.tokenizer.lpips_path; the loss is the squared error alone'
    )


def load_task_vectors(config: Config) -> np.ndarray:
  """Reads `data.task_vectors`, `[num_tasks, task_vector_size]` float32.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it holds something else; the message says what.
  """
  path = pathlib.Path(config.data.task_vectors)
  if not path.is_file():
    raise FileNotFoundError(f'data.task_vectors: {path}: no such file')
  try:
    vectors = np.asarray(np.load(path, allow_pickle=False))
  except (EOFError, ValueError, OSError) as error:
    raise ValueError(f'data.task_vectors: {path}: {error}') from error
  shape = (config.num_tasks, config.agent.task_vector_size)
  if vectors.shape != shape or not np.issubdtype(vectors.dtype, np.floating):
    raise ValueError(
      f'data.task_vectors: {path} holds {vectors.dtype} {vectors.shape}, '
      f'expected floats {shape}, agent.task_vector_size of them for each of '
      f'the tasks {config.tasks}'
    )
  with np.errstate(over='ignore'):
    vectors = vectors.astype(np.float32)
  if not np.isfinite(vectors).all():
    raise ValueError(
      f'data.task_vectors: {path} has values that are not finite'
    )
  return vectors


def boxed(world: World, params: Params) -> Params:
  """Puts back the logical axes, which checkpoints do not hold."""
  boxes = jax.eval_shape(
    lambda: world.init(jax.random.key(0), tuple(params.keys() - GIVEN))
  )
  return {
    name: nn.meta.replace_boxed(boxes[name], own) if name in boxes else own
    for name, own in params.items()
  }


def init_state(
  world: World, phase: str, key: jax.Array, given: Params | None = None
) -> TrainState:
  """Returns the state before the first step of a phase, as plain arrays.

  Args:
    world: modules.
    phase: one of `config.PHASES`.
    key: all randomness.
    given: what was trained before, as `checkpoint.load_params` returns it; for
      the dynamics also `latents`, from `latent_statistics`. None for the
      tokenizer.
  """
  init, _ = init_and_step(world, phase)
  return jax.jit(lambda *given: nn.meta.unbox(init(key, *given)))(given)


def train_step(world: World, phase: str) -> Callable[..., Any]:
  """Returns a pure train step, `(state, batch, key) -> (state, metrics)`."""
  return init_and_step(world, phase)[1]


def init_and_step(
  world: World, phase: str
) -> tuple[Callable[[jax.Array, Params], TrainState], Callable[..., Any]]:
  """Returns `(key, what was trained before) -> state`, and the train step."""
  init, make_step = STEPS[phase]
  return functools.partial(init, world), make_step(world)
