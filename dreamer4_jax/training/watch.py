"""Watches a phase's metrics, besides writing them."""

from __future__ import annotations

from collections.abc import Mapping
import logging
import math
from typing import Any

import jax
import tqdm

from dreamer4_jax.checkpoint import Best
from dreamer4_jax.config import Config
from dreamer4_jax.training.metrics import MetricWriter
from dreamer4_jax.types import Array

_LOG = logging.getLogger(__name__)
MAX_BAD_STEPS = 20
"""Training stops after this many non-finite steps in a row."""


class RunningMean:
  """A mean of about the last `window` values; of all, while they are fewer."""

  def __init__(self, window: int, mean: float = 0.0, count: int = 0):
    self.mean = mean
    self.count = min(count, window)
    self._window = window

  def add(self, value: float) -> None:
    """Takes the next value; one that is not finite is left out."""
    if math.isfinite(value):
      self.count = min(self.count + 1, self._window)
      self.mean += (value - self.mean) / self.count


class Watch:
  """Fetches metrics one step late, writes them and checks some.

  A step is bad if a metric whose name ends in `skipped` is not 0: the step has
  left the state as it was, since something was not finite. Without such a
  metric, it is bad if one that ends in `loss` is not finite, and then the state
  is bad as well.

  Attributes:
    state_is_good: whether the state after the last step may be saved.
    bad_steps: bad steps in a row.
  """

  def __init__(
    self,
    phase: str,
    config: Config,
    writer: MetricWriter,
    bar: tqdm.tqdm,
    counters: Mapping[str, Any],
  ):
    """Starts to watch.

    Args:
      phase: name of the phase.
      config: of the run.
      writer: where metrics go.
      bar: progress bar.
      counters: `counters()` of the run that this one continues, or empty.
    """
    self.state_is_good = True
    self.bad_steps = 0
    self._phase = phase
    self._saving = config.saving
    self._steps = getattr(config.phases, phase).steps
    self._writer = writer
    self._bar = bar
    self._pending: tuple[int, Mapping[str, Array]] | None = None
    self._bad = 0
    self._found = ''
    best = Best.of(config.saving, phase)
    self._best = best.metric if best else ''
    past = counters if counters.get('best_metric') == self._best else {}
    self._mean = RunningMean(
      config.saving.checkpoint_every,
      past.get('mean', 0.0),
      past.get('count', 0),
    )

  def counters(self) -> dict[str, Any]:
    """Returns plain data to save with the state."""
    mean = self._mean
    return {'best_metric': self._best, 'mean': mean.mean, 'count': mean.count}

  def value(self) -> float | None:
    """Returns the running mean of `best_metric`, if there is one."""
    return self._mean.mean if self._mean.count else None

  def put(self, step: int, metrics: Mapping[str, Array]) -> None:
    """Takes the metrics of a step that may still run on the device."""
    if self._best and self._best not in metrics:
      raise ValueError(
        f'saving.best_metric = {self._best!r}: must be one of {sorted(metrics)}'
      )
    self._pending = (step, metrics)

  def flush(self) -> None:
    """Fetches what was put last; raises `FloatingPointError`."""
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    losses, skips = _named('loss', metrics), _named('skipped', metrics)
    last = step == self._steps
    logged = last or step % self._saving.log_every == 0
    watched = {*losses, *skips, self._best} & set(metrics)
    values = jax.device_get(
      dict(metrics) if logged else {name: metrics[name] for name in watched}
    )
    bad = {k: float(values[k]) for k in losses if not math.isfinite(values[k])}
    skipped = any(values[k] for k in skips)
    self.state_is_good = bool(skips) or not bad
    self.bad_steps = self.bad_steps + 1 if skipped or (bad and not skips) else 0
    if logged:
      self._writer.write(step, values)
    if losses:
      self._bar.set_postfix({'loss': f'{values[losses[0]]:.4g}'}, refresh=False)
    self._bar.update()
    if self._best:
      self._mean.add(float(values[self._best]))
    if self.bad_steps:
      self._report(step, str(bad) if bad else 'the gradient', skipped)
    if self.bad_steps >= MAX_BAD_STEPS:
      self._raise()

  def note(self, step: int, values: Mapping[str, float]) -> None:
    """Writes what somebody else has measured, if that is anything."""
    if values:
      self._writer.write(step, values)

  def check_end(self) -> None:
    """Raises `FloatingPointError` if the last state may not be used."""
    if not self.state_is_good:
      self._raise()

  def _report(self, step: int, what: str, skipped: bool) -> None:
    self._found = f'{what} at step {step}'
    self._bad += 1
    # Ten lines tell as much as a thousand.
    if skipped and (self._bad <= 10 or self._bad % 100 == 0):
      _LOG.warning(
        '%s: %s is not finite; the step was skipped, %s since the start',
        self._phase,
        self._found,
        f'{self._bad:,}',
      )

  def _raise(self) -> None:
    state = 'No checkpoint was saved since the first of them'
    if self.state_is_good:
      state = 'They were skipped, and checkpoints hold the state before them'
    raise FloatingPointError(
      f'{self._phase}: {self._found}, not finite {self.bad_steps} times in a '
      f'row. {state}; lower phases.{self._phase}.learning_rate or look '
      'at the data.'
    )


def _named(last: str, metrics: Mapping[str, Array]) -> list[str]:
  return [name for name in metrics if name.split('/')[-1] == last]
