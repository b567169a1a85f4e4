"""From a recording of cart-pole and its state to an agent that is evaluated."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import collect, pretokenise
from dreamer4_jax.cli import checks, configs, quickstart
from dreamer4_jax.cli.loaders import training_loader
from dreamer4_jax.config import PHASES, VectorComponent
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.evals import dataset
from dreamer4_jax.training import phases
from tests.cli import small_run

pytest.importorskip('gymnasium')
pytest.importorskip('pygame')


def record(out, **kwargs):
  config = collect.CollectConfig(
    out=str(out),
    env=small_run.ENV.name,
    episodes=4,
    test_episodes=3,
    max_steps=10,
    image_size=(small_run.SIDE, small_run.SIDE),
    parallel=4,
    workers=1,
    **kwargs,
  )
  collect.collect(config, progress=False)
  return config.out


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  home = tmp_path_factory.mktemp('data')
  return record(home / 'd', policy='random')


@pytest.fixture(scope='module')
def config(data):
  config = small_run.make_config(data)
  short = {
    name: dataclasses.replace(
      getattr(config.phases, name), steps=2, batch_size=8
    )
    for name in PHASES
  }
  return dataclasses.replace(
    config,
    vectors=EpisodeSource(data, 'train').description.vectors,
    phases=dataclasses.replace(config.phases, **short),
  )


def test_what_is_recorded_can_be_put_into_a_config(data, config):
  text = dataset.to_text(dataset.summary(data))
  line = next(x for x in text.splitlines() if x.startswith('  vectors: '))
  given = line.removeprefix('  vectors: ')
  plain = dataclasses.replace(config, vectors=())
  assert configs.override(plain, [f'vectors={given}']) == config
  assert [(v.name, v.size) for v in config.vectors] == [('state', 4)]


def test_all_the_way_from_a_recording_to_an_agent(data, config, tmp_path):
  checks.check_training(config, tmp_path / 'run')
  train = lambda config, *names: phases.train(
    config, tmp_path / 'run', names, loaders=training_loader, progress=False
  )
  train(config, 'tokenizer')
  latents = tmp_path / 'latents'
  pretokenise.pretokenise(
    pretokenise.PretokeniseConfig(
      run=str(tmp_path / 'run'), dataset=data, out=str(latents), streams=4
    ),
    progress=False,
  )
  on_latents = dataclasses.replace(
    config, data=dataclasses.replace(config.data, latents=str(latents))
  )
  checks.check_training(on_latents, tmp_path / 'run', ['dynamics'])
  train(on_latents, 'dynamics')
  train(config, 'finetune', 'imagination')
  configs.save(config, tmp_path / 'run')
  results = quickstart.evaluate_run(tmp_path / 'run', episodes=2)
  assert np.isfinite(results['tokenizer']['vectors']['state'])
  assert results['agents']['rl']['mean_return'] >= 1
  assert 'Vector state: off by' in (tmp_path / 'run/report.md').read_text()
  played = record(
    tmp_path / 'played', policy='checkpoint', run=str(tmp_path / 'run')
  )
  state = EpisodeSource(played, 'train')[0]['vector']['state']
  # By the rule of the game, at 50 frames a second.
  moved = state[:-1, 0] + 0.02 * state[:-1, 1]
  np.testing.assert_allclose(state[1:, 0], moved, rtol=1e-4, atol=1e-6)
  # With other units it is another model.
  other = dataclasses.replace(config.vectors[0], std=(2.0,))
  changed = dataclasses.replace(config, vectors=(other,))
  with pytest.raises(ValueError, match=r'^vectors\.0\.std.*was made with'):
    train(changed, 'tokenizer')


@pytest.mark.parametrize(
  ('name', 'size', 'message'),
  [
    ('state', 3, r"vectors = {'state': 3}: env.name = .* shows {'state': 4}"),
    ('arm', 4, r"vectors = {'arm': 4}: env.name = .* shows {'state': 4}"),
  ],
)
def test_an_environment_that_shows_other_vectors_is_refused(
  config, name, size, message
):
  wanted = (VectorComponent(name=name, size=size),)
  config = dataclasses.replace(config, vectors=wanted)
  with pytest.raises(ValueError, match=message):
    checks.check_environment(config)


def test_a_dataset_without_the_vector_is_refused_before_training(
  config, tmp_path
):
  noise = small_run.write_dataset(tmp_path / 'noise')
  config = dataclasses.replace(
    config, data=dataclasses.replace(config.data, path=noise)
  )
  message = "noise: vectors: found none, expected 'state' of 4 values"
  with pytest.raises(ValueError, match=message):
    checks.check_training(config, tmp_path / 'run')
