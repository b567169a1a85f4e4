"""Which checkpoints are kept, and which of them is the best."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import logging
import math
import pathlib
import shutil
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from dreamer4_jax.config import SavingConfig

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
  """What makes a checkpoint better than another."""

  metric: str
  """Name of the value that checkpoints are compared by."""
  mode: Literal['min', 'max'] = 'min'
  """Whether a low or a high value is good."""

  @classmethod
  def of(cls, saving: SavingConfig, phase: str) -> Best | None:
    """Returns how checkpoints of a phase are compared, if they are."""
    mode, _, metric = saving.best_metric.rpartition(':')
    group, slash, _ = metric.rpartition('/')
    if not metric or (slash and group != phase):
      return None
    return cls(metric=metric, mode='max' if mode == 'max' else 'min')

  def quality(self, values: Mapping[str, float] | None) -> float:
    """Returns a number that is higher for better checkpoints.

    It is minus infinity if there is no value, or only one of another metric,
    which an earlier config asked for.
    """
    value = (values or {}).get(self.metric, math.nan)
    if not math.isfinite(value):
      return -math.inf
    return value if self.mode == 'max' else -value


def keep_options(keep_last: int, best: Best | None) -> dict[str, Any]:
  """Returns the options of Orbax's manager that keep these checkpoints."""
  latest = policies.LatestN(keep_last)
  if best is None:
    return {'preservation_policy': latest}
  top = policies.BestN(
    get_metric_fn=best.quality,
    n=1,
    keep_checkpoints_without_metrics=False,
  )
  return {
    'preservation_policy': policies.AnyPreservationPolicy([latest, top]),
    'best_fn': best.quality,  # Values are written only if this is set.
  }


def drop_damaged_values(directory: pathlib.Path) -> None:
  """Removes values that cannot be read, which keep a manager from opening.

  Their checkpoints remain, but are not among the best.
  """
  if jax.process_index() == 0:
    for path in directory.glob('*/metrics/metrics'):
      try:
        json.loads(path.read_text())
      except ValueError as error:
        _LOG.warning('%s: cannot be read (%s); dropped', path, error)
        shutil.rmtree(path.parent)
  ocp.multihost.sync_global_processes('drop_damaged_values')
