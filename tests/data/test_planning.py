"""Windows and labels, on an index written by hand."""

import collections

import numpy as np
import pytest

from dreamer4_jax.data import planning
from dreamer4_jax.data.format import SplitIndex

# Episode 0: 6 frames, task 0 on frame 2, task 1 on frame 4.
# Episode 1: 3 frames, nothing. Episode 2: 9 frames, task 0 on frame 8.
EVENTS = [(0, 2, 0), (0, 4, 1), (2, 8, 0)]


def make_index(events=tuple(EVENTS)):
  columns = np.array(events, np.int64).reshape(-1, 3)
  return SplitIndex(
    lengths=np.array([6, 3, 9]),
    event_episode=columns[:, 0],
    event_frame=columns[:, 1],
    event_task=columns[:, 2],
  )


def make_planner(**kwargs):
  return planning.Planner(
    **{'index': make_index(), 'length': 5, 'batch_size': 4, **kwargs}
  )


def window(*segments, anchor=-1, switch=False):
  return planning.Window(
    segments=tuple(
      planning.Segment(episode=e, start=a, stop=b) for e, a, b in segments
    ),
    anchor_task=anchor,
    switch_tasks=switch,
    separate_images=False,
  )


def test_advancing_labels_name_the_next_event():
  w = window((0, 0, 6), (1, 0, 3), (2, 6, 9), switch=True)
  labels = planning.task_labels(make_index(), w, 3)
  assert labels.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 0, 0, 0, 1]
  assert labels.dtype == np.int32
  # With two tasks, episode 0 has done them all, and stays with the last.
  labels = planning.task_labels(make_index(), w, 2)
  assert labels[:6].tolist() == [0, 0, 1, 1, 1, 1]


def test_constant_labels_hold_the_anchor_or_the_first_label():
  index = make_index()
  # The anchor is event 0 of episode 0, though 1 comes next on frame 2.
  w = window((0, 1, 6), (0, 0, 3), anchor=0)
  assert planning.task_labels(index, w, 3).tolist() == [0] * 8
  w = window((0, 1, 6), (0, 0, 3), anchor=1)
  assert planning.task_labels(index, w, 3).tolist() == [1] * 5 + [0] * 3
  w = window((0, 3, 6), (0, 0, 3))
  assert planning.task_labels(index, w, 3).tolist() == [1] * 3 + [0] * 3


def test_switching_overrules_the_anchor():
  w = window((0, 0, 5), anchor=1, switch=True)
  labels = planning.task_labels(make_index(), w, 3)
  assert labels.tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize('relevant', [0.0, 1.0])
def test_windows_are_full_and_continue_with_first_frames(relevant):
  planner = make_planner(length=20, relevant_share=relevant)
  rng = np.random.default_rng(0)
  lengths = planner.index.lengths
  for _ in range(200):
    segments = planner.plan(0, rng).segments
    assert sum(s.stop - s.start for s in segments) == 20
    assert all(s.start == 0 for s in segments[1:])
    assert all(s.stop == lengths[s.episode] for s in segments[:-1])
    assert all(0 <= s.start < s.stop <= lengths[s.episode] for s in segments)


def test_every_frame_is_equally_likely_to_be_first():
  planner = make_planner()
  rng = np.random.default_rng(0)
  draws = 18_000
  count = collections.Counter()
  for _ in range(draws):
    first = planner.plan(0, rng).segments[0]
    count[first.episode, first.start] += 1
  assert len(count) == 18
  # 1,000 expected of each; five standard deviations are 154.
  assert max(abs(n - draws / 18) for n in count.values()) < 154


def test_tasks_are_equally_likely_and_the_event_is_anywhere_it_fits():
  planner = make_planner(relevant_share=1.0)
  rng = np.random.default_rng(0)
  tasks, positions = collections.Counter(), collections.Counter()
  for _ in range(8_000):
    w = planner.plan(1, rng)
    first = w.segments[0]
    tasks[w.anchor_task] += 1
    found = [
      frame - first.start
      for episode, frame, task in EVENTS
      if episode == first.episode
      and task == w.anchor_task
      and first.start < frame < first.stop
    ]
    assert len(found) == 1
    positions[first.episode, w.anchor_task, found[0]] += 1
  # Task 1 has one event and task 0 two: 4,000 each (sd 45).
  assert abs(tasks[0] - 4000) < 225
  # Event on frame 2 leaves positions 1, 2; frames 4 and 8 leave 1 to 4.
  expected = {(0, 0, p): 1000 for p in (1, 2)}
  expected |= {(2, 0, p): 500 for p in (1, 2, 3, 4)}
  expected |= {(0, 1, p): 1000 for p in (1, 2, 3, 4)}
  assert positions.keys() == expected.keys()
  assert all(abs(positions[k] - n) < 160 for k, n in expected.items())


@pytest.mark.parametrize(
  ('share', 'batch', 'rows'),
  [
    (0.5, 4, [0, 1, 0, 1]),
    (0.25, 8, [0, 0, 0, 1, 0, 0, 0, 1]),
    (1.0, 3, [1, 1, 1]),
    (0.0, 3, [0, 0, 0]),
    (0.3, 10, [0, 0, 0, 1, 0, 0, 1, 0, 0, 1]),
  ],
)
def test_relevant_rows_are_spread(share, batch, rows):
  planner = make_planner(relevant_share=share, batch_size=batch)
  assert [planner.is_relevant(i) for i in range(batch)] == [
    bool(r) for r in rows
  ]


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'length': 0}, 'length = 0'),
    ({'batch_size': 0}, 'batch_size = 0'),
    ({'relevant_share': 1.5}, 'relevant_share = 1.5'),
    ({'separate_images': -0.1}, 'separate_images = -0.1'),
    ({'length': 1, 'relevant_share': 0.5}, 'length = 1.*at least 2'),
    (
      {'index': make_index(()), 'relevant_share': 0.5},
      'relevant_share = 0.5.*no event',
    ),
  ],
)
def test_wrong_settings_are_named(kwargs, message):
  with pytest.raises(ValueError, match=message):
    make_planner(**kwargs)


def test_labeled_episodes_are_a_fixed_share():
  some = [planning.is_labeled(i, 0.3) for i in range(10_000)]
  # 3,000 expected; five standard deviations are 229.
  assert abs(sum(some) - 3000) < 229
  more = [planning.is_labeled(i, 0.6) for i in range(10_000)]
  assert all(b for a, b in zip(some, more, strict=True) if a)
  assert all(planning.is_labeled(i, 1.0) for i in range(1000))
  assert not any(planning.is_labeled(i, 0.0) for i in range(1000))
