"""Which episodes keep their actions."""

import dataclasses
import types

import numpy as np
import pytest

from dreamer4_jax.config import SourceConfig
from dreamer4_jax.data import labels
from dreamer4_jax.data.format import SplitIndex

ATTRIBUTES = (
  {'world': 'overworld', 'noise': 0.1, 'cheats': False},
  {'world': 'nether', 'noise': 0.5, 'cheats': True},
  {'world': 'Overworld', 'noise': 0.9},
  {},
)


class Source(types.SimpleNamespace):
  """Four episodes of 50 frames at 10 frames a second: 5 seconds each."""

  def __init__(self, frame_rate=10.0):
    super().__init__(
      path='somewhere',
      split='train',
      description=types.SimpleNamespace(frame_rate=frame_rate),
      index=SplitIndex(
        lengths=np.full(4, 50),
        first_chunks=np.arange(4),
        event_episode=np.zeros(0, int),
        event_frame=np.zeros(0, int),
        event_task=np.zeros(0, int),
        terminal=np.zeros(4, bool),
        attributes=ATTRIBUTES,
      ),
    )

  def __len__(self):
    return 4


def chosen(source=None, **kwargs):
  config = SourceConfig(path='somewhere', **kwargs)
  return labels.labeled_episodes(source or Source(), config).tolist()


def test_all_by_default():
  assert chosen() == [True] * 4


@pytest.mark.parametrize(
  ('seconds', 'expected'),
  [(0, 0), (4.9, 0), (5, 1), (14, 2), (20, 4), (1000, 4)],
)
def test_the_first_hours(seconds, expected):
  assert chosen(labeled_hours=seconds / 3600) == [
    i < expected for i in range(4)
  ]


@pytest.mark.parametrize(
  ('conditions', 'expected'),
  [
    (('world=overworld',), [1, 0, 1, 0]),
    (('world!=overworld',), [0, 1, 0, 0]),
    (('noise<0.5',), [1, 0, 0, 0]),
    (('noise<=0.5',), [1, 1, 0, 0]),
    (('noise >= 0.5', 'world = Nether'), [0, 1, 0, 0]),
    (('cheats=true',), [0, 1, 0, 0]),
    (('episode<1',), [1, 0, 0, 0]),
    (('episode<10',), [1, 1, 1, 1]),
    (('episode>=1', 'world=overworld'), [0, 0, 1, 0]),
  ],
)
def test_a_filter_on_attributes(conditions, expected):
  assert chosen(labeled_where=conditions) == [bool(e) for e in expected]


def test_conditions_are_joined():
  both = chosen(labeled_hours=10 / 3600, labeled_where=('noise>=0.5',))
  assert both == [False, True, False, False]


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'labeled_where': ('noise~1',)}, "labeled_where = 'noise~1': must be"),
    (
      {'labeled_where': ('skill=1',)},
      r"no episode of 'train' .* matches; they have cheats \(False, True\)",
    ),
  ],
)
def test_mistakes_are_named(kwargs, message):
  with pytest.raises(ValueError, match=message):
    chosen(**kwargs)


def test_hours_need_a_frame_rate():
  with pytest.raises(ValueError, match=r'labeled_hours = 1.0: .*no frame rate'):
    chosen(Source(frame_rate=0.0), labeled_hours=1.0)


def test_labeled_episodes_are_a_fixed_share():
  episodes = np.arange(10_000)
  some = labels.is_labeled(episodes, 0.3)
  # 3,000 expected; five standard deviations are 229.
  assert abs(some.sum() - 3000) < 229
  more = labels.is_labeled(episodes, 0.6)
  assert more[some].all()
  assert labels.is_labeled(episodes, 1.0).all()
  assert not labels.is_labeled(episodes, 0.0).any()


def test_what_is_known_was_recorded_and_is_labeled():
  source = Source()
  source.index = dataclasses.replace(
    source.index, known=np.array([49, 0, 1, 49])
  )
  source.description.actions = ('some',)
  labeled = np.array([True, True, True, False])
  found = labels.known_episodes(source, labeled)
  assert found.tolist() == [True, False, True, False]
  source.description.actions = ()
  assert not labels.known_episodes(source, labeled).any()
