"""Actions from outside to components, as the models take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamer4_jax.models import check_actions
from dreamer4_jax.models.actions import ActionSpace


def to_actions(
  given: Mapping[str, Any],
  space: ActionSpace,
  lead: tuple[int, ...],
  field: str,
) -> dict[str, np.ndarray]:
  """Returns actions in the types of the space, `[*lead, ...]`.

  Continuous values beyond their bounds are clipped to them.

  Args:
    given: components by name, of any numeric types.
    space: the action space.
    lead: leading axes, such as `(B,)`.
    field: name used in errors.

  Raises:
    ValueError: a component is missing, unknown, or out of its range.
  """
  actions = {}
  for name, value in given.items():
    part = next((p for p in space if p.name == name), None)
    x = np.asarray(value)
    if part is not None and part.kind == 'continuous':
      x = np.clip(x.astype(np.float32), part.low, part.high)
    elif x.dtype == bool or np.issubdtype(x.dtype, np.integer):
      x = x.astype(np.int32)
    actions[name] = x
  check_actions(actions, space, lead, field)
  return actions
