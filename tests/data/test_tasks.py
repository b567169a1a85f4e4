"""Task labels and event rewards, by hand and against a loop over frames."""

import dataclasses

import numpy as np

from dreamer4_jax.data import planning
from dreamer4_jax.data.sources import Stretch
from dreamer4_jax.data.tasks import Tasks, lay_out
from tests.data.test_planning import EVENTS, make_index, make_planner


def window(*segments, anchor=-1, switch=False):
  return planning.Window(
    segments=tuple(Stretch(e, a, b) for e, a, b in segments),
    anchor_task=anchor,
    cloned=int(anchor >= 0),
    switch_tasks=switch,
    separate_images=False,
  )


def labels(w, num_tasks, index=None, **kwargs):
  """Labels of one window, `[T]`."""
  tasks = Tasks(index or make_index(), num_tasks, **kwargs)
  return tasks.labels([w], lay_out([w]))[0]


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


def test_every_event_pays_its_own_task():
  w = window((0, 0, 6), (2, 7, 9))
  found = Tasks(make_index(), 3).rewards(lay_out([w]))
  assert found.shape == (1, 8, 3) and found.dtype == np.float32
  assert found[0, :, 0].tolist() == [0, 0, 1, 0, 0, 0, 0, 1]
  assert found[0, :, 1].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
  assert not found[0, :, 2].any()


def test_events_of_one_frame_all_pay():
  index = make_index(events=[(0, 2, 0), (0, 2, 2), (1, 1, 1)])
  w = window((0, 1, 4), (1, 0, 2))
  found = Tasks(index, 3).rewards(lay_out([w]))[0]
  at = [tuple(x) for x in np.argwhere(found).tolist()]
  assert at == [(1, 0), (1, 2), (4, 1)]


def test_what_an_agent_has_done_it_is_not_asked_for_again():
  # Task 0 twice, then task 1, then task 0 once more.
  index = make_index(events=[(0, 1, 0), (0, 2, 0), (0, 4, 1), (0, 5, 0)])
  w = window((0, 0, 6), switch=True)
  assert labels(w, 3, index).tolist() == [0, 0, 1, 1, 0, 2]
  assert labels(w, 3, index, milestones=True).tolist() == [0, 1, 1, 1, 2, 2]
  # All are done: it stays with the last task to be done for the first time.
  assert labels(w, 2, index, milestones=True).tolist() == [0, 1, 1, 1, 1, 1]
  # All events are rewarded.
  reward = Tasks(index, 3, milestones=True).rewards(lay_out([w]))[0]
  assert reward[:, 0].tolist() == [0, 1, 1, 0, 0, 1]


def test_a_dream_never_pursues_what_its_context_shows():
  rng = np.random.default_rng(0)
  lengths = rng.integers(5, 30, 40)
  events = sorted(
    {
      (e, int(rng.integers(1, n)), int(rng.integers(4)))
      for e, n in enumerate(lengths)
      for _ in range(rng.integers(0, 6))
    }
  )
  index = make_index(events=events, lengths=lengths)
  planner = make_planner(
    indices=[index], length=8, batch_size=400, relevant_share=0.5,
    purpose='dreams', switch_tasks=1.0,
  )  # fmt: skip
  windows = planner.plan(0, range(400))
  layout = lay_out(windows)
  last = Tasks(index, 5, milestones=True).labels(windows, layout)[:, -1]
  shown, held = 0, 0
  for w, task in zip(windows, last, strict=True):
    now = w.segments[-1]
    done = {k for e, f, k in events if e == now.episode and f < now.stop}
    later = [k for e, f, k in events if e == now.episode and f >= now.stop]
    assert task not in done
    fresh = [k for k in later if k not in done]
    ever = {k for e, _, k in events if e == now.episode}
    assert task == (fresh + [k for k in range(5) if k not in ever])[0]
    shown += bool(done)
    held += w.anchor_task in done
  assert shown > 50 and held > 50


def by_loop(w, num_tasks):
  """Labels of one window, and rewards for each task, frame by frame."""
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
      rewards.append([float((t, k) in events) for k in range(num_tasks)])
  return labels, rewards


def test_batches_agree_with_a_loop_over_frames():
  for num_tasks in (2, 3):
    tasks = Tasks(make_index(), num_tasks)
    planner = make_planner(length=11, batch_size=64, relevant_share=0.5)
    windows = planner.plan(0, range(64))
    layout = lay_out(windows)
    labels = tasks.labels(windows, layout)
    rewards = tasks.rewards(layout)
    expected = [by_loop(w, num_tasks) for w in windows]
    assert labels.tolist() == [labels for labels, _ in expected]
    assert rewards.tolist() == [rewards for _, rewards in expected]
    assert rewards.sum() > 10


def test_without_events_the_first_task_is_the_label():
  tasks = Tasks(make_index(events=()), 2)
  w = window((0, 0, 6), switch=True)
  assert tasks.labels([w], lay_out([w])).tolist() == [[0] * 6]
  assert not tasks.rewards(lay_out([w])).any()


def test_a_baseline_has_its_prompt_everywhere():
  for switch in (False, True):
    w = window((0, 0, 6), (1, 0, 3), switch=switch)
    w = dataclasses.replace(w, prompt=1, cloned=9)
    assert labels(w, 3).tolist() == [4] * 9
