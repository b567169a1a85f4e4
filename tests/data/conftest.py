"""A tiny dataset of the 5x5 level, recorded once."""

import pytest


@pytest.fixture(scope='session')
def config(tmp_path_factory):
  collect = pytest.importorskip('data_pipelines.collect')
  return collect.CollectConfig(
    out=str(tmp_path_factory.mktemp('data') / 'tiny'),
    env='navix:Navix-DoorKey-Random-5x5-v0',
    episodes=24,
    test_episodes=5,
    noise=(0.0, 0.6, 1.0),
    max_steps=30,
    seed=3,
    parallel=16,
  )


@pytest.fixture(scope='session')
def report(config):
  from data_pipelines import collect

  return collect.collect(config, progress=False)


@pytest.fixture(scope='session')
def path(config, report):
  return config.out
