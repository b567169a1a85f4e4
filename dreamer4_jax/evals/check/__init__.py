"""`dreamer4 data check`: can a dataset teach what it should?

Everything is measured on the dataset alone, on a sample of bounded size, and
is the same whenever it is measured again.
"""

from __future__ import annotations

from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np

from dreamer4_jax.config import ActionComponent
from dreamer4_jax.data import format as fmt
from dreamer4_jax.data.sources import EpisodeSource
from dreamer4_jax.evals import dataset
from dreamer4_jax.evals.check import sample as sampling
from dreamer4_jax.evals.check import timing
from dreamer4_jax.evals.findings import Finding, Scale, judge, note

CLIPS = 320
"""Clips that are read of the first split."""
TWINS = 2000
"""Episodes of each split that are compared with the other's."""
_BOUND = 1e-3


def examine(
  path: str | pathlib.Path,
  *,
  split: str = 'train',
  clips: int = CLIPS,
  lag: int = 0,
) -> list[Finding]:
  """Examines a dataset.

  Args:
    path: directory of the dataset.
    split: which is examined; all others are compared with it.
    clips: of it that are read, at most.
    lag: frames that its world takes to show an action; 0 if the next frame
      shows it.

  Returns:
    What was found, part by part.

  Raises:
    FileNotFoundError: there is no dataset.
    ValueError: it is damaged, has no such split, or `lag` is not from 0 to 2.
  """
  if not 0 <= lag < timing.REACH:
    raise ValueError(
      f'lag: found {lag}, expected 0 to {timing.REACH - 1}, the frames that '
      'the world takes to show an action'
    )
  source = EpisodeSource(path, split, cache_bytes=0)
  summary = dataset.summary(path)
  drawn = sampling.draw(source, clips)
  found = _frames(drawn)
  found += _actions(source.description, drawn)
  if source.description.actions:
    found.append(when(timing.measure(drawn.clips), lag))
  found += _rewards(source.description, summary['splits'][split])
  return found + _splits(path, source, list(summary['splits']))


def _frames(drawn: sampling.Sample) -> list[Finding]:
  """Black, white, doubled, still and torn frames."""
  read = note('frames', 'read', f'{drawn.frames:,} frames', drawn.frames)
  if not drawn.looks:
    return [read]
  join = lambda name: np.concatenate([getattr(x, name) for x in drawn.looks])
  mean, change = join('mean'), join('change')
  moved = [x.change for x in drawn.looks if len(x.change)]
  still = np.mean([not x.any() for x in moved]) if moved else None
  found = [
    read,
    note('frames', 'brightness, from 0 to 1',
         f'{mean.mean():.2f}, spread {mean.std():.2f}', mean.mean()),
    judge('frames', 'black', join('black').mean(),
          Scale(fine=0.02, wrong=0.5, digits=3),
          'Cut them out: nothing can be learned from them.'),
    judge('frames', 'all white', join('white').mean(),
          Scale(fine=0.02, wrong=0.5, digits=3),
          'Cut them out: nothing can be learned from them.'),
  ]  # fmt: skip
  if not moved:
    return found
  return [
    *found,
    judge('frames', 'the same as the one before', (change == 0).mean(),
          Scale(fine=0.6, wrong=0.98),
          'Is the frame rate of the recordings higher than that of the world, '
          'or does hardly any action do anything?'),
    judge('frames', 'clips in which nothing moves', still,
          Scale(fine=0.1, wrong=0.8),
          'Leave out what stands still.'),
    judge('frames', 'jumps within an episode', _jumps(change),
          Scale(fine=0.005, wrong=0.2, digits=4),
          'Are there cuts? Each episode must be one unbroken recording.'),
  ]  # fmt: skip


def _jumps(change: np.ndarray) -> float:
  """Share of changes far beyond what is usual, and large."""
  moved = change[change > 0]
  if not len(moved):
    return 0.0
  usual = np.quantile(moved, 0.9)
  return float((change > max(5 * usual, 0.1)).mean())


def _actions(
  description: fmt.Description, drawn: sampling.Sample
) -> list[Finding]:
  """Which actions are never taken, and how often they are repeated."""
  if not description.actions:
    return [note('actions', 'actions', 'none: video alone')]
  count = len(next(iter(drawn.actions.values()), ()))
  if not count:
    return [
      Finding(
        phase='actions', name='known', value=0.0, text='none',
        usual='some', verdict='look',
        advice='It is video; nothing can be learned of its actions.',
      )
    ]  # fmt: skip
  found = []
  for part in description.actions:
    labels = description.labels.get(part.name)
    found.append(_component(part, drawn.actions[part.name], labels))
    if part.kind == 'continuous':
      at = np.isclose(drawn.actions[part.name], part.low, atol=_BOUND)
      at |= np.isclose(drawn.actions[part.name], part.high, atol=_BOUND)
      found.append(
        judge('actions', f'{part.name} at its bounds', at.mean(),
              Scale(fine=0.5, wrong=1.1),
              'Are the bounds those of the data, or were values cut off?')
      )  # fmt: skip
  text = f'{drawn.repeated:.1%} of the steps'
  return [
    *found,
    note('actions', 'the same as the one before', text, drawn.repeated),
  ]


def _component(
  part: ActionComponent, values: np.ndarray, labels: list[str] | None
) -> Finding:
  """Says which classes, bits or numbers never vary."""
  if part.kind == 'categorical':
    dead = np.bincount(values, minlength=part.size) == 0
    alive = int((~dead).sum()) > 1
  else:
    dead = values.std(axis=0) < 1e-6
    alive = not dead.all()
  names = labels or [str(i) for i in range(part.size)]
  some = [names[i] for i in np.flatnonzero(dead)]
  text = f'{len(dead) - len(some)} of {len(dead)}'
  if some:
    more = f' and {len(some) - 6} more' if len(some) > 6 else ''
    text += f', not {", ".join(some[:6])}{more}'
  share = len(some) / len(dead)
  return Finding(
    phase='actions', name=f'{part.name}: values that occur', value=1 - share,
    text=text, usual='all of them',
    # Many classes are rarely all used, such as those of a camera.
    verdict='wrong' if not alive else 'look' if share > 0.25 else 'fine',
    advice='A world model learns nothing of an action that is never taken, or '
    'always. Record more, or drop it.',
  )  # fmt: skip


def when(curve: timing.Curve | None, lag: int = 0) -> Finding:
  """Judges a curve: the last large gain must be at `-lag`."""
  name = 'what a frame tells of the action at k'
  usual = f'first seen of k = {-lag:+d}'
  finding = lambda value, text, verdict, advice: Finding(
    phase='actions', name=name, value=value, text=text, usual=usual,
    verdict=verdict, advice=advice,
  )  # fmt: skip
  if curve is None:
    return finding(
      None, 'cannot tell: too few steps with known actions, or all actions '
      'follow from those before', 'unknown', '',
    )  # fmt: skip
  text = ', '.join(f'{k:+d}: {v:.3f}' for k, v in curve.gain.items())
  text += f' (of {curve.rows:,} frames)'
  if curve.onset is None:
    verdict = 'unknown' if curve.seen else 'look'
    return finding(
      None, f'cannot tell: {text}', verdict,
      'Frames tell nothing of the actions near them. Is the world slow, or are '
      'these the actions of other recordings?',
    )  # fmt: skip
  off = curve.onset + lag
  side = 'late' if off > 0 else 'early'
  return finding(
    float(curve.onset), text, 'wrong' if off else 'fine',
    f'Actions stand {abs(off)} row(s) {side}: what led to a frame stands '
    'beside another. Convert them again'
    + (', or say --lag if the world itself is slow.' if off < 0 else '.'),
  )  # fmt: skip


def _rewards(
  description: fmt.Description, summary: Mapping[str, Any]
) -> list[Finding]:
  """Rewards and events by task."""
  spread = summary['return']
  text = f'{spread["min"]:g} to {spread["max"]:g}, mean {spread["mean"]:.3g}'
  found = [note('rewards', 'return of an episode', text, spread['mean'])]
  if not description.tasks:
    return found
  if description.tasks == fmt.REWARD_ONLY:
    differ = spread['max'] > spread['min']
    return [
      Finding(
        phase='rewards', name='return of an episode', value=spread['mean'],
        text=text, usual='not all the same',
        verdict='fine' if differ else 'look',
        advice='Every episode earns the same; no policy can improve on it.',
      )
    ]  # fmt: skip
  for task, entry in summary['events'].items():
    many = f'{entry["count"]:,}, in {entry["episodes"]:.1%} of the episodes'
    found.append(
      Finding(
        phase='rewards', name=f'events of {task}', value=float(entry['count']),
        text=many, usual='at least 20',
        verdict='fine' if entry['count'] >= 20 else 'look',
        advice='Too few to learn the task from; record more, or leave it out.',
      )
    )  # fmt: skip
  return found


def _splits(
  path: str | pathlib.Path, source: EpisodeSource, splits: list[str]
) -> list[Finding]:
  """Are there episodes that both are trained on and held out?"""
  others = [name for name in splits if name != source.split]
  if not others:
    return [
      Finding(
        phase='splits', name='held out', value=0.0, text='nothing',
        usual='another split', verdict='look',
        advice='Without held-out episodes nothing can be evaluated.',
      )
    ]  # fmt: skip
  found = []
  for name in others:
    other = EpisodeSource(path, name, cache_bytes=0)
    twins = sampling.twins(other, source, TWINS)
    unsure = f'none of the {TWINS:,} that were compared'
    found.append(
      Finding(
        phase='splits', name=f'episodes of {name} that {source.split} has too',
        value=None if twins is None else float(twins),
        text=unsure if twins is None else f'{twins} of {len(other):,}',
        usual='none', verdict='wrong' if twins else 'fine',
        advice='What is held out must not be trained on; split again.',
      )
    )  # fmt: skip
    found += _shared(source, other)
  return found


def _shared(source: EpisodeSource, other: EpisodeSource) -> list[Finding]:
  """Sessions, players' files and the like that lie in both splits."""
  found = []
  for key in ('file', 'session'):
    of = lambda s, key=key: {a[key] for a in s.index.attributes if key in a}
    both = of(source) & of(other)
    if both:
      found.append(
        Finding(
          phase='splits', name=f'{key} in {source.split} and {other.split}',
          value=float(len(both)), text=f'{len(both)}, as {min(both)}',
          usual='none', verdict='look',
          advice='Parts of one recording are alike; split by recording.',
        )
      )  # fmt: skip
  return found
