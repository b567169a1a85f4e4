"""Alignment by arrival, on episodes written by hand."""

import copy
import types

import numpy as np
import pytest

from dreamer4_jax.data import planning, transforms
from dreamer4_jax.data.format import SplitIndex, index_entry


def make_episode(length, *, terminal, base=0):
  """Frame t shows base + t; action t is 1 + t; reward t is 0.5 * (t + 1)."""
  t = np.arange(length)
  last = t == length - 1
  events = np.zeros((length, 2), np.uint8)
  events[1, 0] = 1
  if terminal:
    events[length - 2, 1] = 1
  return {
    'observation': np.broadcast_to(
      (base + t)[:, None, None, None], (length, 2, 2, 3)
    ).astype(np.uint8),
    'action': {
      'move': np.where(last, 0, 1 + t).astype(np.int32),
      'aim': np.stack([t, -t], -1).astype(np.float32),
    },
    'action_known': ~last,
    'reward': np.where(last, 0, 0.5 * (t + 1)).astype(np.float32),
    'events': events,
    'is_first': t == 0,
    'is_last': last,
    'is_terminal': last & terminal,
  }


class Source(list):
  """Episodes in memory, with the index of a real source."""

  def __init__(self, episodes, tasks=('a', 'b')):
    super().__init__(episodes)
    entries = [index_entry(e) for e in episodes]
    columns = np.array(
      [(i, f, k) for i, (_, found) in enumerate(entries) for f, k in found]
    ).reshape(-1, 3)
    self.index = SplitIndex(
      lengths=np.array([n for n, _ in entries]),
      event_episode=columns[:, 0],
      event_frame=columns[:, 1],
      event_task=columns[:, 2],
    )
    self.description = types.SimpleNamespace(tasks=tasks)


@pytest.fixture
def source():
  return Source(
    [
      make_episode(6, terminal=True),
      make_episode(5, terminal=False, base=100),
    ]
  )


def window(*segments, **kwargs):
  return planning.Window(
    segments=tuple(
      planning.Segment(episode=e, start=a, stop=b) for e, a, b in segments
    ),
    **{
      'anchor_task': -1,
      'switch_tasks': True,
      'separate_images': False,
      **kwargs,
    },
  )


def test_a_whole_episode_by_hand(source):
  row = transforms.cut(source, window((0, 0, 6)))
  assert row.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
  assert row.action['move'].tolist() == [1, 2, 3, 4, 5, 0]
  assert row.action_mask.tolist() == [1, 1, 1, 1, 1, 0]
  assert row.prev_action['move'].tolist() == [0, 1, 2, 3, 4, 5]
  assert row.prev_action['aim'].tolist() == [
    [0, 0],
    [0, 0],
    [1, -1],
    [2, -2],
    [3, -3],
    [4, -4],
  ]
  assert row.prev_action_mask.tolist() == [0, 1, 1, 1, 1, 1]
  # Events: task 0 is earned by action 1, task 1 by action 4. The label
  # advances on arrival, so of the two only the last one pays.
  assert row.task.tolist() == [0, 0, 1, 1, 1, 1]
  assert row.reward.tolist() == [0, 0, 0, 0, 0, 1]
  assert row.cont.tolist() == [1, 1, 1, 1, 1, 0]
  assert row.segment_ids.tolist() == [0] * 6
  assert not row.relevant
  dtypes = {
    'frames': np.uint8,
    'action_mask': np.bool_,
    'prev_action_mask': np.bool_,
    'reward': np.float32,
    'cont': np.float32,
    'task': np.int32,
    'segment_ids': np.int32,
    'relevant': np.bool_,
  }
  assert {k: getattr(row, k).dtype.type for k in dtypes} == dtypes


def test_reward_is_seen_on_arrival(source):
  plan = window((0, 0, 6), anchor_task=0, switch_tasks=False)
  row = transforms.cut(source, plan)
  assert row.relevant
  assert row.reward.tolist() == [0, 0, 1, 0, 0, 0]


def test_without_events_the_reward_of_the_environment_counts(source):
  source.description.tasks = ('reward',)
  row = transforms.cut(source, window((0, 0, 6)))
  assert row.reward.tolist() == [0, 0.5, 1.0, 1.5, 2.0, 2.5]
  row = transforms.cut(source, window((0, 2, 4)))
  assert row.reward.tolist() == [1.0, 1.5]


@pytest.mark.parametrize('changed', range(5))
def test_an_action_first_shows_on_the_frame_it_led_to(source, changed):
  other = copy.deepcopy(source)
  other[0]['action']['move'][changed] = 77
  a = transforms.cut(source, window((0, 0, 6)))
  b = transforms.cut(other, window((0, 0, 6)))
  differs = a.prev_action['move'] != b.prev_action['move']
  assert np.flatnonzero(differs).tolist() == [changed + 1]
  differs = a.action['move'] != b.action['move']
  assert np.flatnonzero(differs).tolist() == [changed]


def test_a_time_out_is_not_terminal(source):
  row = transforms.cut(source, window((1, 0, 5)))
  assert row.cont.tolist() == [1, 1, 1, 1, 1]
  assert row.action_mask.tolist() == [1, 1, 1, 1, 0]


def test_a_window_from_the_middle_knows_its_first_previous_action(source):
  row = transforms.cut(source, window((0, 3, 6)))
  assert row.prev_action['move'].tolist() == [3, 4, 5]
  assert row.prev_action_mask.tolist() == [1, 1, 1]


def test_packed_episodes_are_segments(source):
  row = transforms.cut(source, window((0, 4, 6), (1, 0, 5), (0, 0, 1)))
  assert row.frames[:, 0, 0, 0].tolist() == [4, 5, 100, 101, 102, 103, 104, 0]
  assert row.segment_ids.tolist() == [0, 0, 1, 1, 1, 1, 1, 2]
  assert row.prev_action['move'].tolist() == [4, 5, 0, 1, 2, 3, 4, 0]
  assert row.prev_action_mask.tolist() == [1, 1, 0, 1, 1, 1, 1, 0]
  assert row.cont.tolist() == [1, 0, 1, 1, 1, 1, 1, 1]
  # Episode 0 has done both tasks and stays with the one that pays last;
  # episode 1 asks for task 1 as soon as task 0 is done.
  assert row.task.tolist() == [1, 1, 0, 0, 1, 1, 1, 0]
  assert row.reward.tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


def test_separate_images_have_neither_neighbours_nor_actions(source):
  plan = window((0, 4, 6), (1, 0, 2), separate_images=True)
  row = transforms.cut(source, plan)
  assert row.segment_ids.tolist() == [0, 1, 2, 3]
  assert not row.action_mask.any() and not row.prev_action_mask.any()
  assert row.frames[:, 0, 0, 0].tolist() == [4, 5, 100, 101]


def test_unlabeled_episodes_lose_their_actions_only(source):
  share = next(
    s
    for s in np.linspace(0, 1, 101)
    if planning.is_labeled(0, s) != planning.is_labeled(1, s)
  )
  labeled = 0 if planning.is_labeled(0, share) else 1
  plan = window((labeled, 1, 3), (1 - labeled, 0, 3))
  row = transforms.cut(source, plan, labeled_share=share)
  assert row.action_mask.tolist() == [1, 1, 0, 0, 0]
  assert row.prev_action_mask.tolist() == [1, 1, 0, 0, 0]
  full = transforms.cut(source, plan)
  np.testing.assert_array_equal(row.frames, full.frames)
  np.testing.assert_array_equal(row.reward, full.reward)


def test_stack_adds_the_batch(source):
  rows = [transforms.cut(source, window((0, s, s + 3))) for s in (0, 1)]
  batch = transforms.stack(rows)
  assert batch.frames.shape == (2, 3, 2, 2, 3)
  assert batch.prev_action['move'].tolist() == [[0, 1, 2], [1, 2, 3]]
  assert batch.relevant.shape == (2,)
