"""The loop that all training phases share.

A phase gives a function that makes its train state, a pure step function and
data iterators; the loop compiles, feeds, logs, saves and resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import contextlib
import logging
import math
import pathlib
from typing import Any, Protocol

from flax import linen as nn
import jax
import numpy as np
import tqdm

from dreamer4_jax import sharding
from dreamer4_jax.checkpoint import Checkpoints
from dreamer4_jax.compatibility import model_fields
from dreamer4_jax.config import PHASES, Config, PhaseConfig
from dreamer4_jax.preemption import PreemptedError, Sigterm
from dreamer4_jax.training.metrics import MetricWriter
from dreamer4_jax.training.prefetch import Drawn, prefetch
from dreamer4_jax.types import Array, PyTree

_LOG = logging.getLogger(__name__)
MAX_BAD_STEPS = 20
"""Training stops after this many non-finite losses in a row."""

Metrics = Mapping[str, Array]
StepFn = Callable[[PyTree, PyTree, Array], tuple[PyTree, Metrics]]


class ClipIterator(Protocol):
  """Endless batches of clips, with a state; Grain iterators are such."""

  def __next__(self) -> PyTree:
    """Returns this process's share of the next batch, as numpy arrays."""
    ...

  def get_state(self) -> Any:
    """Returns the position, as bytes or plain data."""
    ...

  def set_state(self, state: Any) -> None:
    """Goes to a position that `get_state` returned."""
    ...


def clip_length_at(step: int, config: PhaseConfig) -> int:
  """Returns the clip length of a step; every `long_every`-th is long."""
  if config.long_clip_length and (step + 1) % config.long_every == 0:
    return config.long_clip_length
  return config.clip_length


def run_phase(
  *,
  phase: str,
  config: Config,
  directory: str | pathlib.Path,
  init_state: Callable[[], PyTree],
  step_fn: StepFn,
  iterators: Mapping[int, ClipIterator],
  phase_config: PhaseConfig,
  mesh: jax.sharding.Mesh,
  progress: bool = True,
  sigterm: Sigterm | None = None,
) -> PyTree:
  """Trains one phase to its end, from its latest checkpoint if there is one.

  The random key of step s is the seed's key, folded by the phase's number
  and by s, so a resumed run equals an uninterrupted one.

  Args:
    phase: one of `config.PHASES`.
    config: the whole config; saved in each checkpoint.
    directory: run directory; the phase writes to `directory/phase`:
      `checkpoints/`, `metrics.jsonl`, `tensorboard/`.
    init_state: makes the train state. It runs under `jax.jit`, so that big
      states are born sharded; `nn.with_logical_partitioning` boxes tell how,
      and are taken off.
    step_fn: pure `(state, batch, key) -> (state, metrics)`; jitted here, with
      the state donated. Metrics are scalars by `room/name`; those whose last
      part is `loss` are watched.
    iterators: an iterator for `clip_length` and, if that is not 0, one for
      `long_clip_length`.
    phase_config: the phase's part of the config, or a variation of it.
    mesh: the device mesh.
    progress: show a bar with the time left and the loss.
    sigterm: tells that the process was asked to stop; by default it listens
      during this phase.

  Returns:
    The trained state, on the devices.

  Raises:
    ValueError: the phase is unknown, an iterator is lacking, the batch does
      not divide over the mesh, or the checkpoint disagrees with the config.
    FloatingPointError: the loss was not finite `MAX_BAD_STEPS` times in a
      row, or at the end.
    PreemptedError: the process was asked to stop by SIGTERM. The steps done so
      far are saved, unless their losses are not finite.
    RuntimeError: an iterator ran out, or a checkpoint could not be saved.
  """
  if phase not in PHASES:
    raise ValueError(f'phase = {phase!r}: must be one of {PHASES}')
  lengths = {phase_config.clip_length, phase_config.long_clip_length} - {0}
  if not lengths <= set(iterators):
    raise ValueError(
      f'{phase}: iterators for clip lengths {sorted(iterators)} were given, '
      f'{sorted(lengths)} are needed'
    )
  sharding.check_batch(mesh, phase_config.batch_size)
  phase_dir = pathlib.Path(directory) / phase
  total = phase_config.steps
  with contextlib.ExitStack() as stack:
    stack.enter_context(sharding.use_mesh(mesh))
    boxed = jax.eval_shape(init_state)
    shardings = sharding.state_sharding(mesh, boxed)
    abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      jax.eval_shape(nn.meta.unbox, boxed),
      shardings,
    )
    checkpoints = stack.enter_context(Checkpoints(phase_dir))
    if checkpoints.latest() is None:
      start = 0
      state = jax.jit(
        lambda: nn.meta.unbox(init_state()), out_shardings=shardings
      )()
    else:
      restored = checkpoints.restore(
        abstract, config=config, fields=model_fields(phase)
      )
      start, state = restored.step, restored.state
      for length in lengths:
        if str(length) in restored.data:
          iterators[length].set_state(restored.data[str(length)])
    _announce(phase, start, total, phase_dir, mesh, abstract)
    if start >= total:
      return state

    step_fn = _compiled(step_fn, phase, config.seed, mesh, shardings)
    writer = stack.enter_context(MetricWriter(phase_dir, resume_step=start))
    bar = stack.enter_context(
      tqdm.tqdm(
        total=total,
        initial=start,
        desc=phase,
        unit='step',
        disable=not progress or jax.process_index() != 0,
      )
    )
    if sigterm is None:
      alone = jax.process_count() == 1
      sigterm = stack.enter_context(Sigterm(active=alone))
    watch = _Watch(phase, writer, phase_config.log_every, total, bar)
    drawn = stack.enter_context(
      contextlib.closing(
        prefetch(
          {n: iterators[n] for n in sorted(lengths)},
          [clip_length_at(s, phase_config) for s in range(start, total)],
        )
      )
    )
    for step, item in zip(range(start, total), drawn, strict=True):
      batch = sharding.place_batch(mesh, item.batch)
      state, metrics = step_fn(state, batch, np.uint32(step))
      done = step + 1
      watch.flush()  # The step before; the device is busy with this one.
      watch.put(done, metrics)
      # With several processes all of them ask, after every step.
      asked = checkpoints.asked_to_stop(done) or sigterm.received
      if done % phase_config.checkpoint_every == 0 or done == total or asked:
        watch.flush()
        _save(checkpoints, done, state, item, config, watch)
      if asked:
        checkpoints.wait()
        raise PreemptedError(
          f'{phase}: asked to stop after step {done:,} of {total:,}; the '
          f'latest checkpoint in {phase_dir} is of step '
          f'{checkpoints.latest()}. The same command goes on from there.'
        )
    watch.check_end()
    checkpoints.wait()
  return state


def _compiled(
  step_fn: StepFn,
  phase: str,
  seed: int,
  mesh: jax.sharding.Mesh,
  shardings: PyTree,
) -> Callable[[PyTree, PyTree, np.uint32], tuple[PyTree, Metrics]]:
  def train_step(state, batch, step):
    key = jax.random.fold_in(jax.random.key(seed), PHASES.index(phase))
    return step_fn(state, batch, jax.random.fold_in(key, step))

  return jax.jit(
    train_step,
    donate_argnums=0,
    out_shardings=(shardings, sharding.replicated(mesh)),
  )


def _save(
  checkpoints: Checkpoints,
  done: int,
  state: PyTree,
  item: Drawn,
  config: Config,
  watch: _Watch,
) -> None:
  if watch.bad_steps:
    _LOG.warning(
      'no checkpoint at step %d: the last %d losses are not finite',
      done,
      watch.bad_steps,
    )
    return
  checkpoints.save(done, state, item.iterator_states, config)


def _announce(
  phase: str,
  start: int,
  total: int,
  phase_dir: pathlib.Path,
  mesh: jax.sharding.Mesh,
  abstract_state: PyTree,
) -> None:
  values = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_state))
  if start >= total:
    what = f'already finished at step {start:,}'
  elif start:
    what = f'resuming from step {start:,} of {total:,}'
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


class _Watch:
  """Fetches metrics one step late, writes them and looks at the loss."""

  def __init__(
    self,
    phase: str,
    writer: MetricWriter,
    log_every: int,
    total: int,
    bar: tqdm.tqdm,
  ):
    self.bad_steps = 0
    self._phase = phase
    self._writer = writer
    self._log_every = log_every
    self._total = total
    self._bar = bar
    self._pending: tuple[int, Metrics] | None = None
    self._last: tuple[int, dict[str, float]] = (0, {})

  def put(self, step: int, metrics: Metrics) -> None:
    """Takes the metrics of a step that may still run on the device."""
    self._pending = (step, metrics)

  def flush(self) -> None:
    """Fetches what was put last; raises `FloatingPointError`."""
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    logged = step % self._log_every == 0 or step == self._total
    losses = {k: v for k, v in metrics.items() if k.split('/')[-1] == 'loss'}
    values = jax.device_get(dict(metrics) if logged else losses)
    bad = {k: float(values[k]) for k in losses if not np.isfinite(values[k])}
    self.bad_steps = self.bad_steps + 1 if bad else 0
    if logged:
      self._writer.write(step, values)
    if losses:
      name = next(iter(losses))
      self._bar.set_postfix({'loss': f'{values[name]:.4g}'}, refresh=False)
    self._bar.update()
    self._last = (step, bad)
    if self.bad_steps >= MAX_BAD_STEPS:
      self._raise()

  def check_end(self) -> None:
    """Raises `FloatingPointError` if the last loss was not finite."""
    if self.bad_steps:
      self._raise()

  def _raise(self) -> None:
    step, bad = self._last
    raise FloatingPointError(
      f'{self._phase}: {bad} at step {step}, not finite {self.bad_steps} '
      'times in a row. No checkpoint was saved since the first of them; '
      f'lower phases.{self._phase}.optimizer.learning_rate or look at the data.'
    )
