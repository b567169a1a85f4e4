"""Weights of rare frames, against counts by hand."""

import collections

import numpy as np
import pytest

from data_pipelines import writer
from dreamer4_jax.config import ActionComponent
from dreamer4_jax.data import (
  Description,
  Draws,
  EpisodeSource,
  make_loader,
  novelty,
)

SIDE, LENGTHS = 20, (5, 2, 9, 12)
DESCRIPTION = Description(
  actions=(ActionComponent(name='action', kind='categorical', size=2),),
  tasks=('reward',),
  frame_shape=(SIDE, SIDE, 3),
  chunk_length=4,
)


def image(marks=()):
  """Grey, with white squares; the last region of a row is 4 pixels wide."""
  frame = np.full((SIDE, SIDE, 3), 100, np.uint8)
  for row, column in marks:
    frame[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255
  return frame


def frames_of(episode, length):
  """Region (0, 1) is marked on frame 3 of each episode, (2, 2) once."""
  return [
    image(
      [(0, 1)] * (t == 3) + [(2, 2)] * (episode == 2 and t == 7),
    )
    for t in range(length)
  ]


def episodes(lengths):
  for n, length in enumerate(lengths):
    yield writer.Episode(
      steps={
        'observation': np.stack(frames_of(n, length)),
        'action': {'action': np.zeros(length, np.int32)},
        'action_known': np.arange(length) < length - 1,
        'reward': np.zeros(length, np.float32),
        'events': np.zeros((length, 1), np.uint8),
      },
      terminal=False,
    )


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  return writer.write_dataset(
    tmp_path_factory.mktemp('novel') / 'd',
    description=DESCRIPTION,
    splits={'train': episodes(LENGTHS), 'test': episodes((6,))},
  )


def loader(dataset, **kwargs):
  draws = Draws(batch_size=4, length=3, **kwargs)
  return make_loader(str(dataset), 'train', DESCRIPTION, draws)


def counts():
  """How many of the 28 frames show the rarest of what each shows."""
  for n, length in enumerate(LENGTHS):
    for t in range(length):
      # Three frames have frame 3's mark; a region is grey in 25 or 27.
      yield 1 if (n, t) == (2, 7) else 3 if t == 3 else 25


@pytest.mark.parametrize('keep', [0, novelty._KEEP])
def test_weights_are_by_the_rarest_region(dataset, monkeypatch, keep):
  monkeypatch.setattr(novelty, '_KEEP', keep)
  # Several blocks, of one episode each.
  monkeypatch.setattr(novelty, '_BLOCK', 1)
  weights = novelty.measure(EpisodeSource(dataset, 'train'))
  floor = 28 / 10_000
  expected = [1 / (count + floor) for count in counts()]
  assert weights.dtype == np.float32
  np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_a_look_is_of_its_place():
  one, other = image([(0, 0)]), image([(0, 1)])
  hashes = novelty.looks(np.stack([one, other, image()]))
  assert hashes.shape == (3, 9) and hashes.max() < novelty._BUCKETS
  assert hashes[0, 0] != hashes[1, 1]
  differ = hashes[0] != hashes[2]
  assert differ.tolist() == [True] + [False] * 8


def test_a_look_is_coarse():
  noise = np.random.default_rng(0).integers(-20, 20, (SIDE, SIDE, 3))
  noisy = (image() + noise).astype(np.uint8)
  hashes = novelty.looks(np.stack([image(), noisy]))
  assert (hashes[0] == hashes[1]).all()


def test_large_images_have_larger_regions():
  frames = np.zeros((1, 360, 640, 3), np.uint8)
  assert novelty.looks(frames).shape == (1, 18 * 32)


def test_clips_need_weights(dataset):
  with pytest.raises(FileNotFoundError, match='dreamer4 data novelty'):
    loader(dataset, novel_share=0.5)


def test_clips_show_rare_frames(dataset):
  weights = novelty.measure_dataset(dataset, 'train')
  np.testing.assert_array_equal(
    weights, novelty.load_weights(EpisodeSource(dataset, 'train'))
  )
  batches = loader(dataset, novel_share=0.5)
  rare = collections.Counter()
  for _ in range(100):
    frames = next(batches).frames
    shown = (frames[:, :, 16:, 16:] == 255).all(axis=(2, 3, 4)).any(axis=1)
    rare.update(np.flatnonzero(shown).tolist())
  novel, uniform = rare[1] + rare[3], rare[0] + rare[2]
  # The weights are 1, three times 1/3 and 24 times 1/25, so the rarest frame is
  # drawn for a third of the clips; some clips of other frames show it as well.
  assert 60 <= novel <= 110
  assert uniform <= 40
  novelty.weights_path(dataset, 'train').unlink()


def test_weights_of_other_episodes_are_refused(dataset):
  np.save(novelty.weights_path(dataset, 'train'), np.ones(7, np.float32))
  with pytest.raises(ValueError, match=r'found \(7,\) weights, expected \(28,'):
    loader(dataset, novel_share=1.0)
  novelty.weights_path(dataset, 'train').unlink()
