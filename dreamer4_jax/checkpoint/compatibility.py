"""Whether a saved config describes the same model as the current one."""

from __future__ import annotations

from collections.abc import Sequence
import json
from typing import Any

from dreamer4_jax.config import Config

MODEL_FIELDS = ('vectors', 'tokenizer', 'actions', 'dynamics', 'agent')
_PHASE_FIELDS = {
  'tokenizer': MODEL_FIELDS[:2],
  'dynamics': MODEL_FIELDS[:4],
}


def model_fields(phase: str) -> tuple[str, ...]:
  """Returns the parts of a config that shape the model of a phase."""
  return _PHASE_FIELDS.get(phase, MODEL_FIELDS)


def check_config(
  saved: Config, current: Config, where: str, fields: Sequence[str]
) -> None:
  """Raises `ValueError` at the first field in which the models differ."""
  old, new = (json.loads(c.to_json()) for c in (saved, current))
  for field in fields:
    _compare(field, old[field], new[field], where)
  if 'agent' not in fields:
    return
  # Tasks and prompts of baselines are rows of the task embedding.
  by_name = not current.agent.task_vector_size
  same = saved.tasks == current.tasks
  if saved.num_tasks != current.num_tasks or (by_name and not same):
    raise ValueError(
      f'tasks = {current.tasks!r}: the checkpoint in {where} was made with '
      f'{saved.tasks!r}; give the same in the same order, or choose another '
      'run directory'
    )
  if saved.baselines != current.baselines:
    share = current.phases.finetune.baseline_share
    raise ValueError(
      f'phases.finetune.baseline_share = {share!r}: the checkpoint in {where} '
      f'was made with {saved.phases.finetune.baseline_share!r}; both must be 0 '
      'or both positive; set it back, or choose another run directory'
    )


def _compare(field: str, old: Any, new: Any, where: str) -> None:
  if isinstance(old, dict) and isinstance(new, dict):
    for name in new:
      _compare(f'{field}.{name}', old[name], new[name], where)
  elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
    for i, (a, b) in enumerate(zip(old, new, strict=True)):
      _compare(f'{field}.{i}', a, b, where)
  elif old != new:
    raise ValueError(
      f'{field} = {new!r}: the checkpoint in {where} was made with {old!r}; '
      'set it back, or choose another run directory'
    )
