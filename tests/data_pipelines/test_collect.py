"""From the environment to disk and back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import writer
from dreamer4_jax.config import EnvConfig
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.envs import make_env

collect = pytest.importorskip('data_pipelines.collect')


@pytest.fixture
def path(recording):
  return recording


@pytest.fixture
def config(recording_config):
  return recording_config


@pytest.fixture
def report(recording_report):
  return recording_report


def test_round_trip_is_exact(config, path):
  env = make_env(EnvConfig(name=config.env, max_steps=config.max_steps))
  key = jax.random.fold_in(jax.random.key(config.seed), 1)
  keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(16))
  play = functools.partial(
    collect.rollout, noise=jnp.asarray(config.noise), repeat=config.repeat
  )
  batch = jax.device_get(jax.jit(functools.partial(play, env))(keys))
  source = EpisodeSource(path, 'train')
  for i in range(16):
    steps = source[i]
    ended = (batch.steps.terminal | batch.steps.timeout)[:, i]
    n = int(np.argmax(ended)) + 1
    assert len(steps['is_first']) == n + 1
    np.testing.assert_array_equal(steps['observation'][0], batch.first.frame[i])
    np.testing.assert_array_equal(
      steps['observation'][1:], batch.steps.frame[:n, i]
    )
    np.testing.assert_array_equal(
      steps['action']['action'][:n], batch.actions[:n, i]
    )
    np.testing.assert_array_equal(
      steps['events'][:n], batch.steps.events[:n, i]
    )
    np.testing.assert_array_equal(
      steps['reward'][:n], batch.steps.reward[:n, i]
    )
    assert steps['is_terminal'][-1] == batch.steps.terminal[n - 1, i]


@pytest.mark.parametrize('split', ['train', 'test'])
def test_episodes_follow_the_convention(path, split, config):
  source = EpisodeSource(path, split)
  terminals = 0
  for episode, length in enumerate(source.index.lengths):
    steps = source[episode]
    frames = np.arange(length)
    assert (steps['is_first'] == (frames == 0)).all()
    assert (steps['is_last'] == (frames == length - 1)).all()
    assert (steps['action_known'] == ~steps['is_last']).all()
    assert not steps['is_terminal'][:-1].any()
    assert steps['reward'][-1] == 0 and not steps['events'][-1].any()
    # The goal ends an episode for good, anything else is a time-out.
    reached = bool(steps['events'][:, 2].any())
    assert steps['is_terminal'][-1] == reached
    assert reached or length == config.max_steps + 1
    terminals += reached
    # The index says when each event is seen: one frame after its action.
    found = np.stack(source.index.of_episode(episode), -1).tolist()
    step, task = np.nonzero(steps['events'])
    assert found == np.stack([step + 1, task], -1).tolist()
    assert steps['events'].sum(0).max() <= 1
  assert 0 < terminals < len(source.index.lengths)


def test_the_report_counts(path, report):
  source = EpisodeSource(path, 'train')
  assert report['train']['episodes'] == 24 and report['test']['episodes'] == 5
  assert report['train']['frames'] == source.index.lengths.sum()
  goals = (source.index.event_task == 2).sum()
  assert report['train']['success_rate'] == pytest.approx(goals / 24)
  assert report['train']['event_rate']['goal'] == pytest.approx(goals / 24)
  assert report['train']['success_rate_by_noise']['0'] == 1.0


def test_splits_differ(path):
  train, test = EpisodeSource(path, 'train'), EpisodeSource(path, 'test')
  assert not np.array_equal(
    train[0]['action']['action'][:6], test[0]['action']['action'][:6]
  ) or not np.array_equal(train[0]['observation'][0], test[0]['observation'][0])


def test_a_finished_dataset_is_not_replaced(config, path, tmp_path):
  with pytest.raises(FileExistsError, match=r'finished dataset.*overwrite'):
    collect.collect(config, progress=False)
  (tmp_path / 'notes.txt').write_text('mine')
  with pytest.raises(FileExistsError, match='not a dataset'):
    collect.collect(
      dataclasses.replace(config, out=str(tmp_path), overwrite=True),
      progress=False,
    )
  assert (tmp_path / 'notes.txt').read_text() == 'mine'


def again(source, number, **steps):
  """Returns an episode of a dataset as the writer takes it."""
  flags = ('is_first', 'is_last', 'is_terminal')
  read = source[number]
  kept = {k: v for k, v in read.items() if k not in flags}
  return writer.Episode(
    steps={**kept, **steps}, terminal=bool(read['is_terminal'][-1])
  )


def small(path, tmp_path, count, **kwargs):
  """Writes the first episodes of a dataset again."""
  source = EpisodeSource(path, 'train')
  return writer.write_dataset(
    tmp_path / 'copy',
    description=source.description,
    splits={'train': (again(source, i) for i in range(count))},
    **kwargs,
  )


def test_overwrite_replaces_and_leaves_nothing_behind(path, tmp_path):
  small(path, tmp_path, 3)
  out = small(path, tmp_path, 2, overwrite=True)
  assert len(EpisodeSource(out, 'train')) == 2
  assert [p.name for p in tmp_path.iterdir()] == ['copy']


def test_an_interrupted_write_leaves_nothing(path, tmp_path):
  source = EpisodeSource(path, 'train')

  def episodes():
    yield again(source, 0)
    raise RuntimeError('power cut')

  with pytest.raises(RuntimeError, match='power cut'):
    writer.write_dataset(
      tmp_path / 'copy',
      description=source.description,
      splits={'train': episodes()},
    )
  assert not list(tmp_path.iterdir())


def test_order_survives_many_episodes(path, tmp_path):
  source = EpisodeSource(path, 'train')

  def marked():
    for i in range(300):
      frames = np.full_like(source[0]['observation'], i % 256)
      frames[0, 0, 0, 0] = i // 256
      yield again(source, 0, observation=frames)

  out = writer.write_dataset(
    tmp_path / 'copy',
    description=source.description,
    splits={'train': marked()},
  )
  copy = EpisodeSource(out, 'train')
  for i in range(300):
    frames = copy[i]['observation']
    assert int(frames[1, 0, 0, 0]) + 256 * int(frames[0, 0, 0, 0]) == i


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'noise': ()}, r'CollectConfig.noise = \(\)'),
    ({'noise': (1.2,)}, 'CollectConfig.noise'),
    ({'repeat': 1.0}, 'CollectConfig.repeat = 1.0'),
    ({'episodes': 0}, 'CollectConfig.episodes = 0'),
  ],
)
def test_wrong_settings_are_named(kwargs, message):
  with pytest.raises(ValueError, match=message):
    collect.CollectConfig(out='x', **kwargs)
