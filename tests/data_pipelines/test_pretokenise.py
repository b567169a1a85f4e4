"""Latents on disk equal those of the tokenizer, and belong to it alone."""

import dataclasses

from flax.core.meta import unbox
import jax
import numpy as np
import pytest

from data_pipelines import pretokenise as lib
from data_pipelines import writer
from dreamer4_jax.config import (
  ActionComponent,
  Config,
  VectorComponent,
  presets,
)
from dreamer4_jax.data import Description, EpisodeSource, novelty
from dreamer4_jax.models import World
from dreamer4_jax.training.clips import training_loader

SIDE, LENGTHS = 16, (9, 1, 30, 4, 17, 5, 12)


def episodes(lengths):
  for n, length in enumerate(lengths):
    rng = np.random.default_rng(n)
    last = np.arange(length) == length - 1
    yield writer.Episode(
      steps={
        'observation': rng.integers(0, 256, (length, SIDE, SIDE, 3), np.uint8),
        'action': {'action': rng.integers(0, 2, length, np.int32)},
        'action_known': ~last,
        'reward': np.where(last, 0, n).astype(np.float32),
        'events': np.zeros((length, 1), np.uint8),
      },
      terminal=n % 2 == 0,
      attributes={'number': n},
    )


@pytest.fixture(scope='module')
def world():
  config = Config(
    actions=(ActionComponent(name='action', kind='categorical', size=2),)
  )
  return World.from_config(
    presets.apply(config, 'tiny').edit(
      {
        'tokenizer.frame_shape': (SIDE, SIDE, 3),
        'tokenizer.context_length': 4,
      }
    )
  )


def init(world):
  made = jax.jit(lambda key: world.init(key, ('tokenizer',)))(jax.random.key(0))
  return jax.tree.map(np.asarray, unbox(made))


@pytest.fixture(scope='module')
def weights(world):
  return init(world)


@pytest.fixture(scope='module')
def frames(tmp_path_factory):
  return writer.write_dataset(
    tmp_path_factory.mktemp('frames') / 'd',
    description=Description(
      actions=(ActionComponent(name='action', kind='categorical', size=2),),
      tasks=('reward',),
      frame_shape=(SIDE, SIDE, 3),
      chunk_length=4,
    ),
    splits={'train': episodes(LENGTHS), 'test': episodes((6, 3))},
  )


@pytest.fixture(autouse=True)
def trained(monkeypatch, world, weights):
  """Stands for a run whose tokenizer is trained."""
  load = lambda run, phase: (weights, world.config)
  monkeypatch.setattr(lib, 'load_params', load)


def settings(frames, out, **kwargs):
  return lib.PretokeniseConfig(
    run='run', dataset=str(frames), out=str(out), **kwargs
  )


def on_latents(config, frames, latents):
  """Returns the config of a run on a dataset whose latents are stored."""
  own = {'path': str(frames), 'latents': str(latents)}
  return config.edit({f'data.sources.0.{k}': v for k, v in own.items()})


@pytest.mark.parametrize(('streams', 'block'), [(3, 4), (1, 64), (16, 1)])
def test_latents_equal_the_tokenizers(
  frames, world, weights, tmp_path, streams, block
):
  out = tmp_path / 'z'
  config = settings(frames, out, streams=streams, block=block)
  assert lib.pretokenise(config, progress=False) == {'train': 78, 'test': 9}
  encode = jax.jit(lambda x: world.latents(weights, x)[0])
  for split, count in (('train', 7), ('test', 2)):
    old, new = EpisodeSource(frames, split), EpisodeSource(out, split)
    assert len(new) == count
    assert new.index.attributes == old.index.attributes
    for i in range(count):
      a, b = old[i], new[i]
      expected = np.asarray(encode(a.pop('observation')[None])[0])
      found = b.pop('observation')
      assert found.dtype == np.float16
      # Rounding to float16 below 1 is 2^-12; the rest is float32 arithmetic.
      np.testing.assert_allclose(found, expected, atol=2.6e-4)
      assert a['action'].keys() == b['action'].keys()
      np.testing.assert_equal(a, b)
  assert [p.name for p in tmp_path.iterdir()] == ['z']


def test_weights_of_novelty_come_along(frames, tmp_path):
  weights = novelty.measure_dataset(frames, 'train')
  lib.pretokenise(settings(frames, tmp_path / 'z'), progress=False)
  latents = EpisodeSource(tmp_path / 'z', 'train')
  np.testing.assert_array_equal(novelty.load_weights(latents), weights)
  assert not novelty.weights_path(tmp_path / 'z', 'test').exists()
  novelty.weights_path(frames, 'train').unlink()
  with pytest.raises(ValueError, match='holds latents'):
    novelty.measure(latents)


def test_vectors_are_in_the_latents(frames, tmp_path, monkeypatch, world):
  del frames
  part = VectorComponent(name='arm', size=2, mean=(0.5,), std=(2.0,))
  config = dataclasses.replace(world.config, vectors=(part,))
  seeing = World.from_config(config)
  weights = init(seeing)
  monkeypatch.setattr(lib, 'load_params', lambda run, phase: (weights, config))
  rng = np.random.default_rng(0)

  def with_arm(lengths):
    for episode in episodes(lengths):
      count = len(episode.steps['reward'])
      vector = {'arm': rng.normal(size=(count, 2)).astype(np.float32)}
      steps = {**episode.steps, 'vector': vector}
      yield dataclasses.replace(episode, steps=steps)

  def write(path, vectors):
    return writer.write_dataset(
      path,
      description=Description(
        actions=config.actions,
        tasks=('reward',),
        frame_shape=(SIDE, SIDE, 3),
        vectors=vectors,
      ),
      splits={
        s: with_arm(n) if vectors else episodes(n)
        for s, n in {'train': (7, 12, 3), 'test': (5,)}.items()
      },
    )

  path, out = write(tmp_path / 'd', (part,)), tmp_path / 'z'
  lib.pretokenise(settings(path, out, streams=2, block=4), progress=False)
  encode = jax.jit(lambda x, v: seeing.latents(weights, x, vectors=v)[0])
  old, new = EpisodeSource(path, 'train'), EpisodeSource(out, 'train')
  for i in range(3):
    a, b = old[i], new[i]
    vectors = {k: v[None] for k, v in a['vector'].items()}
    expected = encode(a['observation'][None], vectors)[0]
    np.testing.assert_allclose(b['observation'], expected, atol=2.6e-4)
    blind = encode(a['observation'][None], jax.tree.map(np.zeros_like, vectors))
    assert np.abs(blind[0] - expected).max() > 1e-3
    assert 'vector' not in b
  # Training on them needs no vector beside them.
  run = on_latents(config, path, out)
  fingerprint = seeing.fingerprint(weights)
  assert next(training_loader(run, 'dynamics', 3, fingerprint)).vectors == {}
  batch = next(training_loader(run, 'tokenizer', 3))
  assert batch.vectors['arm'].shape == (*batch.frames.shape[:2], 2)
  bare = write(tmp_path / 'bare', ())
  with pytest.raises(ValueError, match="found none, expected 'arm' of 2"):
    lib.pretokenise(settings(bare, tmp_path / 'y'), progress=False)


def test_the_fingerprint_names_the_tokenizer(frames, world, weights, tmp_path):
  lib.pretokenise(settings(frames, tmp_path / 'z'), progress=False)
  found = EpisodeSource(tmp_path / 'z', 'train').description.tokenizer
  assert found == world.fingerprint(weights)
  other = jax.tree.map(np.copy, weights)
  jax.tree.leaves(other)[0].flat[0] += 1e-6
  assert world.fingerprint(other) != found
  same = world.config.edit({'compute.dtype': 'bfloat16'})
  assert World.from_config(same).fingerprint(weights) == found
  changed = world.config.edit({'tokenizer.bottleneck_gain': 0.06})
  assert World.from_config(changed).fingerprint(weights) != found


def test_training_reads_latents_of_its_own_tokenizer_only(
  frames, world, weights, tmp_path
):
  out = tmp_path / 'z'
  lib.pretokenise(settings(frames, out), progress=False)
  config = on_latents(world.config, frames, out)
  batch = next(
    training_loader(config, 'dynamics', 6, world.fingerprint(weights))
  )
  assert batch.frames.shape[2:] == config.tokenizer.latent_shape
  batch = next(training_loader(config, 'tokenizer', 6))
  assert batch.frames.shape[2:] == (SIDE, SIDE, 3)
  with pytest.raises(ValueError, match=r'the latents were made by .*has abc'):
    training_loader(config, 'dynamics', 6, 'abc')
  latents_only = on_latents(config, out, '')
  with pytest.raises(ValueError, match='this needs frames'):
    training_loader(latents_only, 'tokenizer', 6)


def test_an_experiment_names_a_run_and_two_datasets(frames, tmp_path):
  found = lib.pretokenise_run('run', str(frames), str(tmp_path / 'z'))
  assert found == {'train': 78, 'test': 9}
  lib.pretokenise(settings(frames, tmp_path / 'again'), progress=False)
  a, b = (EpisodeSource(tmp_path / n, 'test') for n in ('z', 'again'))
  for i in range(2):
    np.testing.assert_equal(a[i], b[i])


def test_latents_are_not_tokenised_again(frames, tmp_path):
  lib.pretokenise(settings(frames, tmp_path / 'z'), progress=False)
  with pytest.raises(ValueError, match='found latents of tokenizer'):
    lib.pretokenise(settings(tmp_path / 'z', tmp_path / 'y'), progress=False)


def test_finished_parts_are_kept(frames, tmp_path, monkeypatch):
  # Latents of 20 frames a part.
  t = lib.load_params('run', 'tokenizer')[1].tokenizer
  monkeypatch.setattr(
    lib, 'PART_BYTES', 20 * 2 * t.num_latents * t.bottleneck_dim
  )
  encode_part, done = lib._encode_part, []

  def stops_at_the_third(config, encode, params, cache, source, part):
    if len(done) == 2:
      raise KeyboardInterrupt
    done.append(part)
    return encode_part(config, encode, params, cache, source, part)

  monkeypatch.setattr(lib, '_encode_part', stops_at_the_third)
  with pytest.raises(KeyboardInterrupt):
    lib.pretokenise(settings(frames, tmp_path / 'z'), progress=False)
  assert not (tmp_path / 'z').exists()
  again = []

  def goes_on(config, encode, params, cache, source, part):
    again.append(part)
    return encode_part(config, encode, params, cache, source, part)

  monkeypatch.setattr(lib, '_encode_part', goes_on)
  lib.pretokenise(settings(frames, tmp_path / 'z'), progress=False)
  assert len(done) == 2 and not set(done) & set(again)
  whole = settings(frames, tmp_path / 'whole')
  lib.pretokenise(whole, progress=False)
  a, b = (EpisodeSource(tmp_path / n, 'test') for n in ('z', 'whole'))
  for i in range(2):
    np.testing.assert_equal(a[i], b[i])


def test_latents_of_a_dataset_that_has_grown_are_made_again(
  world, weights, tmp_path, monkeypatch, caplog
):
  """Parts of the smaller dataset would have stood for other episodes."""
  monkeypatch.setattr(
    lib, 'load_params', lambda run, phase: (weights, world.config)
  )

  def write(lengths):
    return writer.write_dataset(
      tmp_path / 'd',
      description=Description(
        actions=world.config.actions,
        tasks=('reward',),
        frame_shape=(SIDE, SIDE, 3),
      ),
      splits={'train': episodes(lengths)},
      overwrite=True,
    )

  t = world.config.tokenizer
  monkeypatch.setattr(
    lib, 'PART_BYTES', 20 * 2 * t.num_latents * t.bottleneck_dim
  )
  encode_part, done = lib._encode_part, []

  def stops(*args):
    if done:
      raise KeyboardInterrupt
    done.append(args)
    return encode_part(*args)

  monkeypatch.setattr(lib, '_encode_part', stops)
  with pytest.raises(KeyboardInterrupt):
    lib.pretokenise(settings(write((21, 22)), tmp_path / 'z'), progress=False)
  monkeypatch.setattr(lib, '_encode_part', encode_part)
  lib.pretokenise(settings(write((9, 8, 7)), tmp_path / 'z'), progress=False)
  found = EpisodeSource(tmp_path / 'z', 'train').index.lengths
  assert found.tolist() == [9, 8, 7]
  assert 'have changed since this was begun' in caplog.text
