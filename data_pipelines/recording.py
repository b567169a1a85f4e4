"""Turns what is played into episodes, shards and a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import writer
from data_pipelines.stage import Lane, Played, Stage
from dreamer4_jax.data import format as fmt
from dreamer4_jax.types import Array, EnvStep

SHARD_FRAMES = 20_000
"""Frames between points from which an interrupted recording can resume."""


@dataclasses.dataclass
class _Open:
  """An episode that is being recorded.

  Attributes:
    number: of the episode.
    level: index into the noise levels.
    vectors: whether vectors are kept.
    seen: pieces of its frames and vectors, time leading.
    steps: pieces of the other fields of its steps.
  """

  number: int
  level: int = 0
  vectors: bool = True
  seen: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def add(self, played: Played, place: int) -> bool | None:
    """Takes a block's steps up to the end of the episode.

    Returns:
      Whether the episode ended for good; None if it has not ended.
    """
    step = played.step
    ended = step.terminal[:, place] | step.timeout[:, place]
    count = int(np.argmax(ended)) + 1 if ended.any() else len(ended)
    own = jax.tree.map(lambda x: x[:count, place].copy(), played)
    self.seen.append(_seen(own.step, self.vectors))
    self.steps.append(
      {
        'action': own.action,
        'action_known': np.ones(count, bool),
        'reward': own.step.reward,
        'events': own.step.events.astype(np.uint8),
      }
    )
    return bool(step.terminal[count - 1, place]) if ended.any() else None

  def close(self, terminal: bool, levels: tuple[float, ...]) -> writer.Episode:
    """Returns the whole episode; its last frame has no action."""
    noise = {'noise': levels[self.level]} if levels else {}
    last = jax.tree.map(lambda x: np.zeros_like(x[:1]), self.steps[-1])
    join = lambda *x: np.concatenate(x)
    return writer.Episode(
      steps={
        **jax.tree.map(join, *self.seen),
        **jax.tree.map(join, *self.steps, last),
      },
      terminal=terminal,
      attributes={'number': self.number, **noise},
    )


def _seen(step: EnvStep, vectors: bool) -> dict[str, Any]:
  """Returns what is kept of a step's observation, by field."""
  beside = {'vector': step.vectors} if vectors else {}
  return {'observation': step.frame, **beside}


def record(
  stage: Stage, numbers: Iterable[int], key: Array
) -> Iterator[writer.Episode]:
  """Plays episodes until no numbers are left.

  Args:
    stage: environment and player.
    numbers: of the episodes still to be played.
    key: of the split.

  Yields:
    Episodes, in the order in which they end, with the attribute `number`, and
    `noise` where the player draws one.
  """
  waiting = iter(numbers)
  kept = stage.config.vectors
  places: list[_Open | None] = [None] * stage.batch
  lane: Lane | None = None
  while True:
    restarted = np.zeros(stage.batch, bool)
    # Simulators on the host start all their episodes at once.
    if not (stage.env.spec.on_host and any(places)):
      for i in range(stage.batch):
        number = next(waiting, None) if places[i] is None else None
        if number is not None:
          places[i], restarted[i] = _Open(number, vectors=kept), True
    if not any(places):
      return
    if restarted.any():
      # On accelerators, places without an episode keep playing, unrecorded.
      keys = stage.keys(key, [p.number if p else 0 for p in places])
      lane = (
        stage.begin(keys)
        if lane is None
        else stage.resume(lane, keys, jnp.asarray(restarted))
      )
      if stage.env.spec.on_host:
        # Here an unused place costs as much as one with an episode, unless
        # it is marked as ended: then it is not played.
        lane.state.timeout[[place is None for place in places]] = True
      seen = _seen(lane.step, kept)
      levels, first = jax.device_get((stage.levels(keys), seen))
      for i in np.flatnonzero(restarted):
        places[i].level = int(levels[i])
        own = jax.tree.map(lambda x, i=i: x[i : i + 1].copy(), first)
        places[i].seen.append(own)
    lane, played = stage.play(stage.player.params, lane)
    played = jax.device_get(played)
    for i, place in enumerate(places):
      terminal = place.add(played, i) if place else None
      if terminal is not None:
        yield place.close(terminal, stage.config.levels)
        places[i] = None


def write_shards(
  episodes: Iterator[writer.Episode],
  prefix: pathlib.Path,
  description: fmt.Description,
  tick: Callable[[], Any],
) -> None:
  """Writes episodes to shards of about `SHARD_FRAMES`.

  Args:
    episodes: consumed once.
    prefix: `PREFIX-00000` and so on are the shards; finished ones are kept.
    description: of the episodes.
    tick: called after each episode.
  """
  following = next(episodes, None)
  free = (prefix.with_name(f'{prefix.name}-{i:05d}') for i in itertools.count())
  while following is not None:
    path = next(p for p in free if not writer.index_path(p).exists())
    with writer.Shard(path, description) as shard:
      while following is not None:
        _add(shard, following)
        tick()
        following = next(episodes, None)
        if sum(shard.index.lengths) >= SHARD_FRAMES:
          break


def _add(shard: writer.Shard, episode: writer.Episode) -> None:
  """Adds an episode; says what to do about vectors that cannot be kept."""
  try:
    shard.add(episode)
  except writer.EpisodeError as error:
    if not str(error).startswith('vector/'):
      raise
    raise writer.EpisodeError(
      f'{error}; --no-vectors records frames alone'
    ) from error


def finished(work: pathlib.Path, split: str) -> list[pathlib.Path]:
  """Returns the finished shards of a split in a directory."""
  suffix = writer.index_path(work / 'x').name.removeprefix('x')
  found = sorted(work.glob(f'{split}-*{suffix}'))
  return [p.with_name(p.name.removesuffix(suffix)) for p in found]


def missing(work: pathlib.Path, split: str, count: int) -> list[int]:
  """Returns the numbers of the episodes that no finished shard holds."""
  done = {
    attributes['number']
    for path in finished(work, split)
    for attributes in writer.read_index(path).attributes
  }
  return [number for number in range(count) if number not in done]


class Tally:
  """Collects statistics of episodes, for the report."""

  def __init__(self, tasks: tuple[str, ...]):
    self._tasks = tasks
    self._lengths: list[int] = []
    self._returns: list[float] = []
    self._noise: list[float | None] = []
    self._achieved: list[np.ndarray] = []

  def add_index(self, index: writer.ShardIndex) -> None:
    """Counts the episodes of a shard."""
    self._returns += index.returns
    for length, events, attributes in zip(
      index.lengths, index.events, index.attributes, strict=True
    ):
      achieved = np.zeros(len(self._tasks), bool)
      achieved[[task for _, task in events]] = True
      self._lengths.append(length)
      self._noise.append(attributes.get('noise'))
      self._achieved.append(achieved)

  def report(self) -> dict[str, Any]:
    """Returns means; the last task counts as success.

    Success and events are left out where the environment has none, and rates
    by noise where the player draws none.
    """
    found = {
      'episodes': len(self._lengths),
      'frames': int(sum(self._lengths)),
      'mean_length': float(np.mean(self._lengths)),
      'mean_return': float(np.mean(self._returns)),
    }
    if self._tasks == fmt.REWARD_ONLY:
      return found
    achieved, noise = np.asarray(self._achieved), np.asarray(self._noise)
    rates = lambda rows: dict(
      zip(self._tasks, achieved[rows].mean(0).tolist(), strict=True)
    )
    found['success_rate'] = float(achieved[:, -1].mean())
    found['event_rate'] = rates(slice(None))
    if None not in self._noise:
      found['event_rate_by_noise'] = {
        f'{p:g}': rates(noise == p) for p in sorted(set(self._noise))
      }
    return found
