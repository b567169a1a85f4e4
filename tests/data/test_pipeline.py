"""The loader, on a recorded dataset."""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import signal
import time

import jax
import numpy as np
import pytest

from dreamer4_jax.config import ActionComponent, SourceConfig
from dreamer4_jax.data import (
  Description,
  Draws,
  EpisodeSource,
  make_loader,
  pipeline,
  transforms,
)
from tests.data import drawing

EXPECTED = Description(
  actions=(ActionComponent(name='action', kind='categorical', size=5),),
  tasks=('key', 'door', 'goal'),
  frame_shape=(40, 40, 3),
)


@pytest.fixture
def path(recording):
  return recording


@pytest.fixture
def make(path):
  def build(datasets=path, split='train', expected=EXPECTED, **kwargs):
    options = ('process', 'threads', 'cache_bytes')
    given = {k: kwargs.pop(k) for k in options if k in kwargs}
    draws = Draws(**{'batch_size': 4, 'length': 12, 'seed': 1, **kwargs})
    return make_loader(datasets, split, expected, draws, **given)

  return build


def same(a, b):
  return all(
    jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))
  )


def test_shapes_and_types(make):
  batch = next(make(relevant_share=0.5))
  assert batch.frames.shape == (4, 12, 40, 40, 3)
  assert batch.frames.dtype == np.uint8
  assert batch.action['action'].shape == (4, 12)
  assert batch.relevant.tolist() == [False, True, False, True]
  assert isinstance(batch.frames, np.ndarray)


def test_relevant_rows_hold_an_event(make):
  loader = make(relevant_share=0.5, switch_tasks=0.0)
  seen = set()
  for _ in range(30):
    batch = next(loader)
    first = batch.segment_ids == 0
    own = np.take_along_axis(batch.reward, batch.task[..., None], axis=-1)
    paid = (own[..., 0] > 0) & first
    for row in (1, 3):
      # The anchor's task labels the whole first segment, and pays once.
      assert paid[row].sum() == 1 and not paid[row, 0]
      labels = batch.task[row][first[row]]
      assert len(set(labels.tolist())) == 1
      seen.add(int(labels[0]))
  assert seen == {0, 1, 2}


def test_rows_of_baselines_clone_all_that_is_known(make):
  loader = make(relevant_share=0.25, baseline_share=0.25)
  prompts, past_events = [], 0
  for _ in range(20):
    batch = next(loader)
    assert batch.relevant.tolist() == [False, False, True, True]
    assert (batch.task[[0, 1, 3]] < 3).all()
    prompts.append(int(batch.task[2, 0]))
    assert (batch.task[2] == prompts[-1]).all()
    assert np.array_equal(batch.cloned[2], batch.action_mask[2])
    past_events += int(
      (batch.reward[2, :-1].any(-1) & batch.cloned[2, 1:]).sum()
    )
  assert prompts == [3, 4] * 10 and past_events > 5


def test_terminal_frames_are_kept_and_end_their_segment(make):
  loader = make(length=40)
  ends = 0
  for _ in range(10):
    batch = next(loader)
    for row, t in zip(*np.nonzero(batch.cont == 0), strict=True):
      ends += 1
      assert not batch.action_mask[row, t]
      if t + 1 < 40:
        ids = batch.segment_ids[row]
        assert ids[t + 1] == ids[t] + 1
        assert not batch.prev_action_mask[row, t + 1]
  assert ends > 10


@pytest.mark.parametrize(
  ('purpose', 'milestones'),
  [('video', False), ('cloning', True), ('dreams', True), ('dreams', False)],
)
def test_dreams_are_planned_and_labeled_as_an_agent_acts(
  make, monkeypatch, purpose, milestones
):
  # Where no task is achieved twice, labels alone would show no difference.
  asked = {}

  def watch(module, name):
    original = getattr(module, name)

    def watched(**kwargs):
      asked[name] = kwargs
      return original(**kwargs)

    monkeypatch.setattr(module, name, watched)

  watch(pipeline, 'Planner')
  watch(transforms, 'Clips')
  make(purpose=purpose, switch_tasks=0.3, milestones=milestones)
  dreams = purpose == 'dreams'
  assert asked['Clips']['milestones'] == milestones
  assert asked['Planner']['milestones'] == milestones
  assert asked['Planner']['purpose'] == purpose
  assert asked['Planner']['switch_tasks'] == (1.0 if dreams else 0.3)


def test_the_seed_decides(make):
  a, b, c = make(), make(), make(seed=2)
  first = [next(a) for _ in range(3)]
  assert all(same(x, next(b)) for x in first)
  assert not same(first[0], next(c))
  assert not same(first[0], first[1])


@pytest.mark.parametrize('at', [0, 1, 7])
def test_resume_is_exact(make, at):
  settings = {'relevant_share': 0.5, 'separate_images': 0.3}
  loader = make(**settings)
  for _ in range(at):
    next(loader)
  state = loader.get_state()
  expected = [next(loader) for _ in range(6)]
  fresh = make(**settings)
  next(fresh)
  fresh.set_state(state)
  assert all(same(x, next(fresh)) for x in expected)
  # Going back with the same iterator is exact as well.
  loader.set_state(state)
  assert all(same(x, next(loader)) for x in expected)


def test_processes_draw_their_own_rows(make):
  both = lambda: [make(batch_size=8, process=(i, 2)) for i in (0, 1)]
  first, again = both(), both()
  a, b = (next(x) for x in first)
  assert len(a.frames) == len(b.frames) == 4
  assert not same(a, b)
  assert same(a, next(again[0])) and same(b, next(again[1]))
  # Together they are the batch that one process would draw.
  whole = next(make(batch_size=8))
  joined = jax.tree.map(lambda x, y: np.concatenate([x, y]), a, b)
  assert same(whole, joined)


def test_resume_on_another_number_of_processes_goes_on(make):
  settings = {'relevant_share': 0.5, 'separate_images': 0.3}
  settings['baseline_share'] = 0.25
  one = make(batch_size=8, **settings)
  for _ in range(3):
    next(one)
  state = one.get_state()
  two = [make(batch_size=8, process=(i, 2), **settings) for i in range(2)]
  for part in two:
    part.set_state(state)
  for _ in range(4):
    joined = jax.tree.map(
      lambda x, y: np.concatenate([x, y]), *(next(part) for part in two)
    )
    assert same(next(one), joined)


def test_threads_do_not_change_the_order(make):
  one, four = make(), make(threads=4)
  assert all(same(next(one), next(four)) for _ in range(40))


def test_small_and_large_datasets_are_read_alike(make):
  kept, from_disk = make(), make(cache_bytes=0)
  assert all(same(next(kept), next(from_disk)) for _ in range(10))


def test_shares_of_images_and_labels(make, path):
  loader = make(batch_size=64, length=8, separate_images=0.3)
  ids = np.concatenate([next(loader).segment_ids for _ in range(10)])
  share = (ids == np.arange(8)).all(-1).mean()
  # 640 rows, standard deviation 0.018; packing cannot make 8 segments.
  assert abs(share - 0.3) < 0.09
  share = lambda x: SourceConfig(path=path, labeled_share=x)
  batch = next(make(batch_size=64, datasets=share(0.0)))
  assert not batch.action_mask.any() and not batch.prev_action_mask.any()
  batch = next(make(batch_size=64, datasets=share(0.5)))
  assert 0.1 < batch.action_mask.mean() < 0.9


def test_windows_show_what_was_recorded(make, path):
  source = EpisodeSource(path, 'train')
  episodes = [source[i] for i in range(len(source))]
  batch = next(make(batch_size=16, length=5))
  stretches = {
    (
      e['observation'][s : s + 5].tobytes(),
      e['action']['action'][s : s + 5].tobytes(),
    )
    for e in episodes
    for s in range(len(e['is_first']) - 4)
  }
  whole = (batch.segment_ids == 0).all(-1)
  assert whole.sum() >= 8
  for row in np.flatnonzero(whole):
    key = (
      batch.frames[row].tobytes(),
      batch.action['action'][row].tobytes(),
    )
    assert key in stretches


def expecting(**fields):
  return {'expected': dataclasses.replace(EXPECTED, **fields)}


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'split': 'valid'}, "split: found .*expected some in 'valid'"),
    (
      expecting(tasks=('key', 'bell')),
      "tasks: found .*'door'.*expected .*'bell'.* knows nothing of bell",
    ),
    (
      expecting(actions=(ActionComponent(name='x', kind='binary', size=2),)),
      r"actions: found .*name='action'.*expected .*name='x'",
    ),
    (
      expecting(frame_shape=(48, 48, 3)),
      r'frame_shape: found \(40, 40, 3\), expected \(48, 48, 3\)',
    ),
    ({'length': 0}, 'length = 0'),
    ({'process': (1, 1)}, r'process = \(1, 1\): must be a number below'),
    ({'process': (0, 3)}, 'which divides the global batch of 4'),
  ],
)
def test_mistakes_are_named(make, kwargs, message):
  with pytest.raises(ValueError, match=message):
    make(**kwargs)


def test_tasks_may_be_some_of_the_datasets_in_any_order(make):
  draws = {'relevant_share': 1.0, 'batch_size': 32}
  whole = next(make(**draws))
  names = EXPECTED.tasks
  mine = (names[2], names[0])
  some = next(make(**expecting(tasks=mine), **draws))
  assert some.reward.shape[-1] == 2 and some.reward.any((0, 1)).all()
  # Frames tell the two apart: the same events pay, in their own columns.
  pays = lambda batch, k: {
    batch.frames[row, t].tobytes()
    for row, t in np.argwhere(batch.reward[..., k])
  }
  for own, theirs in ((0, 2), (1, 0)):
    others = set.union(*(pays(whole, k) for k in range(3) if k != theirs))
    assert not pays(some, own) & (others - pays(whole, theirs))


def test_a_missing_dataset_is_named(make, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'nowhere.*data_pipelines'):
    make(datasets=str(tmp_path / 'nowhere'))
  with pytest.raises(FileNotFoundError, match=r'SourceConfig\.path'):
    make(datasets='')


def test_ten_kills_change_nothing(path, tmp_path):
  """SIGKILL at random moments; what was drawn and the state go together."""
  total, logs = 120, [str(tmp_path / n) for n in ('whole', 'killed')]
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['tests.data.drawing'])

  def start(log):
    process = context.Process(target=drawing.draw, args=(path, log, total))
    process.start()
    return process

  def finish(log):
    process = start(log)
    process.join()
    assert process.exitcode == 0

  finish(logs[0])
  seen = lambda log: json.loads(pathlib.Path(log).read_text())['seen']
  rng, kills = np.random.default_rng(0), 0
  while kills < 10:
    goal = rng.integers(kills * 11, kills * 11 + 11)
    process = start(logs[1])
    while not os.path.exists(logs[1]) or len(seen(logs[1])) <= goal:
      assert process.is_alive()
      time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    kills += 1
  finish(logs[1])
  assert seen(logs[1]) == seen(logs[0]) and len(set(seen(logs[0]))) == total
