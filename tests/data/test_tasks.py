"""Task labels and event rewards, by hand and against a loop over frames."""

import numpy as np

from dreamer4_jax.data import planning
from dreamer4_jax.data.sources import Stretch
from dreamer4_jax.data.tasks import Tasks, lay_out
from tests.data.test_planning import EVENTS, make_index, make_planner


def window(*segments, anchor=-1, switch=False):
  return planning.Window(
    segments=tuple(Stretch(e, a, b) for e, a, b in segments),
    anchor_task=anchor,
    switch_tasks=switch,
    separate_images=False,
  )


def labels(w, num_tasks):
  """Labels of one window, `[T]`."""
  return Tasks(make_index(), num_tasks).labels([w], lay_out([w]))[0]


def test_advancing_labels_name_the_next_event():
  w = window((0, 0, 6), (1, 0, 3), (2, 6, 9), switch=True)
  found = labels(w, 3)
  assert found.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 0, 0, 0, 1]
  assert found.dtype == np.int32
  # With two tasks, episode 0 has done them all, and stays with the last.
  found = labels(w, 2)
  assert found[:6].tolist() == [0, 0, 1, 1, 1, 1]


def test_constant_labels_hold_the_anchor_or_the_first_label():
  # The anchor is event 0 of episode 0, though 1 comes next on frame 2.
  w = window((0, 1, 6), (0, 0, 3), anchor=0)
  assert labels(w, 3).tolist() == [0] * 8
  w = window((0, 1, 6), (0, 0, 3), anchor=1)
  assert labels(w, 3).tolist() == [1] * 5 + [0] * 3
  w = window((0, 3, 6), (0, 0, 3))
  assert labels(w, 3).tolist() == [1] * 3 + [0] * 3


def test_switching_overrules_the_anchor():
  w = window((0, 0, 5), anchor=1, switch=True)
  found = labels(w, 3)
  assert found.tolist() == [0, 0, 1, 1, 2]


def test_places_of_a_batch():
  layout = lay_out([window((2, 3, 6), (1, 0, 2)), window((0, 1, 6))])
  assert layout.episode.tolist() == [[2, 2, 2, 1, 1], [0] * 5]
  assert layout.step.tolist() == [[3, 4, 5, 0, 1], [1, 2, 3, 4, 5]]
  assert layout.segment.tolist() == [[0, 0, 0, 1, 1], [0] * 5]
  assert layout.begin.tolist() == [[0, 0, 0, 3, 3], [5] * 5]


def test_only_events_of_the_label_pay():
  w = window((0, 0, 6), (2, 7, 9))
  tasks, layout = Tasks(make_index(), 3), lay_out([w])
  pays = lambda task: tasks.rewards(layout, np.full((1, 8), task))[0].tolist()
  assert pays(0) == [0, 0, 1, 0, 0, 0, 0, 1]
  assert pays(1) == [0, 0, 0, 0, 1, 0, 0, 0]
  assert pays(2) == [0] * 8
  assert tasks.rewards(layout, np.zeros((1, 8), int)).dtype == np.float32


def by_loop(w, num_tasks):
  """Labels and rewards of one window, frame by frame."""
  labels, rewards = [], []
  for number, s in enumerate(w.segments):
    for t in range(s.start, s.stop):
      at = s.start if not w.switch_tasks else t
      events = [(f, k) for e, f, k in EVENTS if e == s.episode]
      later = [k for f, k in events if f > at]
      never = [k for k in range(num_tasks) if k not in {k for _, k in events}]
      label = (later + never[:1] + [k for _, k in events][-1:])[0]
      if number == 0 and w.relevant and not w.switch_tasks:
        label = w.anchor_task
      labels.append(label)
      rewards.append(float((t, label) in events))
  return labels, rewards


def test_batches_agree_with_a_loop_over_frames():
  for num_tasks in (2, 3):
    tasks = Tasks(make_index(), num_tasks)
    planner = make_planner(length=11, batch_size=64, relevant_share=0.5)
    windows = planner.plan(0, range(64))
    layout = lay_out(windows)
    labels = tasks.labels(windows, layout)
    rewards = tasks.rewards(layout, labels)
    expected = [by_loop(w, num_tasks) for w in windows]
    assert labels.tolist() == [labels for labels, _ in expected]
    assert rewards.tolist() == [rewards for _, rewards in expected]
    assert rewards.sum() > 10


def test_without_events_the_first_task_is_the_label():
  tasks = Tasks(make_index(events=()), 2)
  w = window((0, 0, 6), switch=True)
  assert tasks.labels([w], lay_out([w])).tolist() == [[0] * 6]
  assert not tasks.rewards(lay_out([w]), np.zeros((1, 6), int)).any()
