"""Windows and labels, on an index written by hand."""

import collections

import numpy as np
import pytest

from dreamer4_jax.data.epochs import Epochs
from tests.data.plans import EVENTS, frames, make_index, make_planner


@pytest.mark.parametrize('relevant', [0.0, 1.0])
def test_windows_are_full_and_continue_with_first_frames(relevant):
  planner = make_planner(length=20, relevant_share=relevant)
  lengths = planner.indices[0].lengths
  for batch in range(200):
    segments = planner.plan(batch, [0])[0].segments
    assert sum(s.stop - s.start for s in segments) == 20
    assert all(s.start == 0 for s in segments[1:])
    assert all(s.stop == lengths[s.episode] for s in segments[:-1])
    assert all(0 <= s.start < s.stop <= lengths[s.episode] for s in segments)


@pytest.mark.parametrize('length', [1, 4, 5, 18])
def test_an_epoch_shows_every_frame_once(length):
  epochs = Epochs(make_index().lengths, length, seed=3)
  assert epochs.windows == 18 // length
  for epoch in range(5):
    numbers = range(epoch * epochs.windows, (epoch + 1) * epochs.windows)
    seen = collections.Counter(f for n in numbers for f in frames(epochs[n]))
    assert set(seen.values()) == {1}
    assert len(seen) == 18 - 18 % length


def test_epochs_differ_and_put_frames_everywhere():
  epochs = Epochs(make_index().lengths, 5, seed=3)
  count = collections.Counter()
  epochs_drawn = 2_000
  for n in range(epochs_drawn * epochs.windows):
    count[frames(epochs[n])[0]] += 1
  # 3 windows an epoch begin on one of 18 frames: 333 each, sd about 17.
  assert len(count) == 18
  assert max(abs(n - epochs_drawn / 6) for n in count.values()) < 90


def test_a_split_shorter_than_a_window_is_repeated():
  epochs = Epochs(np.array([2, 1]), 7, seed=0)
  assert epochs.windows == 1
  seen = collections.Counter(frames(epochs[0]))
  assert sum(seen.values()) == 7 and max(seen.values()) == 3


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_processes_share_an_epoch_without_overlap(processes):
  # 27 windows of 2 frames an epoch; batches of 4 rows, 27 of them: 4 epochs.
  planner = make_planner(indices=[make_index(lengths=(20, 3, 31))], length=2)
  rows = np.array_split(np.arange(4), processes)
  by_process = [
    [frames(w.segments) for b in range(27) for w in planner.plan(b, own)]
    for own in rows
  ]
  drawn = collections.Counter(f for p in by_process for w in p for f in w)
  # Rows of one process in an epoch are not those of another.
  assert set(drawn.values()) == {4} and len(drawn) == 54
  whole = [
    frames(w.segments) for b in range(27) for w in planner.plan(b, range(4))
  ]
  assert sorted(w for p in by_process for w in p) == sorted(whole)


def test_datasets_are_mixed_by_weight_and_each_by_its_epochs():
  small = make_index(lengths=(4, 4), events=())
  planner = make_planner(
    indices=[small, make_index()], weights=[1.0, 3.0], length=4
  )
  windows = [w for b in range(8) for w in planner.plan(b, range(4))]
  assert [w.source for w in windows].count(0) == 8
  # Any run of rows has its share: none is more than one off.
  for n in range(1, 33):
    taken = [w.source for w in windows[:n]].count(0)
    assert abs(taken - n / 4) < 1
  seen = collections.Counter(
    f for w in windows if w.source == 0 for f in frames(w.segments)
  )
  assert set(seen.values()) == {4} and len(seen) == 8  # Two windows an epoch.


def test_relevant_rows_come_from_datasets_with_events():
  planner = make_planner(
    indices=[make_index(events=()), make_index()],
    weights=[3.0, 1.0],
    relevant_share=0.5,
  )
  for batch in range(20):
    for row in range(4):
      w = planner.plan(batch, [row])[0]
      assert w.relevant == planner.is_relevant(row)
      assert not w.relevant or w.source == 1


def test_a_row_depends_on_the_seed_and_its_number_alone():
  a, b = make_planner(seed=5), make_planner(seed=5)
  late = b.plan(9, [2])
  for batch in range(9):
    a.plan(batch, range(4))
  assert a.plan(9, [2]) == late
  other = make_planner(seed=6)
  assert [other.plan(n, [0]) for n in range(9)] != [
    a.plan(n, [0]) for n in range(9)
  ]


def test_tasks_are_equally_likely_and_the_event_is_anywhere_it_fits():
  planner = make_planner(relevant_share=1.0)
  tasks, positions = collections.Counter(), collections.Counter()
  for batch in range(8_000):
    w = planner.plan(batch, [1])[0]
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


def test_without_events_what_is_labeled_is_relevant():
  # Episodes 0 and 2, 15 frames, are labeled: 5 windows of 3 an epoch.
  index = make_index(events=())
  planner = make_planner(
    indices=[index],
    length=3,
    relevant_share=0.5,
    labeled=[np.array([True, False, True])],
  )
  windows = [w for b in range(20) for w in planner.plan(b, range(4))]
  relevant = [w for w in windows if w.relevant]
  assert [w.relevant for w in windows] == [False, True, False, True] * 20
  assert all(w.anchor_task == -1 for w in windows)
  seen = collections.Counter(f for w in relevant for f in frames(w.segments))
  expected = {(0, t) for t in range(6)} | {(2, t) for t in range(9)}
  assert set(seen) == expected and set(seen.values()) == {8}
  # The uniform clips are those of a planner without relevant ones.
  plain = make_planner(indices=[index], length=3, batch_size=2)
  others = [w.segments for b in range(20) for w in plain.plan(b, range(2))]
  assert [w.segments for w in windows if not w.relevant] == others


def test_without_events_labeled_clips_come_by_weight_of_what_is_labeled():
  planner = make_planner(
    indices=[make_index(events=())] * 3,
    weights=[1.0, 1.0, 3.0],
    relevant_share=1.0,
    labeled=[np.ones(3, bool), np.zeros(3, bool), np.ones(3, bool)],
  )
  drawn = collections.Counter(
    w.source for b in range(10) for w in planner.plan(b, range(4))
  )
  assert drawn == {0: 10, 2: 30}


def test_whether_there_is_anything_to_clone():
  none, every = np.zeros(3, bool), np.ones(3, bool)
  bare = make_index(events=())
  for indices, labeled, expected in (
    ([bare], [none], False),
    ([bare], [every], True),
    ([make_index()], [np.array([False, True, False])], False),
    ([make_index()], [np.array([True, False, False])], True),
    # Relevant clips come from the first alone, since it has events.
    ([make_index(), bare], [none, every], False),
  ):
    planner = make_planner(
      indices=indices, weights=[1.0] * len(indices), labeled=labeled
    )
    assert planner.can_clone == expected


def test_with_events_labels_change_no_clip():
  plans = []
  for labeled in ((), [np.zeros(3, bool)], [np.ones(3, bool)]):
    planner = make_planner(relevant_share=0.5, labeled=labeled)
    plans.append([planner.plan(b, range(4)) for b in range(50)])
  assert plans[0] == plans[1] == plans[2]


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'length': 0}, 'length = 0'),
    ({'batch_size': 0}, 'batch_size = 0'),
    ({'weights': [0.0]}, r'weights = \(0.0,\)'),
    ({'relevant_share': 1.5}, 'relevant_share = 1.5'),
    ({'separate_images': -0.1}, 'separate_images = -0.1'),
    ({'baseline_share': -0.1}, 'baseline_share = -0.1'),
    (
      {'relevant_share': 0.5, 'baseline_share': 0.5, 'batch_size': 3},
      'baseline_share = 0.5: leaves too few of 3 rows for relevant_share = 0.5',
    ),
    ({'length': 1, 'relevant_share': 0.5}, 'length = 1.*at least 2'),
  ],
)
def test_wrong_settings_are_named(kwargs, message):
  with pytest.raises(ValueError, match=message):
    make_planner(**kwargs)


def test_what_is_cloned_ends_with_the_action_that_achieves_the_event():
  planner = make_planner(length=7, relevant_share=0.5)
  windows = [w for b in range(200) for w in planner.plan(b, range(4))]
  for w in windows:
    first = w.segments[0]
    if not w.relevant:
      assert w.cloned == 0
      continue
    # The event is seen one frame after the last action that is cloned.
    event = (first.episode, first.start + w.cloned, w.anchor_task)
    assert event in EVENTS and w.cloned >= 1
  # Windows that end early and are filled up are among them.
  assert any(w.relevant and len(w.segments) > 1 for w in windows)


def test_with_a_lead_half_of_the_clips_end_before_their_event():
  events = ((0, 30, 0), (0, 38, 0), (1, 2, 1))
  index = make_index(events=events, lengths=(40, 7))
  settings = {'indices': [index], 'length': 4, 'relevant_share': 1.0}
  for purpose in ('cloning', 'dreams'):
    planner = make_planner(
      lead=10, milestones=True, purpose=purpose, **settings
    )
    windows = [w for b in range(300) for w in planner.plan(b, range(4))]
    ahead = collections.Counter()
    for w in windows:
      first = w.segments[0]
      arrival = {0: 30, 1: 2}[w.anchor_task]  # Never the second of task 0.
      distance = arrival - first.start
      assert w.cloned == min(distance, 4) or purpose == 'dreams'
      if w.anchor_task == 0:
        ahead[distance] += 1
      else:  # It happens too early for a window before it.
        assert distance in (1, 2)
    assert set(ahead) == set(range(1, 14))
    far = sum(ahead[k] for k in range(4, 14)) / ahead.total()
    assert 0.45 < far < 0.55
  # Without it, and for video, every clip shows its event.
  for more in ({'purpose': 'cloning'}, {'lead': 10, 'purpose': 'video'}):
    planner = make_planner(**settings, **more)
    for w in [w for b in range(50) for w in planner.plan(b, range(4))]:
      assert w.cloned < 4


def test_without_events_all_of_a_labeled_clip_is_cloned():
  planner = make_planner(
    indices=[make_index(events=())], length=3, relevant_share=0.5
  )
  windows = planner.plan(0, range(4))
  assert [w.cloned for w in windows] == [0, 3, 0, 3]


@pytest.mark.parametrize('relevant', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('events', [tuple(EVENTS), ()])
def test_no_dream_begins_on_a_terminal_frame_or_after_one(relevant, events):
  # Episode 1 is terminal, and of one frame; episode 3 was cut by time.
  index = make_index(events=events, lengths=(6, 1, 9, 4))
  index.terminal[3] = False
  last = {(0, 5), (1, 0), (2, 8)}
  planner = make_planner(
    indices=[index], length=5, relevant_share=relevant, purpose='dreams'
  )
  windows = [w for b in range(100) for w in planner.plan(b, range(4))]
  seen = collections.Counter(f for w in windows for f in frames(w.segments))
  every = {(e, t) for e, n in enumerate((6, 1, 9, 4)) for t in range(n)}
  assert set(seen) <= every - last
  assert all(len(frames(w.segments)) == 5 for w in windows)
  ends = {frames(w.segments)[-1] for w in windows}
  assert ends <= every - last
  if relevant < 1 or not events:  # Else all lie around events.
    assert set(seen) == every - last and len(ends) > 10
  if relevant == 0:  # An epoch shows all that is left once, 17 frames.
    epochs = [frames(w.segments) for w in windows][:3]
    assert len({f for window in epochs for f in window}) == 15


def test_dreams_go_on_in_the_episode_of_their_event():
  # Task 0 ends the long episode, task 1 happens in the middle of it.
  index = make_index(events=((0, 9, 1), (0, 19, 0)), lengths=(20, 7, 7))
  index.terminal[:] = True
  planner = make_planner(
    indices=[index], length=5, relevant_share=1.0, purpose='dreams'
  )
  windows = [w for b in range(100) for w in planner.plan(b, range(4))]
  last = {0: collections.Counter(), 1: collections.Counter()}
  for w in windows:
    (segment,) = w.segments
    assert segment.episode == 0
    last[w.anchor_task][segment.stop - 1] += 1
  # Equally often at each distance: before task 0's event, from task 1's on.
  for task, ends in ((0, (15, 16, 17, 18)), (1, (9, 10, 11, 12))):
    assert set(last[task]) == set(ends)
    assert min(last[task].values()) > 0.15 * sum(last[task].values())


def test_a_split_of_nothing_but_ends_is_refused():
  index = make_index(events=(), lengths=(1, 1, 1))
  with pytest.raises(ValueError, match='nothing but terminal frames'):
    make_planner(indices=[index], purpose='dreams')
