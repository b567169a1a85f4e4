"""Rows that are novel, and rows of baselines, on an index written by hand."""

import collections
import dataclasses
import hashlib

import numpy as np
import pytest

from tests.data.plans import EVENTS, frames, make_index, make_planner


def test_novel_rows_hold_a_frame_drawn_by_its_weight():
  weights = np.zeros(18)
  weights[[2, 8, 17]] = 1, 2, 5  # Episodes 0 and 1 on frame 2, 2 on frame 8.
  planner = make_planner(
    length=4, batch_size=8, novel_share=0.5, novelty=[weights]
  )
  assert planner.novel_rows == 4
  drawn, places = collections.Counter(), collections.Counter()
  for batch in range(2_000):
    for window in planner.plan(batch, [1, 3, 5, 7]):
      found = [
        (place, frame)
        for place, frame in enumerate(frames(window.segments))
        if frame in ((0, 2), (1, 2), (2, 8))
      ]
      place, frame = found[0]
      drawn[frame] += 1
      places[frame, place] += 1
      assert not window.relevant and window.anchor_task == -1
  # 8,000 rows: five standard deviations of each share.
  for frame, share in (((0, 2), 1 / 8), ((1, 2), 2 / 8), ((2, 8), 5 / 8)):
    assert abs(drawn[frame] / 8_000 - share) < 0.027
  # Anywhere in the window, as far as the episode reaches.
  assert {place for frame, place in places if frame == (0, 2)} == {0, 1, 2}
  assert {place for frame, place in places if frame == (2, 8)} == {3}


def test_the_other_rows_stay_an_epoch_beside_novel_ones():
  planner = make_planner(
    length=3,
    batch_size=8,
    relevant_share=0.25,
    novel_share=0.5,
    novelty=[np.ones(18)],
  )
  novel = [i for i in range(8) if not planner.is_relevant(i)]
  assert len(novel) == 6 and planner.novel_rows == 3
  windows = [w for b in range(2) for w in planner.plan(b, novel[::2])]
  # 6 windows an epoch, 3 uniform rows a batch.
  seen = collections.Counter(f for w in windows for f in frames(w.segments))
  assert len(seen) == 18


def test_without_novel_rows_nothing_changes():
  plain, other = make_planner(), make_planner(novelty=[np.ones(18)])
  for batch in range(5):
    assert plain.plan(batch, range(4)) == other.plan(batch, range(4))


def test_no_dream_begins_in_a_novel_terminal_frame():
  weights = np.zeros(18)
  weights[17] = 1  # Terminal, in episode 2.
  planner = make_planner(
    length=4, novel_share=1.0, novelty=[weights], purpose='dreams'
  )
  for batch in range(20):
    for window in planner.plan(batch, range(4)):
      assert frames(window.segments) == [(2, t) for t in (4, 5, 6, 7)]


def digest(planner):
  """Names all that was decided about 80 rows before there were baselines."""
  rows = [
    (
      w.source,
      [tuple(map(int, s)) for s in w.segments],
      w.anchor_task,
      w.cloned,
      w.switch_tasks,
      w.separate_images,
    )
    for batch in range(20)
    for w in planner.plan(batch, range(4))
  ]
  return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def test_without_baselines_rows_are_what_they_were():
  settings = dict(seed=3, relevant_share=0.5, separate_images=0.3)
  assert digest(make_planner(**settings)) == '3f64a26d46de228d'
  planner = make_planner(
    **settings,
    indices=[make_index(events=())],
    labeled=[np.array([True, False, True])],
  )
  assert digest(planner) == '1199451f307b81e6'


@pytest.mark.parametrize(
  ('relevant', 'share', 'batch', 'rows'),
  [
    (0.5, 0.25, 8, '.rbr.rbr'),
    (0.5, 0.25, 4, '.rbr'),
    (0.25, 0.25, 8, '..br..br'),
    (0.0, 0.5, 4, '.b.b'),
    (0.5, 0.5, 4, 'brbr'),
    (1.0, 0.0, 3, 'rrr'),
  ],
)
def test_rows_of_baselines_are_spread_over_those_that_are_not_relevant(
  relevant, share, batch, rows
):
  planner = make_planner(
    relevant_share=relevant, baseline_share=share, batch_size=batch
  )
  found = planner.plan(3, range(batch))
  kinds = [
    'b' if w.prompt >= 0 else 'r' if w.anchor_task >= 0 else '.' for w in found
  ]
  assert ''.join(kinds) == rows
  assert [planner.is_baseline(i) for i in range(batch)] == [
    k == 'b' for k in rows
  ]
  assert [planner.is_relevant(i) for i in range(batch)] == [
    k == 'r' for k in rows
  ]


def with_returns(index, returns):
  return dataclasses.replace(index, returns=np.array(returns, float))


def baseline_windows(batches=60, **kwargs):
  planner = make_planner(
    length=3, relevant_share=0.25, baseline_share=0.25, **kwargs
  )
  windows = [w for b in range(batches) for w in planner.plan(b, range(4))]
  return [w for w in windows if w.prompt >= 0], windows


@pytest.mark.parametrize('events', [tuple(EVENTS), ()])
def test_baselines_take_turns_and_each_sees_its_episodes_once_an_epoch(events):
  # Episodes 0 and 2 are labeled; the better half of them is episode 0.
  index = with_returns(make_index(events=events), [2, 9, 1])
  labeled = [np.array([True, False, True])]
  own, windows = baseline_windows(
    indices=[index], labeled=labeled, separate_images=0.5
  )
  assert [w.prompt for w in own] == [0, 1] * 30
  assert all(w.relevant and w.cloned == 3 for w in own)
  assert all(w.anchor_task == -1 and not w.separate_images for w in own)
  assert any(w.separate_images for w in windows)
  for prompt, episodes in ((0, {0: 6, 2: 9}), (1, {0: 6})):
    seen = collections.Counter(
      f for w in own if w.prompt == prompt for f in frames(w.segments)
    )
    expected = {(e, t) for e, n in episodes.items() for t in range(n)}
    # 30 windows: epochs of 5, and of 2.
    assert set(seen) == expected
    assert set(seen.values()) == {90 // len(expected)}
  # They take nothing from the epochs of uniform rows.
  plain = make_planner(indices=[index], length=3, batch_size=2)
  others = [w.segments for b in range(60) for w in plain.plan(b, range(2))]
  assert [w.segments for w in windows if not w.relevant] == others


def test_the_epochs_of_baselines_are_not_those_of_relevant_rows():
  index = make_index(events=(), lengths=(30, 30))
  own, windows = baseline_windows(indices=[index])
  segments = lambda of: [w.segments for w in of][:20]
  every = segments(w for w in own if w.prompt == 0)
  labeled = segments(w for w in windows if w.relevant and w.prompt < 0)
  uniform = segments(w for w in windows if not w.relevant)
  assert every != labeled and every != uniform


@pytest.mark.parametrize(
  ('returns', 'best'),
  [
    # Of both datasets together: three of five episodes.
    (([0, 3, 1], [2, 2]), {(0, 1), (1, 0), (1, 1)}),
    (([5, 5, 5], [0, 0]), {(0, 0), (0, 1), (0, 2)}),
    # Equal returns: more events, and then those that come first.
    (([1, 1, 1], [1, 1]), {(0, 0), (0, 2), (0, 1)}),
    (([0, 4, 0], [0, 0]), {(0, 1), (0, 0), (0, 2)}),
    # The same where a dataset has no returns.
    (([0, 3, 1], None), {(0, 0), (0, 2), (0, 1)}),
  ],
)
def test_the_better_half_is_that_of_all_datasets_together(returns, best):
  plain = make_index(), make_index(events=(), lengths=(6, 6))
  indices = [
    x if r is None else with_returns(x, r)
    for x, r in zip(plain, returns, strict=True)
  ]
  own, _ = baseline_windows(batches=100, indices=indices, weights=[1.0, 1.0])
  seen = {(w.source, s.episode) for w in own if w.prompt for s in w.segments}
  assert seen == best
  seen = {
    (w.source, s.episode) for w in own if not w.prompt for s in w.segments
  }
  assert len(seen) == 5


def test_a_row_of_a_baseline_depends_on_the_seed_and_its_number_alone():
  settings = dict(relevant_share=0.25, baseline_share=0.25)
  a, b = (make_planner(seed=5, **settings) for _ in range(2))
  late = b.plan(9, [2])
  assert late[0].prompt >= 0
  for batch in range(9):
    a.plan(batch, range(4))
  assert a.plan(9, [2]) == late
