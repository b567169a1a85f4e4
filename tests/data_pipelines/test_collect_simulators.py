"""Recordings of simulators that run on the host."""

import json
import pathlib

import numpy as np
import pytest

from data_pipelines import collect
from dreamer4_jax.config import EnvConfig
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.envs import host
from tests.data_pipelines import batches
from tests.envs.test_host_envs import Counter, Feeling


@pytest.fixture
def record_counter(tmp_path, monkeypatch):
  """Records simulators on the host that count; returns the dataset's path."""
  env = host.HostEnv(Counter, EnvConfig(max_steps=4))
  monkeypatch.setattr(collect, 'make_env', lambda config: env)

  def record(**kwargs):
    config = collect.CollectConfig(
      out=str(tmp_path / 'd'), env='counter:x', max_steps=4, workers=1, **kwargs
    )
    collect.collect(config, progress=False)
    return config.out

  return record


def test_a_simulator_on_the_host_is_recorded(record_counter):
  path = record_counter(
    policy='random', episodes=7, test_episodes=2, parallel=3
  )
  source = EpisodeSource(path, 'train')
  assert len(source) == 7
  for i in range(7):
    steps = source[i]
    shown = steps['observation'][:, 0, 0, 0].astype(int)
    seed, n = shown[0] // 10, len(shown) - 1
    np.testing.assert_array_equal(shown, 10 * seed + np.arange(n + 1))
    assert n == min(seed + 2, 4)
    assert steps['is_terminal'][-1] == (seed + 2 <= 4)
    np.testing.assert_array_equal(
      steps['reward'], steps['action']['action'] * ~steps['is_last']
    )


def test_actions_lead_to_frames_in_batches(record_counter):
  path = record_counter(
    policy='random', episodes=1, test_episodes=1, parallel=1
  )
  steps = EpisodeSource(path, 'train')[0]
  first, count = int(steps['observation'][0, 0, 0, 0]), len(steps['reward'])
  # The simulator pays the number of the action, and shows its steps.
  shown = np.arange(first, first + count, dtype=np.uint8)
  truth = batches.Truth(
    frames=shown[:, None, None, None].repeat(4, 1).repeat(6, 2).repeat(3, 3),
    actions={'action': steps['reward'][:-1].astype(int)},
    rewards=steps['reward'][:-1],
    terminal=count - 1 == first // 10 + 2,
  )
  batches.check(path, [truth], batches=5)


def test_vectors_are_recorded_beside_the_frames(record_counter, monkeypatch):
  env = host.HostEnv(Feeling, EnvConfig(max_steps=4))
  monkeypatch.setattr(collect, 'make_env', lambda config: env)
  path = record_counter(
    policy='random', episodes=7, test_episodes=2, parallel=3
  )
  source = EpisodeSource(path, 'train', vectors=Feeling.vectors)
  every = []
  for i in range(7):
    steps = source[i]
    touch = steps['vector']['touch']
    shown = steps['observation'][:, 0, 0, 0]
    np.testing.assert_array_equal(10 * touch[:, 0] + touch[:, 1], shown)
    every.append(touch)
  held_out = EpisodeSource(path, 'test')
  every += [held_out[i]['vector']['touch'] for i in range(2)]
  (part,) = source.description.vectors
  np.testing.assert_allclose(part.mean, np.concatenate(every).mean(0), 1e-5)


def test_vectors_can_be_left_out(record_counter, monkeypatch):
  broken = lambda self: {'touch': np.array([np.nan, 0])}
  monkeypatch.setattr(Feeling, 'sense', broken)
  env = host.HostEnv(Feeling, EnvConfig(max_steps=4))
  monkeypatch.setattr(collect, 'make_env', lambda config: env)
  few = {'policy': 'random', 'episodes': 1, 'test_episodes': 1}
  with pytest.raises(ValueError, match=r'vector/touch: .*nan.*--no-vectors'):
    record_counter(**few)
  path = record_counter(**few, vectors=False)
  assert EpisodeSource(path, 'train').description.vectors == ()


def test_only_places_with_an_episode_are_played(record_counter, monkeypatch):
  steps, original = [], Counter.step
  monkeypatch.setattr(
    Counter, 'step', lambda self, a: steps.append(1) or original(self, a)
  )
  path = record_counter(
    policy='random', episodes=5, test_episodes=1, parallel=4
  )
  lengths = [
    length
    for split in ('train', 'test')
    for length in EpisodeSource(path, split).index.lengths - 1
  ]
  assert len(steps) == sum(lengths)


def test_only_who_draws_noise_has_it(record_counter):
  path = record_counter(policy='random', episodes=2, test_episodes=1)
  source = EpisodeSource(path, 'train')
  assert source.index.attributes == ({'number': 0}, {'number': 1})
  report = json.loads((pathlib.Path(path) / 'collection.json').read_text())
  # There are no events, so nothing is said about them; and no noise.
  assert set(report['train']) == {
    'episodes', 'frames', 'mean_length', 'mean_return',
  }  # fmt: skip
  earned = [source[i]['reward'].sum() for i in range(2)]
  assert report['train']['mean_return'] == np.mean(earned)
  assert source.description.source['noise'] == []


def test_an_environment_without_a_script_is_named(record_counter):
  with pytest.raises(ValueError, match="no scripted player for 'counter:x'"):
    record_counter()
