"""Alignment by arrival, on episodes written by hand, through the disk."""

import jax
import numpy as np
import pytest

from data_pipelines import writer
from dreamer4_jax.config import ActionComponent
from dreamer4_jax.data import format as fmt
from dreamer4_jax.data import planning, transforms
from dreamer4_jax.data.sources import EpisodeSource, Stretch

ACTIONS = (
  ActionComponent(name='move', kind='categorical', size=100),
  ActionComponent(name='aim', kind='continuous', size=2, low=-9.0, high=9.0),
)
TASKS = ('a', 'b')


def make_episode(length, *, terminal, base=0):
  """Frame t shows base + t; action t is 1 + t; reward t is 0.5 * (t + 1)."""
  t = np.arange(length)
  last = t == length - 1
  events = np.zeros((length, 2), np.uint8)
  events[1, 0] = 1
  if terminal:
    events[length - 2, 1] = 1
  return writer.Episode(
    steps={
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
    },
    terminal=terminal,
  )


def write(path, episodes, chunk_length=4, tasks=TASKS, **kwargs):
  return writer.write_dataset(
    path,
    description=fmt.Description(
      actions=ACTIONS,
      tasks=tasks,
      frame_shape=(2, 2, 3),
      chunk_length=chunk_length,
      **kwargs,
    ),
    splits={'train': episodes},
  )


def two_episodes():
  return [
    make_episode(6, terminal=True),
    make_episode(5, terminal=False, base=100),
  ]


def open_clips(path, labeled=(True, True), tasks=TASKS):
  return transforms.Clips(
    sources=[EpisodeSource(path, 'train')],
    labeled=[np.array(labeled)],
    actions=ACTIONS,
    tasks=tasks,
  )


@pytest.fixture(scope='module', params=[1, 2, 4, 100])
def path(request, tmp_path_factory):
  """The two episodes in chunks of one step, of some, and whole."""
  directory = tmp_path_factory.mktemp('data') / 'hand'
  return write(directory, two_episodes(), chunk_length=request.param)


@pytest.fixture
def cut(path):
  """Reads one window and takes the batch dimension off."""

  def read(window, **kwargs):
    batch = open_clips(path, **kwargs).read([window])
    return jax.tree.map(lambda x: x[0], batch)

  return read


def window(*segments, **kwargs):
  return planning.Window(
    segments=tuple(Stretch(e, a, b) for e, a, b in segments),
    **{
      'anchor_task': -1,
      'switch_tasks': True,
      'separate_images': False,
      **kwargs,
    },
  )


def test_a_whole_episode_by_hand(cut):
  row = cut(window((0, 0, 6)))
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
  # Events: task 0 is earned by action 1, task 1 by action 4.
  assert row.task.tolist() == [0, 0, 1, 1, 1, 1]
  assert row.reward[:, 0].tolist() == [0, 0, 1, 0, 0, 0]
  assert row.reward[:, 1].tolist() == [0, 0, 0, 0, 0, 1]
  assert row.cont.tolist() == [1, 1, 1, 1, 1, 0]
  assert row.segment_ids.tolist() == [0] * 6
  assert not row.relevant and not row.cloned.any()
  dtypes = {
    'frames': np.uint8,
    'action_mask': np.bool_,
    'prev_action_mask': np.bool_,
    'cloned': np.bool_,
    'reward': np.float32,
    'cont': np.float32,
    'task': np.int32,
    'segment_ids': np.int32,
    'relevant': np.bool_,
  }
  assert {k: getattr(row, k).dtype.type for k in dtypes} == dtypes


def test_reward_is_seen_on_arrival(cut):
  plan = window((0, 0, 6), anchor_task=0, cloned=2, switch_tasks=False)
  row = cut(plan)
  assert row.relevant
  assert row.task.tolist() == [0] * 6
  assert row.reward[:, 0].tolist() == [0, 0, 1, 0, 0, 0]
  # Action 1 led there; what follows is not cloned, nor is what fills the clip.
  assert row.cloned.tolist() == [1, 1, 0, 0, 0, 0]


def test_only_known_actions_up_to_the_event_are_cloned(cut):
  plan = window((0, 1, 6), (1, 0, 3), anchor_task=1, cloned=4)
  assert cut(plan).cloned.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
  row = cut(plan, labeled=(False, True))
  assert not row.cloned.any() and row.action_mask.sum() == 3
  images = window((0, 1, 6), anchor_task=1, cloned=4, separate_images=True)
  assert not cut(images).cloned.any()
  # A clip without events is cloned whole, across segments except at ends.
  whole = window((0, 3, 6), (1, 0, 2), cloned=5)
  assert cut(whole).cloned.tolist() == [1, 1, 0, 1, 1]


def test_without_events_the_reward_of_the_environment_counts(tmp_path):
  episodes = two_episodes()
  for episode in episodes:
    episode.steps['events'] = np.zeros((len(episode.steps['reward']), 1))
    episode.steps['events'] = episode.steps['events'].astype(np.uint8)
  tasks = fmt.REWARD_ONLY
  clips = open_clips(write(tmp_path / 'x', episodes, tasks=tasks), tasks=tasks)
  batch = clips.read([window((0, 0, 6))])
  assert batch.reward.shape == (1, 6, 1)
  assert batch.reward[0, :, 0].tolist() == [0, 0.5, 1.0, 1.5, 2.0, 2.5]
  batch = clips.read([window((0, 2, 4))])
  assert batch.reward.tolist() == [[[1.0], [1.5]]]
  # Nothing leads from one episode into the next, even where the first has been
  # cut short.
  batch = clips.read([window((0, 3, 5), (1, 0, 2))])
  assert batch.reward[0, :, 0].tolist() == [1.5, 2.0, 0, 0.5]


@pytest.mark.parametrize('changed', range(5))
def test_an_action_first_shows_on_the_frame_it_led_to(cut, tmp_path, changed):
  episodes = two_episodes()
  episodes[0].steps['action']['move'][changed] = 77
  other = open_clips(write(tmp_path / 'other', episodes))
  a = cut(window((0, 0, 6)))
  b = jax.tree.map(lambda x: x[0], other.read([window((0, 0, 6))]))
  differs = a.prev_action['move'] != b.prev_action['move']
  assert np.flatnonzero(differs).tolist() == [changed + 1]
  differs = a.action['move'] != b.action['move']
  assert np.flatnonzero(differs).tolist() == [changed]


def test_no_action_leads_from_one_episode_into_the_next(cut):
  # The first one has been cut short: what was done there is known.
  row = cut(window((0, 3, 5), (1, 0, 2)))
  assert row.action_mask.tolist() == [1, 1, 1, 1]
  assert row.prev_action['move'].tolist() == [3, 4, 0, 1]
  assert row.prev_action_mask.tolist() == [1, 1, 0, 1]


def test_a_time_out_is_not_terminal(cut):
  row = cut(window((1, 0, 5)))
  assert row.cont.tolist() == [1, 1, 1, 1, 1]
  assert row.action_mask.tolist() == [1, 1, 1, 1, 0]


def test_a_window_from_the_middle_knows_its_first_previous_action(cut):
  row = cut(window((0, 3, 6)))
  assert row.prev_action['move'].tolist() == [3, 4, 5]
  assert row.prev_action_mask.tolist() == [1, 1, 1]


def test_packed_episodes_are_segments(cut):
  row = cut(window((0, 4, 6), (1, 0, 5), (0, 0, 1)))
  assert row.frames[:, 0, 0, 0].tolist() == [4, 5, 100, 101, 102, 103, 104, 0]
  assert row.segment_ids.tolist() == [0, 0, 1, 1, 1, 1, 1, 2]
  assert row.prev_action['move'].tolist() == [4, 5, 0, 1, 2, 3, 4, 0]
  assert row.prev_action_mask.tolist() == [1, 1, 0, 1, 1, 1, 1, 0]
  assert row.cont.tolist() == [1, 0, 1, 1, 1, 1, 1, 1]
  # Episode 0 has done both tasks and stays with the one that pays last;
  # episode 1 asks for task 1 as soon as task 0 is done.
  assert row.task.tolist() == [1, 1, 0, 0, 1, 1, 1, 0]
  assert row.reward[:, 0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
  assert row.reward[:, 1].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


def test_separate_images_have_neither_neighbours_nor_actions(cut):
  plan = window((0, 4, 6), (1, 0, 2), separate_images=True)
  row = cut(plan)
  assert row.segment_ids.tolist() == [0, 1, 2, 3]
  assert not row.action_mask.any() and not row.prev_action_mask.any()
  assert row.frames[:, 0, 0, 0].tolist() == [4, 5, 100, 101]


def test_unlabeled_episodes_lose_their_actions_only(cut):
  plan = window((0, 1, 3), (1, 0, 3))
  row = cut(plan, labeled=(True, False))
  assert row.action_mask.tolist() == [1, 1, 0, 0, 0]
  assert row.prev_action_mask.tolist() == [1, 1, 0, 0, 0]
  full = cut(plan)
  np.testing.assert_array_equal(row.frames, full.frames)
  np.testing.assert_array_equal(row.reward, full.reward)


def test_a_batch_stacks_its_windows(path):
  clips = open_clips(path)
  batch = clips.read([window((0, s, s + 3)) for s in (0, 1)])
  assert batch.frames.shape == (2, 3, 2, 2, 3)
  assert batch.prev_action['move'].tolist() == [[0, 1, 2], [1, 2, 3]]
  assert batch.relevant.shape == (2,)


def test_labeled_and_unlabeled_datasets_share_a_batch(path, tmp_path):
  video = writer.write_dataset(
    tmp_path / 'video',
    description=fmt.Description(actions=(), tasks=(), frame_shape=(2, 2, 3)),
    splits={
      'train': [
        writer.Episode(
          steps={
            'observation': np.full((9, 2, 2, 3), 200, np.uint8),
            'action_known': np.zeros(9, bool),
            'reward': np.zeros(9, np.float32),
          },
          terminal=False,
        )
      ]
    },
  )
  clips = transforms.Clips(
    sources=[EpisodeSource(path, 'train'), EpisodeSource(video, 'train')],
    labeled=[np.ones(2, bool), np.ones(1, bool)],
    actions=ACTIONS,
    tasks=TASKS,
  )
  batch = clips.read([window((0, 3, 6)), window((0, 5, 8), source=1)])
  assert batch.frames[:, :, 0, 0, 0].tolist() == [[3, 4, 5], [200] * 3]
  assert batch.action_mask.tolist() == [[1, 1, 0], [0, 0, 0]]
  assert batch.prev_action_mask.tolist() == [[1, 1, 1], [0, 0, 0]]
  assert batch.prev_action['aim'].shape == (2, 3, 2)
  assert batch.cont.tolist() == [[1, 1, 0], [1, 1, 1]]
  assert not batch.reward[1].any()
