"""Which episodes keep their actions, for experiments with few labels.

The paper trains on many hours of video of which only some have actions: the
first hours of the dataset, or those of certain worlds (section 4.3 of arXiv
2509.24527).
"""

from __future__ import annotations

from collections.abc import Sequence
import operator
import re
from typing import Any

import numpy as np

from dreamer4_jax.config import SourceConfig, require
from dreamer4_jax.data.format import Attributes, SplitIndex
from dreamer4_jax.data.sources import EpisodeSource

_COMPARE = {
  '<=': operator.le, '>=': operator.ge, '!=': operator.ne,
  '=': operator.eq, '<': operator.lt, '>': operator.gt,
}  # fmt: skip


EPISODE = 'episode'
"""What stands for the number of an episode in its split, from 0."""


def labeled_episodes(
  source: EpisodeSource, dataset: SourceConfig
) -> np.ndarray:
  """Returns `[episodes]` bool: all conditions of the config must hold.

  Raises:
    ValueError: hours are asked for and the dataset has no frame rate, or a
      condition names an attribute that no episode has.
  """
  index, count = source.index, len(source)
  labeled = is_labeled(np.arange(count), dataset.labeled_share)
  if dataset.labeled_hours is not None:
    rate = source.description.frame_rate
    require(
      rate > 0,
      'labeled_hours',
      dataset.labeled_hours,
      f'{source.path} has no frame rate; use labeled_share instead',
    )
    labeled &= index.ends <= dataset.labeled_hours * 3600 * rate
  if dataset.labeled_where:
    known = index.attributes or ({},) * count
    numbered = [{**a, EPISODE: i} for i, a in enumerate(known)]
    matches = matching(numbered, dataset.labeled_where)
    if not matches.any():
      raise ValueError(
        f'labeled_where = {dataset.labeled_where}: no episode of '
        f'{source.split!r} in {source.path} matches; they have '
        f'{_summary(numbered)}'
      )
    labeled &= matches
  return labeled


def known_episodes(source: EpisodeSource, labeled: np.ndarray) -> np.ndarray:
  """Returns `[episodes]` bool: those of `labeled` with any action recorded."""
  if not source.description.actions:
    return np.zeros(len(source), bool)
  return labeled & (source.index.known > 0)


def better_half(
  indices: Sequence[SplitIndex], among: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """Chooses the better half of some episodes of all datasets together.

  Args:
    indices: of the datasets.
    among: `[episodes]` bool for each, the episodes to choose from.

  Returns:
    `[episodes]` bool for each: the half, rounded up, of highest return; ties
    go to those with more events, then to the earlier ones. Returns count only
    if all datasets have them.
  """
  returns = [x.returns for x in indices]
  if any(x is None for x in returns):
    returns = [np.zeros(len(x.lengths)) for x in indices]
  events = [
    np.bincount(x.event_episode, minlength=len(x.lengths)) for x in indices
  ]
  mask = np.concatenate(list(among))
  number = np.flatnonzero(mask)
  # The last key counts first; ties stay in order.
  order = np.lexsort(
    (-np.concatenate(events)[number], -np.concatenate(returns)[number])
  )
  best = np.zeros(len(mask), bool)
  best[number[order[: (len(number) + 1) // 2]]] = True
  return np.split(best, np.cumsum([len(x) for x in among])[:-1])


def is_labeled(episodes: np.ndarray, share: float) -> np.ndarray:
  """Whether episodes keep their actions; fixed for each episode.

  Args:
    episodes: numbers in the split.
    share: expected share of episodes that do.
  """
  # The finalizer of MurmurHash3: consecutive numbers spread over 32 bits.
  h = (np.asarray(episodes, np.uint64) + 1) & 0xFFFFFFFF
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    h = ((h ^ (h >> np.uint64(shift))) * np.uint64(factor)) & 0xFFFFFFFF
  return (h ^ (h >> np.uint64(16))) < share * 2**32


def matching(
  attributes: Sequence[Attributes], conditions: Sequence[str]
) -> np.ndarray:
  """Returns `[episodes]` bool: which episodes fulfil every condition.

  Args:
    attributes: of each episode.
    conditions: such as `noise<=0.5` or `world=overworld`; numbers are compared
      as numbers, everything else as text. An episode that lacks the attribute
      does not match.

  Raises:
    ValueError: a condition is malformed.
  """
  result = np.ones(len(attributes), bool)
  for condition in conditions:
    found = re.fullmatch(
      r'\s*([^<>=!\s]+)\s*(<=|>=|!=|=|<|>)\s*(.+?)\s*', condition
    )
    if not found:
      raise ValueError(
        f'labeled_where = {condition!r}: must be NAME, one of '
        f'{" ".join(_COMPARE)}, and a value, for example noise<=0.5'
      )
    name, symbol, wanted = found.groups()
    compare = _COMPARE[symbol]
    result &= [
      name in a and _holds(compare, a[name], wanted) for a in attributes
    ]
  return result


def _holds(compare: Any, value: Any, wanted: str) -> bool:
  if isinstance(value, int | float) and not isinstance(value, bool):
    try:
      return compare(float(value), float(wanted))
    except ValueError:
      return False
  if compare not in (operator.eq, operator.ne):
    return False
  return compare(str(value).lower(), wanted.lower())


def _summary(attributes: Sequence[Attributes]) -> str:
  names = sorted({name for a in attributes for name in a})
  shown = []
  for name in names[:10]:
    values = sorted({str(a[name]) for a in attributes if name in a})
    more = ', ...' if len(values) > 4 else ''
    shown.append(f'{name} ({", ".join(values[:4])}{more})')
  return ', '.join(shown) or 'no attributes'
