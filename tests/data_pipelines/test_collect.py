"""From the environment to disk and back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('navix')

from data_pipelines import collect, doorkey_player, recording, writer
from dreamer4_jax.config import Config, DataConfig, EnvConfig, SourceConfig
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.envs import make_env


@pytest.fixture
def path(recording):
  return recording


@pytest.fixture
def config(recording_config):
  return recording_config


@pytest.fixture
def report(recording_report):
  return recording_report


@functools.cache
def by_hand(config, split, number):
  """Plays one episode step by step: an oracle for what is recorded."""
  env = make_env(EnvConfig(name=config.env, max_steps=config.max_steps))
  key = jax.random.fold_in(
    jax.random.key(config.seed), ('test', 'train').index(split)
  )
  level_key, reset_key, step_key = jax.random.split(
    jax.random.fold_in(key, number), 3
  )
  level = int(jax.random.randint(level_key, (), 0, len(config.noise)))
  state, step = jax.jit(env.reset)(reset_key[None])
  one = jax.tree.map(lambda x: x[0], state.timestep.state)
  player = doorkey_player.start(one, jnp.float32(config.noise[level]))
  act = jax.jit(functools.partial(doorkey_player.act, repeat=config.repeats))
  turn, history, actions = jax.jit(env.step), [step], []
  while not (step.terminal[0] or step.timeout[0]):
    one = jax.tree.map(lambda x: x[0], state.timestep.state)
    player, action = act(
      player, one, jax.random.fold_in(step_key, len(actions))
    )
    actions.append(int(action))
    state, step = turn(state, {'action': action[None]})
    history.append(step)
  return config.noise[level], history, actions


@pytest.mark.parametrize('number', [0, 5, 17, 23])
def test_round_trip_is_exact(config, path, number):
  noise, history, actions = by_hand(config, 'train', number)
  source = EpisodeSource(path, 'train')
  steps = source[number]
  n = len(actions)
  assert len(steps['is_first']) == n + 1
  shown = jax.tree.map(lambda *x: np.concatenate(x), *history)
  np.testing.assert_array_equal(steps['observation'], shown.frame)
  np.testing.assert_array_equal(steps['action']['action'][:n], actions)
  np.testing.assert_array_equal(steps['events'][:n], shown.events[1:])
  np.testing.assert_array_equal(steps['reward'][:n], shown.reward[1:])
  assert steps['is_terminal'][-1] == shown.terminal[-1]
  assert source.index.attributes[number] == {'number': number, 'noise': noise}


@pytest.mark.parametrize(
  'changes',
  [
    {'parallel': 3},
    {'parallel': 7, 'workers': 2, 'block': 4},
    {'parallel': 1, 'block': 31},
  ],
)
def test_how_it_is_played_changes_nothing(config, path, tmp_path, changes):
  out = str(tmp_path / 'again')
  other = dataclasses.replace(config, out=out, episodes=9, **changes)
  collect.collect(other, progress=False)
  a, b = EpisodeSource(path, 'train'), EpisodeSource(out, 'train')
  assert len(b) == 9
  for i in range(9):
    np.testing.assert_equal(a[i], b[i])


def test_an_interrupted_recording_goes_on(config, path, tmp_path, monkeypatch):
  monkeypatch.setattr(recording, 'SHARD_FRAMES', 40)
  other = dataclasses.replace(config, out=str(tmp_path / 'd'), parallel=4)
  original, count = recording.record, []

  def power_cut(*args):
    for episode in original(*args):
      if len(count) == 15:
        raise KeyboardInterrupt
      count.append(episode.attributes['number'])
      yield episode

  monkeypatch.setattr(recording, 'record', power_cut)
  with pytest.raises(KeyboardInterrupt):
    collect.collect(other, progress=False)
  assert not (tmp_path / 'd').exists()
  played = []

  def watched(*args):
    for episode in original(*args):
      played.append(episode.attributes['number'])
      yield episode

  monkeypatch.setattr(recording, 'record', watched)
  report = collect.collect(other, progress=False)
  assert report['train']['episodes'] == 24
  # At most a shard's worth is played again.
  assert len(played) < 24 + 5 and not set(count[:5]) & set(played[:-5])
  a, b = EpisodeSource(path, 'train'), EpisodeSource(tmp_path / 'd', 'train')
  for i in range(24):
    np.testing.assert_equal(a[i], b[i])


def test_random_play_uses_every_action(tmp_path):
  config = collect.CollectConfig(
    out=str(tmp_path / 'd'),
    env='navix:Navix-DoorKey-Random-5x5-v0',
    policy='random',
    episodes=20,
    test_episodes=1,
    max_steps=20,
    parallel=20,
    workers=1,
    repeat=0.5,
  )
  collect.collect(config, progress=False)
  source = EpisodeSource(tmp_path / 'd', 'train')
  actions = [source[i]['action']['action'][:-1] for i in range(20)]
  counts = np.bincount(np.concatenate(actions), minlength=5)
  assert counts.min() > 0.1 * counts.sum()
  again = np.concatenate([a[1:] == a[:-1] for a in actions])
  # Repeated by chance or by whim: 0.5 + 0.5 / 5, of about 380.
  assert abs(again.mean() - 0.6) < 0.13


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'policy': 'checkpoint'}, "CollectConfig.run = ''"),
    ({'workers': -1}, 'CollectConfig.workers = -1'),
    ({'idle': 2.0}, 'CollectConfig.idle = 2.0'),
    ({'policy': 'random'}, 'CollectConfig.noise = .*the random player of navi'),
    ({'policy': 'random', 'noise': None, 'run': 'x'}, "run = 'x': the random"),
    ({'idle': 0.1}, 'idle = 0.1: the scripted player of navix:.* leave it out'),
    ({'restless': 0.1}, 'restless = 0.1: the scripted player of navix'),
    (
      {'policy': 'checkpoint', 'run': 'x', 'noise': None, 'repeat': 0.5},
      'repeat = 0.5: the checkpoint player',
    ),
  ],
)
def test_wrong_ways_to_play_are_named(config, changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(config, **changes)


@pytest.mark.parametrize('share', [0.0, 0.5])
def test_an_experiment_records_its_environment(monkeypatch, share):
  asked = []
  monkeypatch.setattr(
    collect, 'collect', lambda config: asked.append(config) or 'report'
  )
  monkeypatch.setattr(
    collect.novelty, 'measure_dataset', lambda *of: asked.append(of)
  )
  env = EnvConfig(name='navix:x', image_size=(8, 6), max_steps=7)
  sources = (SourceConfig(path='d'),)
  config = Config(env=env, data=DataConfig(sources=sources, novel_share=share))
  settings = {'policy': 'random', 'episodes': 3}
  assert collect.record_env(config, **settings) == 'report'
  expected = collect.CollectConfig(
    out='d', env='navix:x', image_size=(8, 6), max_steps=7, **settings
  )
  assert asked == [expected] + [('d', 'train')] * (share > 0)
  # A recording may have a longer time limit than an evaluation.
  collect.record_env(config, max_steps=9, **settings)
  assert asked[-1 - (share > 0)] == dataclasses.replace(expected, max_steps=9)


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
  assert report['train']['event_rate_by_noise']['0']['goal'] == 1.0
  assert report['train']['mean_return'] == pytest.approx(goals / 24)


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
