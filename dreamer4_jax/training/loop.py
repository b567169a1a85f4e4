"""The loop that all training phases share.

A phase gives a function that makes its train state, a pure step function and
data iterators; the loop compiles, feeds, logs, saves and resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import logging
import math
import pathlib
from typing import Any, Protocol

from flax import linen as nn
import jax
import numpy as np
import tqdm

from dreamer4_jax import sharding
from dreamer4_jax.checkpoint import Best, Checkpoints
from dreamer4_jax.checkpoint.compatibility import model_fields
from dreamer4_jax.config import PHASES, Config
from dreamer4_jax.runtime.preemption import PreemptedError, Sigterm
from dreamer4_jax.training.metrics import MetricWriter
from dreamer4_jax.training.prefetch import Drawn, prefetch
from dreamer4_jax.training.schedule import clip_length_at
from dreamer4_jax.training.watch import Watch
from dreamer4_jax.types import Array, PyTree

_LOG = logging.getLogger(__name__)

Metrics = Mapping[str, Array]
StepFn = Callable[[PyTree, PyTree, Array], tuple[PyTree, Metrics]]
# (phase, steps done, state) -> metrics
Look = Callable[[str, int, PyTree], Mapping[str, float]]


class ClipIterator(Protocol):
  """Endless batches of clips, with a state, such as a Grain iterator."""

  def __next__(self) -> PyTree:
    """Returns this process's share of the next batch, as numpy arrays."""
    ...

  def get_state(self) -> Any:
    """Returns the position, as bytes or plain data.

    To resume with another number of processes, it must be the same on all, such
    as a count of global batches.
    """
    ...

  def set_state(self, state: Any) -> None:
    """Restores a position that `get_state` returned."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """What a phase trains.

  Attributes:
    init_state: makes the train state. It runs under `jax.jit`, so that big
      states are created sharded; `nn.with_logical_partitioning` boxes say how,
      and are taken off.
    given: arguments of `init_state`, such as what was trained before: trees of
      arrays that every process holds whole, in boxes if they have logical axes.
      They are sharded over the mesh.
    step_fn: pure `(state, batch, key) -> (state, metrics)`; jitted by the loop,
      with the state donated. Metrics are scalars by `module/name`; for those
      whose last part is `loss` or `skipped`, see `Watch`.
    iterators: an iterator for each of the phase's clip lengths.
    look: called with every checkpoint that is due; what it returns is written
      with the metrics. It must leave the state alone, and needs one process.
  """

  init_state: Callable[..., PyTree]
  given: tuple[PyTree, ...] = ()
  step_fn: StepFn
  iterators: Mapping[int, ClipIterator]
  look: Look | None = None


def run_phase(
  phase: str,
  config: Config,
  directory: str | pathlib.Path,
  work: Work,
  *,
  mesh: jax.sharding.Mesh,
  progress: bool = True,
  sigterm: Sigterm | None = None,
  clock: contextlib.AbstractContextManager[Any] | None = None,
) -> PyTree:
  """Trains one phase to its end, from its latest checkpoint if there is one.

  The random key of step s is the seed's key, with the phase's number and s
  folded in. So there is no key to save, and a resumed run equals an
  uninterrupted one.

  Args:
    phase: one of `config.PHASES`.
    config: the whole config; saved in each checkpoint.
    directory: run directory; the phase writes to `directory/phase`:
      `checkpoints/`, `metrics.jsonl`, `tensorboard/`.
    work: what is trained.
    mesh: the device mesh.
    progress: show a bar with the time left and the loss.
    sigterm: tells that the process was asked to stop; by default it listens
      during this phase.
    clock: entered while the phase trains, and not if it is finished.

  Returns:
    The trained state, on the devices.

  Raises:
    ValueError: the phase is unknown, an iterator or the `best_metric` is
      missing, the batch or the state does not divide over the mesh, or the
      checkpoint disagrees with the config.
    FloatingPointError: steps were not finite `MAX_BAD_STEPS` times in a row, or
      the last loss was not, with a step function that does not skip.
    PreemptedError: the process was asked to stop by SIGTERM. The steps done so
      far are saved, unless the state is not finite.
    RuntimeError: an iterator ran out, or a checkpoint could not be saved.
  """
  _check(phase, config, work, mesh)
  total = getattr(config.phases, phase).steps
  phase_dir = pathlib.Path(directory) / phase
  with contextlib.ExitStack() as stack:
    stack.enter_context(sharding.use_mesh(mesh))
    checkpoints = stack.enter_context(
      Checkpoints(phase_dir, best=Best.of(config.saving, phase))
    )
    begun = _begin(phase, config, work, mesh, checkpoints)
    _announce(phase, begun, total, phase_dir, mesh)
    if begun.step >= total:
      return begun.state
    if clock is not None and jax.process_index() == 0:
      stack.enter_context(clock)
    if sigterm is None:
      alone = jax.process_count() == 1
      sigterm = stack.enter_context(Sigterm(active=alone))
    bar = stack.enter_context(
      tqdm.tqdm(
        total=total,
        initial=begun.step,
        desc=phase,
        unit='step',
        disable=not progress or jax.process_index() != 0,
      )
    )
    writer = stack.enter_context(
      MetricWriter(phase_dir, resume_step=begun.step)
    )
    watch = Watch(phase, config, writer, bar, begun.counters)
    state, stopped = _steps(
      phase, config, work, begun, checkpoints, watch, mesh, sigterm
    )
    checkpoints.wait()
    # The signal may also have come since the last step.
    if stopped or (sigterm.received and jax.process_count() == 1):
      raise PreemptedError(
        f'{phase}: asked to stop after step {stopped or total:,} of {total:,}; '
        f'the latest checkpoint in {phase_dir} is of step '
        f'{checkpoints.latest()}. The same command goes on from there.'
      )
  return state


def _check(
  phase: str, config: Config, work: Work, mesh: jax.sharding.Mesh
) -> None:
  if phase not in PHASES:
    raise ValueError(f'phase = {phase!r}: must be one of {PHASES}')
  settings = getattr(config.phases, phase)
  if not {*settings.clip_lengths} <= set(work.iterators):
    raise ValueError(
      f'{phase}: iterators for clip lengths {sorted(work.iterators)} were '
      f'given, {list(settings.clip_lengths)} are needed'
    )
  if work.look is not None and jax.process_count() > 1:
    raise ValueError(
      f'look: needs one process, not {jax.process_count()}; evaluate the run '
      'when it is trained'
    )
  sharding.check_batch(mesh, settings.batch_size, config.accumulate)


@dataclasses.dataclass(frozen=True)
class _Begun:
  """Where training starts or resumes."""

  step: int
  state: PyTree
  abstract: PyTree
  counters: Mapping[str, Any]


def _begin(
  phase: str,
  config: Config,
  work: Work,
  mesh: jax.sharding.Mesh,
  checkpoints: Checkpoints,
) -> _Begun:
  """Makes the state, or restores it and the iterators."""
  boxed = jax.eval_shape(work.init_state, *work.given)
  abstract = sharding.place_abstract(mesh, boxed)
  if checkpoints.latest() is None:
    # As arguments: constants would be copied into the program.
    state = jax.jit(
      lambda *given: nn.meta.unbox(work.init_state(*given)),
      out_shardings=jax.tree.map(lambda x: x.sharding, abstract),
    )(*sharding.place_whole(mesh, work.given))
    return _Begun(0, state, abstract, {})
  restored = checkpoints.restore(
    abstract, config=config, fields=model_fields(phase)
  )
  for length in getattr(config.phases, phase).clip_lengths:
    if str(length) in restored.data:
      work.iterators[length].set_state(restored.data[str(length)])
  return _Begun(restored.step, restored.state, abstract, restored.counters)


def _steps(
  phase: str,
  config: Config,
  work: Work,
  begun: _Begun,
  checkpoints: Checkpoints,
  watch: Watch,
  mesh: jax.sharding.Mesh,
  sigterm: Sigterm,
) -> tuple[PyTree, int]:
  """Takes the steps that are left; also returns where it was stopped, or 0."""
  settings, state = getattr(config.phases, phase), begun.state
  step_fn = jit_step(work.step_fn, phase, config.seed, mesh, begun.abstract)
  steps = range(begun.step, settings.steps)
  lengths = [clip_length_at(step, config, phase) for step in steps]
  batches = prefetch(
    {n: work.iterators[n] for n in sorted(settings.clip_lengths)}, lengths
  )
  with contextlib.closing(batches):
    for step, item in zip(steps, batches, strict=True):
      batch = sharding.place_batch(mesh, item.batch)
      state, metrics = step_fn(state, batch, np.uint32(step))
      done = step + 1
      watch.flush()  # The step before; the device is busy with this one.
      watch.put(done, metrics)
      asked = _asked_to_stop(checkpoints, sigterm)
      due = done % config.saving.checkpoint_every == 0
      if due or done == settings.steps or asked:
        watch.flush()
        _save(checkpoints, done, state, item, config, watch)
      if asked:
        return state, done
      if work.look and (due or done == settings.steps):
        watch.note(done, work.look(phase, done, state))
  watch.check_end()
  return state, 0


def _asked_to_stop(checkpoints: Checkpoints, sigterm: Sigterm) -> bool:
  """Whether to stop now; to be called after every step.

  With several processes all of them ask JAX's runtime and stop together; what
  one of them has noticed alone must not count.
  """
  if jax.process_count() > 1:
    return checkpoints.asked_to_stop()
  return sigterm.received


def jit_step(
  step_fn: StepFn,
  phase: str,
  seed: int,
  mesh: jax.sharding.Mesh,
  abstract_state: PyTree,
) -> Callable[[PyTree, PyTree, Array], tuple[PyTree, Metrics]]:
  """Jits a step as `run_phase` runs it.

  Args:
    step_fn: pure `(state, batch, key) -> (state, metrics)`.
    phase: one of `config.PHASES`.
    seed: of the run.
    mesh: the device mesh.
    abstract_state: from `sharding.place_abstract`.

  Returns:
    Jitted `(state, batch, step) -> (state, metrics)` with the step's number, a
    uint32, in place of the key. The state is donated and stays where it is;
    metrics are on all devices.
  """

  def train_step(state, batch, step):
    key = jax.random.fold_in(jax.random.key(seed), PHASES.index(phase))
    return step_fn(state, batch, jax.random.fold_in(key, step))

  return jax.jit(
    train_step,
    donate_argnums=0,
    out_shardings=(
      jax.tree.map(lambda x: x.sharding, abstract_state),
      sharding.replicated(mesh),
    ),
  )


def _save(
  checkpoints: Checkpoints,
  done: int,
  state: PyTree,
  item: Drawn,
  config: Config,
  watch: Watch,
) -> None:
  if not watch.state_is_good:
    _LOG.warning(
      'no checkpoint at step %d: the last %d losses are not finite',
      done,
      watch.bad_steps,
    )
    return
  checkpoints.save(
    done,
    state,
    item.iterator_states,
    config,
    value=watch.value(),
    counters=watch.counters(),
  )


def _announce(
  phase: str,
  begun: _Begun,
  total: int,
  phase_dir: pathlib.Path,
  mesh: jax.sharding.Mesh,
) -> None:
  values = sum(math.prod(x.shape) for x in jax.tree.leaves(begun.abstract))
  if begun.step >= total:
    what = f'already finished at step {begun.step:,}'
  elif begun.step:
    what = f'resuming from step {begun.step:,} of {total:,}'
  else:
    what = f'starting fresh, {total:,} steps'
  sizes = ', '.join(f'{a} {n}' for a, n in mesh.shape.items())
  _LOG.info(
    '%s: %s in %s; %s numbers of state; %d %s device(s): %s',
    phase,
    what,
    phase_dir,
    f'{values:,}',
    mesh.size,
    mesh.devices.flat[0].platform,
    sizes,
  )
