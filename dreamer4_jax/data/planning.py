"""Chooses windows: pure functions of the index, a seed and a row's number.

A window of `length` frames is a list of segments, each a stretch of one
episode.

*Uniform* windows come in epochs, each of which shows every frame once; see
`dreamer4_jax.data.epochs`.

*Relevant* windows are placed on an event of a task, each independently. Where
no dataset has any event, everything with known actions is relevant: these
windows are then uniform ones of the labeled episodes, in epochs of their own.

*Novel* windows hold a frame drawn by its weight, anywhere in the window, and
stay within its episode if that is long enough; see `dreamer4_jax.data.novelty`.

*Baseline* windows are what clones without a task learn from: uniform ones of
the labeled episodes, in epochs of their own, taken alternately from all these
episodes and from the better half of them.

*Dream* windows, uniform or relevant, are contexts that imagination continues.
Nothing follows a terminal frame, so they are cut from episodes without it, and
relevant ones end in the episode of their event, if it is as long as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import Literal

import numpy as np

from dreamer4_jax.config import require
from dreamer4_jax.data.epochs import Epochs, apportion, spread
from dreamer4_jax.data.format import SplitIndex
from dreamer4_jax.data.labels import better_half
from dreamer4_jax.data.sources import Stretch

_LABELED = 1 << 31
"""Seed of relevant windows without events; never the number of an epoch."""
_BASELINES = _LABELED + 1, _LABELED + 2
"""Seeds of the windows of each baseline, those of `config.BASELINES`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
  """All that is decided about a row of the batch before frames are read.

  Attributes:
    source: number of the dataset.
    segments: stretches that fill the window, in order.
    anchor_task: the task whose event a relevant window was placed on, else
      -1. The event lies in the first segment, or in the same episode after it.
    cloned: number of frames, from the first on, whose actions are cloned: up to
      the action that achieves the anchor's event; the whole window if it is a
      baseline's, or relevant in a split without events; none if it is uniform.
    switch_tasks: labels advance at each event, as prompts do.
    separate_images: each frame is a segment of its own, without actions.
    prompt: number of the baseline that learns from the window, else -1.
  """

  source: int = 0
  segments: tuple[Stretch, ...]
  anchor_task: int
  switch_tasks: bool
  separate_images: bool
  cloned: int = 0
  prompt: int = -1

  @property
  def relevant(self) -> bool:
    """Whether behaviour is cloned from the window."""
    return self.cloned > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
  """How clips are drawn from datasets.

  Attributes:
    length: frames of a window.
    batch_size: rows of a *global* batch.
    seed: of all random choices.
    relevant_share: share of rows placed on an event; see `is_relevant`. They
      come from the datasets that have events, by weight. If none has, they are
      uniform windows of labeled episodes.
    baseline_share: share of rows, among those that are not relevant, cloned
      under prompts that are not tasks: alternately from all labeled episodes,
      with datasets by weight, and from the better half of all of them, by
      return, then by number of events, then the earlier ones.
    novel_share: share of the remaining rows that hold a frame drawn by its
      weight; the weights must have been measured, see `data.novelty`.
    separate_images: probability that a row is treated as separate images,
      each frame a segment of its own, without actions; rows of baselines never
      are.
    switch_tasks: probability that a row's labels advance at each event.
    milestones: only the first event of a task in an episode counts, for labels
      and relevant rows; as for an agent that is prompted with each task once.
    lead: half of the relevant rows end up to this many frames before their
      event, and do not show it; at 0, all show it. Rows of video always do.
    purpose: `video` takes everything; `cloning` leaves out datasets that have
      neither events nor rewards, and needs actions on the relevant rows;
      `dreams` leaves them out as well, and draws contexts of dreams: none holds
      a terminal frame, and all are labeled as for an acting agent, with a task
      that is still to be done.
  """

  length: int
  batch_size: int
  seed: int = 0
  relevant_share: float = 0.0
  baseline_share: float = 0.0
  novel_share: float = 0.0
  separate_images: float = 0.0
  switch_tasks: float = 0.5
  milestones: bool = False
  lead: int = 0
  purpose: Literal['video', 'cloning', 'dreams'] = 'video'

  @property
  def dreams(self) -> bool:
    """Whether windows are contexts of dreams."""
    return self.purpose == 'dreams'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planner(Draws):
  """Plans the rows of the global batch.

  A row depends on the seed and its number alone, not on how many processes
  share the work.

  Attributes:
    indices: of the split, one for each dataset.
    weights: share of uniform rows from each dataset, up to a common factor.
    novelty: `[frames]` weights for each dataset, episodes in order; needed for
      novel rows.
    labeled: `[episodes]` bool for each dataset, those whose actions are known
      and used; by default all. If there are none, all count as labeled.
  """

  indices: Sequence[SplitIndex]
  weights: Sequence[float]
  novelty: Sequence[np.ndarray] = ()
  labeled: Sequence[np.ndarray] = ()

  def __post_init__(self):
    for name in (
      'relevant_share', 'baseline_share', 'novel_share', 'separate_images',
      'switch_tasks',
    ):  # fmt: skip
      value = getattr(self, name)
      require(0 <= value <= 1, name, value, 'must lie in [0, 1]')
    require(self.batch_size >= 1, 'batch_size', self.batch_size, 'at least 1')
    require(
      self.relevant_rows + self.baseline_rows <= self.batch_size,
      'baseline_share',
      self.baseline_share,
      f'leaves too few of {self.batch_size} rows for relevant_share = '
      f'{self.relevant_share}; lower one of the two',
    )
    require(self.length >= 1, 'length', self.length, 'must be at least 1')
    require(
      len(self.weights) == len(self.indices) and min(self.weights) > 0,
      'weights',
      tuple(self.weights),
      'needs one for each dataset, all positive',
    )
    if self.relevant_rows and self._eventful:
      require(
        self.length >= 2,
        'length',
        self.length,
        'must be at least 2 for relevant windows, which hold the frame '
        'before the event as well',
      )
    if not all(lengths.any() for lengths in self._lengths):
      raise ValueError(
        'a dataset has nothing but terminal frames, so no dream can begin in '
        'it; leave it out of `data`'
      )

  def is_relevant(self, row: int) -> bool:
    """Whether this row of a batch is a relevant one.

    Relevant rows, round(share * batch_size) of them, are spread evenly, so
    that equal parts of the batch hold equal shares.
    """
    count, size = self.relevant_rows, self.batch_size
    return spread(row + 1, count, size) > spread(row, count, size)

  def is_baseline(self, row: int) -> bool:
    """Whether a baseline is cloned from this row of a batch.

    This holds for round(share * batch_size) of the rows that are not relevant,
    spread evenly.
    """
    before = self._baselines_before(row)
    return not self.is_relevant(row) and (
      self._baselines_before(row + 1) > before
    )

  def plan(self, batch: int, rows: Sequence[int]) -> list[Window]:
    """Draws the windows of rows of the global batch number `batch`."""
    # Counter-based: the state is the seed and the row's number. Setting it is
    # ten times as fast as making a generator for each row.
    philox = np.random.Philox(key=self.seed)
    state, rng = philox.state, np.random.Generator(philox)
    windows = []
    for row in rows:
      number = batch * self.batch_size + row
      state['state']['counter'][:] = 0, 0, 0, number
      philox.state = state
      windows.append(self._plan(batch, row, rng))
    return windows

  @property
  def relevant_rows(self) -> int:
    """How many rows of a batch are relevant."""
    return round(self.relevant_share * self.batch_size)

  @property
  def baseline_rows(self) -> int:
    """How many rows of a batch are baselines'."""
    return round(self.baseline_share * self.batch_size)

  @property
  def novel_rows(self) -> int:
    """How many rows of a batch are novel."""
    return round(self.novel_share * self._other_rows)

  @property
  def _other_rows(self) -> int:
    """How many rows are neither relevant nor baselines'."""
    return self.batch_size - self.relevant_rows - self.baseline_rows

  @property
  def can_clone(self) -> bool:
    """Whether any episode of relevant windows has actions to clone."""
    if not self.labeled:
      return True
    if not self._eventful:
      return any(labeled.any() for labeled in self.labeled)
    return any(
      self.labeled[i][self.indices[i].event_episode].any()
      for i in self._eventful
    )

  def _plan(self, batch: int, row: int, rng: np.random.Generator) -> Window:
    relevant_before = spread(row, self.relevant_rows, self.batch_size)
    baselines_before = self._baselines_before(row)
    relevant, task, cloned, prompt = self.is_relevant(row), -1, 0, -1
    if relevant:
      rank = batch * self.relevant_rows + relevant_before
      sources = self._eventful or list(self._labeled_epochs)
      choice, place = apportion(rank, [self.weights[i] for i in sources])
      source = sources[choice]
      if self._eventful:
        segments, task, cloned = self._on_event(source, rng)
      else:
        segments = self._labeled_epochs[source][place]
        cloned = self.length
    elif self.is_baseline(row):
      rank = batch * self.baseline_rows + baselines_before
      rank, prompt = divmod(rank, len(_BASELINES))
      source, segments = self._of_baseline(prompt, rank)
      cloned = self.length
    else:
      others = self._other_rows
      number = row - relevant_before - baselines_before
      novel_before = spread(number, self.novel_rows, others)
      if spread(number + 1, self.novel_rows, others) > novel_before:
        rank = batch * self.novel_rows + novel_before
        source, _ = apportion(rank, self.weights)
        segments = self._on_novelty(source, rng)
      else:
        rank = batch * (others - self.novel_rows) + number - novel_before
        source, place = apportion(rank, self.weights)
        segments = self._epochs[source][place]
    switch, images = rng.random() < self.switch_tasks, rng.random()
    return Window(
      source=source,
      segments=segments,
      anchor_task=task,
      switch_tasks=bool(switch),
      # Without actions there would be nothing to clone.
      separate_images=bool(images < self.separate_images) and prompt < 0,
      cloned=cloned,
      prompt=prompt,
    )

  def _baselines_before(self, row: int) -> int:
    """How many of the first `row` rows of a batch are baselines'."""
    others = self.batch_size - self.relevant_rows
    if not others:
      return 0
    before = row - spread(row, self.relevant_rows, self.batch_size)
    return spread(before, self.baseline_rows, others)

  def _of_baseline(
    self, prompt: int, rank: int
  ) -> tuple[int, tuple[Stretch, ...]]:
    """Returns dataset and segments of a baseline's window number `rank`."""
    epochs = self._baseline_epochs[prompt]
    sources = list(epochs)
    choice, place = apportion(rank, [self.weights[i] for i in sources])
    return sources[choice], epochs[sources[choice]][place]

  @functools.cached_property
  def _lengths(self) -> list[np.ndarray]:
    """`[episodes]` frames that windows may hold, for each dataset."""
    return [x.lengths - x.terminal * self.dreams for x in self.indices]

  @functools.cached_property
  def _eventful(self) -> list[int]:
    """Numbers of the datasets that have events."""
    return [i for i, x in enumerate(self.indices) if len(x.event_frame)]

  @functools.cached_property
  def _epochs(self) -> list[Epochs]:
    return [
      Epochs(lengths, self.length, self.seed + i)
      for i, lengths in enumerate(self._lengths)
    ]

  @functools.cached_property
  def _labeled(self) -> list[np.ndarray]:
    """`[episodes]` bool for each dataset: labeled, with frames to show."""
    usable = [lengths > 0 for lengths in self._lengths]
    labeled = [x & y for x, y in zip(self.labeled, usable, strict=False)]
    return labeled if any(mask.any() for mask in labeled) else usable

  @functools.cached_property
  def _labeled_epochs(self) -> dict[int, Epochs]:
    """Relevant windows of splits without events, by number of the dataset."""
    return self._epochs_of(self._labeled, _LABELED)

  @functools.cached_property
  def _baseline_epochs(self) -> list[dict[int, Epochs]]:
    """Windows of each baseline, by number of the dataset."""
    chosen = self._labeled, better_half(self.indices, self._labeled)
    return [
      self._epochs_of(masks, stream)
      for masks, stream in zip(chosen, _BASELINES, strict=True)
    ]

  def _epochs_of(
    self, masks: Sequence[np.ndarray], stream: int
  ) -> dict[int, Epochs]:
    """Uniform windows of some episodes of the datasets that have any."""
    return {
      i: Epochs(
        self._lengths[i],
        self.length,
        self.seed + i,
        stream=[stream],
        only=mask,
      )
      for i, mask in enumerate(masks)
      if mask.any()
    }

  def _on_event(
    self, source: int, rng: np.random.Generator
  ) -> tuple[tuple[Stretch, ...], int, int]:
    """Draws task, then event, then its position in the window, each uniformly.

    Returns:
      Segments, the task, and how many frames of the window come before the
      event, up to the action that achieves it.
    """
    index, lengths = self.indices[source], self._lengths[source]
    anchors = self._anchors[source]
    task = int(rng.choice(list(anchors)))
    event = rng.choice(anchors[task])
    arrival = int(index.event_frame[event])
    lead = 0 if self.purpose == 'video' else self.lead
    if lead and arrival >= self.length and rng.random() < 0.5:
      position = self.length + int(rng.integers(lead))
      position = min(position, arrival)
    else:
      position = int(rng.integers(1, min(self.length - 1, arrival) + 1))
    episode, start = int(index.event_episode[event]), arrival - position
    if self.dreams and position < self.length:
      if arrival == lengths[episode]:
        # The event is on the terminal frame: the context ends before it.
        start = arrival - self.length - position + 1
      # The dream continues this episode.
      start = max(0, min(start, int(lengths[episode]) - self.length))
    segments = self._from(source, episode, start, rng)
    return segments, task, min(position, self.length)

  @functools.cached_property
  def _anchors(self) -> list[dict[int, np.ndarray]]:
    """Events that relevant windows are placed on, by task, for each dataset."""
    if not self.milestones:
      return [x.events_of_task for x in self.indices]
    return [
      {
        task: np.intersect1d(events, x.milestones, assume_unique=True)
        for task, events in x.events_of_task.items()
      }
      for x in self.indices
    ]

  def _on_novelty(
    self, source: int, rng: np.random.Generator
  ) -> tuple[Stretch, ...]:
    """Draws a frame by its weight, then its position in the window."""
    lengths, total = self._lengths[source], self._cumulative[source]
    drawn = np.searchsorted(total, rng.random() * total[-1], side='right')
    frame = min(int(drawn), len(total) - 1)
    ends = self.indices[source].ends
    episode = int(np.searchsorted(ends, frame, side='right'))
    frame -= int(ends[episode] - self.indices[source].lengths[episode])
    start = frame - int(rng.integers(self.length))
    start = max(0, min(start, int(lengths[episode]) - self.length))
    return self._from(source, episode, start, rng)

  @functools.cached_property
  def _cumulative(self) -> list[np.ndarray]:
    """`[frames]` cumulative sums of the weights, for each dataset."""
    return [np.cumsum(x, dtype=np.float64) for x in self.novelty]

  def _from(
    self, source: int, episode: int, start: int, rng: np.random.Generator
  ) -> tuple[Stretch, ...]:
    """Fills a window from a frame on."""
    lengths = self._lengths[source]
    segments, left = [], self.length
    while left > 0:
      stop = min(int(lengths[episode]), start + left)
      if stop > start:
        segments.append(Stretch(episode, start, stop))
      left -= stop - start
      # Where an episode ends early, others follow from their first frames.
      episode, start = int(rng.integers(len(lengths))), 0
    return tuple(segments)
