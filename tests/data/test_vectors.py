"""Vectors from the writer to batches, and errors where there are none."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines import writer
from dreamer4_jax.config import SourceConfig, VectorComponent
from dreamer4_jax.data import Description, Draws, EpisodeSource, make_loader
from dreamer4_jax.data import format as fmt
from tests.data.test_transforms import ACTIONS, TASKS, make_episode

ARM = VectorComponent(name='arm', size=3)
GRIP = VectorComponent(name='grip', size=1)
LENGTHS = (6, 5, 9)


def arm(base, length):
  """Of the frame that shows `base + t`: that, ten of it, and what stays."""
  t = base + np.arange(length)
  return np.stack([t, 10 * t, np.full(length, 7)], axis=-1).astype(np.float32)


def episodes(change=lambda vectors: vectors):
  for i, length in enumerate(LENGTHS):
    base = 50 * i
    plain = make_episode(length, terminal=False, base=base)
    shown = arm(base, length)
    vectors = {'arm': shown, 'grip': shown[:, :1] / 4}
    steps = {**plain.steps, 'vector': change(vectors)}
    yield dataclasses.replace(plain, steps=steps)


def describe(vectors):
  return Description(
    actions=ACTIONS,
    tasks=TASKS,
    frame_shape=(2, 2, 3),
    chunk_length=4,
    vectors=vectors,
  )


def write(path, vectors=(ARM, GRIP), change=lambda vectors: vectors):
  return writer.write_dataset(
    path,
    description=describe(vectors),
    splits={'train': episodes(change)},
  )


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return write(tmp_path_factory.mktemp('data') / 'd')


def loader(path, vectors):
  datasets = path if isinstance(path, list) else str(path)
  draws = Draws(batch_size=4, length=5)
  return make_loader(datasets, 'train', describe(vectors), draws)


def test_episodes_come_back(path):
  source = EpisodeSource(path, 'train', vectors=(GRIP,))
  for i, length in enumerate(LENGTHS):
    found = source[i]['vector']
    assert set(found) == {'arm', 'grip'}
    np.testing.assert_array_equal(found['arm'], arm(50 * i, length))
    assert found['grip'].shape == (length, 1)
    assert found['grip'].dtype == np.float32


def test_the_dataset_knows_mean_and_spread(path):
  every = np.concatenate([arm(50 * i, n) for i, n in enumerate(LENGTHS)])
  found, grip = EpisodeSource(path, 'train').description.vectors
  np.testing.assert_allclose(found.mean, every.mean(0), rtol=1e-5)
  # What never changes is only shifted.
  expected = [every[:, 0].std(), every[:, 1].std(), 1.0]
  np.testing.assert_allclose(found.std, expected, rtol=1e-5)
  np.testing.assert_allclose(grip.std, every[:, 0].std() / 4, rtol=1e-5)


def test_means_far_from_zero_do_not_hide_the_spread(tmp_path):
  far = lambda vectors: {
    'arm': vectors['arm'] / 8 + np.float32([1e5, 2**17 + 1.25, 0]),
    'grip': np.full_like(vectors['grip'], 123456.789),
  }
  path = write(tmp_path / 'd', change=far)
  arm_, grip_ = EpisodeSource(path, 'train').description.vectors
  source = EpisodeSource(path, 'train')
  every = np.concatenate([source[i]['vector']['arm'] for i in range(3)])
  every = every.astype(np.float64)
  offset = np.subtract(arm_.mean, every.mean(0)) / every.std(0).clip(1e-3)
  np.testing.assert_allclose(offset, 0, atol=1e-4)
  np.testing.assert_allclose(arm_.std[:2], every.std(0)[:2], rtol=1e-4)
  assert grip_.std == (1.0,)
  np.testing.assert_allclose(grip_.mean, np.float32(123456.789), rtol=1e-9)


def test_whole_numbers_that_lose_digits_are_refused(tmp_path):
  count = lambda value: (
    lambda vectors: {
      **vectors,
      'grip': np.full(vectors['grip'].shape, value, np.int64),
    }
  )
  write(tmp_path / 'd', change=count(2**24))
  message = 'vector/grip: found 16777217, too much for float32'
  with pytest.raises(writer.EpisodeError, match=message):
    write(tmp_path / 'e', change=count(2**24 + 1))


def test_vectors_have_distinct_names(tmp_path):
  with pytest.raises(
    ValueError, match=r"vectors = \['arm', 'arm'\]: must have"
  ):
    write(tmp_path / 'd', (ARM, dataclasses.replace(ARM, size=1)))


def test_a_dataset_is_kept_in_memory_by_all_its_bytes(path):
  steps = fmt.flatten(EpisodeSource(path, 'train', cache_bytes=0)[0])
  count = sum(x[:1].nbytes for x in steps.values()) * sum(LENGTHS)
  small = EpisodeSource(path, 'train', cache_bytes=count)
  large = EpisodeSource(path, 'train', cache_bytes=count + 1)
  assert small._kept is None and large._kept == {}


def test_vectors_stand_on_the_frames_they_were_seen_with(path):
  drawn = loader(path, (ARM,))
  seen = set()
  for _ in range(20):
    batch = next(drawn)
    assert set(batch.vectors) == {'arm'}
    value = batch.vectors['arm']
    assert value.shape == (4, 5, 3) and value.dtype == np.float32
    shown = batch.frames[:, :, 0, 0, 0].astype(np.float32)
    np.testing.assert_array_equal(value[..., 0], shown)
    np.testing.assert_array_equal(value[..., 1], 10 * shown)
    seen |= set(shown.ravel().tolist())
  assert len(seen) == sum(LENGTHS)


def test_who_asks_for_none_gets_none(path):
  assert next(loader(path, ())).vectors == {}


def test_a_missing_vector_is_named_with_what_there_is(path, tmp_path):
  hand = VectorComponent(name='hand', size=2)
  message = r"d: vectors: found {'arm': 3, 'grip': 1}, expected 'hand' of 2"
  with pytest.raises(ValueError, match=message):
    loader(path, (ARM, hand))
  wide = dataclasses.replace(ARM, size=4)
  with pytest.raises(ValueError, match=r"'arm': 3.*expected 'arm' of 4 values"):
    loader(path, (wide,))
  # Even where only one of several datasets lacks it.
  bare = write(tmp_path / 'bare', (), lambda vectors: {})
  both = [SourceConfig(path=str(p)) for p in (path, bare)]
  assert next(loader(both, ())).vectors == {}
  with pytest.raises(ValueError, match=r'bare: vectors: found none, expected'):
    loader(both, (ARM,))


def test_a_dataset_from_before_there_were_vectors_is_read(tmp_path):
  path = write(tmp_path / 'old', (), lambda vectors: {})
  file = path / 'metadata.json'
  metadata = json.loads(file.read_text())
  assert metadata.pop('vectors') == []
  file.write_text(json.dumps(metadata))
  source = EpisodeSource(path, 'train')
  assert source.description.vectors == ()
  assert 'vector' not in source[0]
  assert next(loader(path, ())).frames.shape == (4, 5, 2, 2, 3)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda v: {}, 'vector/arm: missing'),
    (lambda v: {**v, 'leg': v['arm']}, 'vector/leg: no such field'),
    (
      lambda v: {**v, 'arm': v['arm'][:, :2]},
      r"vector/arm: found shape \(6, 2\), expected \('steps', 3\)",
    ),
    (lambda v: {**v, 'arm': v['arm'] + np.inf}, 'vector/arm: found .*finite'),
    (lambda v: {**v, 'grip': v['grip'][1:]}, 'different numbers of steps'),
  ],
)
def test_the_writer_names_what_is_wrong(tmp_path, change, message):
  with pytest.raises(writer.EpisodeError, match=message):
    write(tmp_path / 'd', change=change)


def test_spread_leaves_forgotten_and_abandoned_episodes_out(tmp_path):
  description = Description(
    actions=ACTIONS, tasks=TASKS, frame_shape=(2, 2, 3), vectors=(ARM, GRIP)
  )
  with writer.Shard(tmp_path / 'shard', description) as shard:
    first, second, third = episodes()
    shard.append(third.steps)
    shard.abandon()
    shard.add(first)
    shard.add(second)
    shard.forget(1)
  (moments,) = writer.read_index(tmp_path / 'shard').moments
  shown = arm(0, LENGTHS[0])
  np.testing.assert_allclose(moments['arm'], [shown.sum(0), (shown**2).sum(0)])


def test_a_description_survives_json():
  description = Description(
    actions=ACTIONS,
    tasks=TASKS,
    frame_shape=(2, 2, 3),
    vectors=(dataclasses.replace(ARM, mean=(0.1, 2.0, 3.0), std=(0.3,)), GRIP),
  )
  plain = json.loads(json.dumps(description.to_metadata()))
  assert fmt.Description.from_metadata(plain) == description
  del plain['vectors'][0]['std']
  with pytest.raises(ValueError, match=r"damaged \(KeyError\('std'\)\)"):
    fmt.Description.from_metadata(plain)
