"""A recording of cart-pole and its state, and configs that do or do not fit."""

import numpy as np
import pytest

from dreamer4_jax.checkpoint import compatibility
from dreamer4_jax.cli import configs
from dreamer4_jax.config import VectorComponent
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.evals import dataset
from dreamer4_jax.models import World
from dreamer4_jax.training import checks
from tests.cli import small_run

pytest.importorskip('gymnasium')
pytest.importorskip('pygame')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return small_run.record(
    tmp_path_factory.mktemp('data') / 'd',
    policy='random',
    episodes=4,
    test_episodes=3,
    parallel=4,
  )


@pytest.fixture(scope='module')
def config(data):
  vectors = EpisodeSource(data, 'train').description.vectors
  return small_run.make_config(data, vectors=vectors)


def test_what_is_recorded_can_be_put_into_a_config(data, config):
  text = dataset.to_text(dataset.summary(data))
  line = next(x for x in text.splitlines() if x.startswith('  vectors: '))
  given = line.removeprefix('  vectors: ')
  plain = config.edit({'vectors': ()})
  assert configs.override(plain, [f'vectors={given}']) == config
  assert [(v.name, v.size) for v in config.vectors] == [('state', 4)]


def test_a_tokenizer_with_other_units_is_another_model(config):
  world = World.from_config(config)
  params = {'tokenizer': {'x': np.zeros(3)}}
  changed = config.edit({'vectors.0.std': (2.0,)})
  assert World.from_config(changed).fingerprint(params) != world.fingerprint(
    params
  )
  with pytest.raises(ValueError, match=r'vectors\.0\.std.* made with'):
    fields = compatibility.model_fields('tokenizer')
    compatibility.check_config(config, changed, 'here', fields)


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
  config = config.edit({'vectors': wanted})
  with pytest.raises(ValueError, match=message):
    checks.check_environment(config)


def test_a_dataset_without_the_vector_is_refused_before_training(
  config, tmp_path
):
  noise = small_run.write_dataset(tmp_path / 'noise')
  config = config.edit({'data.sources.0.path': noise})
  message = "noise: vectors: found none, expected 'state' of 4 values"
  with pytest.raises(ValueError, match=message):
    checks.check_training(config, tmp_path / 'run')
