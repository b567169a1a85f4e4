"""What the recordings contain, measured as policies are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamer4_jax.config import Config, require
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.data.format import REWARD_ONLY
from dreamer4_jax.evals.closed_loop import Episodes

_NAME = 'recorded'


def is_recorded(policy: str) -> bool:
  """Whether this is the name of recordings, among those of policies."""
  return policy.partition('_')[0] == _NAME


def recorded(
  config: Config,
  tasks: Sequence[str],
  split: str | None = None,
  by: str = 'noise',
) -> dict[str, Episodes]:
  """Returns the episodes of a split, apart for each kind of player.

  They are as long as the recorder let them be, which may be longer than those
  of the evaluation, and on worlds of their own.

  Args:
    config: of the run; its first source is read.
    tasks: order of the tasks in `Episodes`; those that the recordings do not
      have were never achieved.
    split: by default the held-out one.
    by: attribute of episodes that tells players apart.

  Returns:
    `recorded_VALUE` for each value of the attribute, the lowest first, or
    `recorded` if the episodes do not have it. Without frames.

  Raises:
    ValueError: the last task of the prompt is not among `tasks`.
  """
  source = EpisodeSource(
    config.data.path, split or config.data.eval_split, cache_bytes=0
  )
  index, names = source.index, list(tasks)
  count = np.zeros((len(index.lengths), len(names)), np.int32)
  column = [names.index(n) if n in names else -1
            for n in source.description.tasks]  # fmt: skip
  task = np.asarray(column)[index.event_task]
  at, frame = (index.event_episode, task), index.event_frame
  at, frame = [x[task >= 0] for x in at], frame[task >= 0]
  np.add.at(count, tuple(at), 1)
  first = np.full(count.shape, np.iinfo(np.int32).max, np.int32)
  np.minimum.at(first, tuple(at), frame)
  first[count == 0] = -1
  success = None
  if tuple(names) != REWARD_ONLY:
    stages = config.stages()
    goal = config.tasks[stages[-1][0]]
    require(
      goal in names,
      'tasks',
      names,
      f'must have {goal}, which the prompt ends in',
    )
    times = sum(n for task, n in stages if config.tasks[task] == goal)
    success = count[:, names.index(goal)] >= times
  returns = index.returns
  if returns is None:
    returns = np.full(len(count), np.nan)
  values = [a.get(by) for a in index.attributes] or [None] * len(count)
  found = {}
  for value in sorted(set(values), key=lambda v: (v is None, str(v))):
    own = np.array([v == value for v in values])
    found[_NAME if value is None else f'{_NAME}_{value}'] = Episodes(
      success=None if success is None else success[own],
      returns=np.asarray(returns, np.float32)[own],
      # The last frame is arrived at by the last step.
      length=np.asarray(index.lengths)[own] - 1,
      achieved=count[own] > 0,
      first=first[own],
      frames=np.zeros((0, 1, *config.tokenizer.frame_shape), np.uint8),
    )
  return found
