"""Video files to datasets: exact, resized, resampled, and damaged."""

import fractions
import functools
import json
import os
import pathlib

import numpy as np
import pytest

pytest.importorskip('av')

import av

from data_pipelines import command, convert
from data_pipelines import video as lib
from dreamer4_jax.data import Description, EpisodeSource


def frames(count, height=24, width=32, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, height, width, 3), np.uint8)


def write(path, images, codec='ffv1', pix_fmt='bgr0', rate=10):
  """Writes a video; lossless RGB by default."""
  with av.open(str(path), 'w') as file:
    stream = file.add_stream(codec, rate=fractions.Fraction(rate))
    stream.height, stream.width = images.shape[1:3]
    stream.pix_fmt = pix_fmt
    for image in images:
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      for packet in stream.encode(frame):
        file.mux(packet)
    for packet in stream.encode():
      file.mux(packet)


def settings(inputs, out, **kwargs):
  return lib.VideoConfig(
    **{
      'inputs': (str(inputs),),
      'out': str(out),
      'workers': 1,
      'eval_share': 0.0,
      **kwargs,
    }
  )


def run(inputs, out, **kwargs):
  return lib.convert_videos(settings(inputs, out, **kwargs), progress=False)


@pytest.fixture
def folder(tmp_path):
  directory = tmp_path / 'in'
  (directory / 'deep').mkdir(parents=True)
  write(directory / 'a.mkv', frames(70, seed=1))
  write(directory / 'deep/b.avi', frames(9, seed=2), pix_fmt='bgr0')
  return directory


def test_lossless_files_come_back_exactly(folder, tmp_path):
  report = run(folder, tmp_path / 'd')
  assert report['splits']['train'] == {
    'inputs': 2,
    'episodes': 2,
    'frames': 79,
  }
  source = EpisodeSource(tmp_path / 'd', 'train')
  assert source.description.frame_rate == 10
  for i, (count, seed) in enumerate([(70, 1), (9, 2)]):
    steps = source[i]
    np.testing.assert_array_equal(
      steps['observation'], frames(count, seed=seed)
    )
    assert not steps['action_known'].any() and steps['action'] == {}
    assert not steps['is_terminal'].any()
  files = [a['file'] for a in source.index.attributes]
  assert files == ['a.mkv', 'deep/b.avi']


def test_several_processes_make_the_same_dataset(folder, tmp_path):
  run(folder, tmp_path / 'one')
  report = run(folder, tmp_path / 'two', workers=2)
  assert report == json.loads((tmp_path / 'two' / convert.REPORT).read_text())
  one, two = (EpisodeSource(tmp_path / n, 'train') for n in ('one', 'two'))
  for i in range(2):
    np.testing.assert_equal(one[i], two[i])


@pytest.mark.parametrize(
  ('rate', 'picked'),
  [
    (5.0, [0, 2, 4, 6, 8]),
    (20.0, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]),
    (10.0, list(range(10))),
  ],
)
def test_the_frame_rate_is_changed_by_dropping_or_repeating(
  tmp_path, rate, picked
):
  images = frames(10)
  write(tmp_path / 'x.mkv', images)
  run(tmp_path / 'x.mkv', tmp_path / 'd', frame_rate=rate)
  source = EpisodeSource(tmp_path / 'd', 'train')
  assert source.description.frame_rate == rate
  found = source[0]['observation']
  assert len(found) == len(picked)
  np.testing.assert_array_equal(found, images[picked])


@pytest.fixture
def flag(tmp_path):
  """A wide frame: black, with a white square in the middle, grey sides."""
  image = np.zeros((20, 40, 3), np.uint8)
  image[:, :10] = image[:, 30:] = 128
  image[5:15, 15:25] = 255
  write(tmp_path / 'flag.mkv', np.stack([image] * 3))
  return tmp_path / 'flag.mkv'


def shown(flag, tmp_path, fit):
  run(flag, tmp_path / fit, size=(10, 10), fit=fit)
  return EpisodeSource(tmp_path / fit, 'train')[0]['observation'][0, ..., 0]


def test_crop_keeps_the_middle(flag, tmp_path):
  image = shown(flag, tmp_path, 'crop')
  # Half the size, and ten of twenty columns.
  assert image[0].tolist() == [0] * 10
  assert image[5, 3:7].tolist() == [255] * 4 and image[5, 0] == 0


def test_pad_keeps_everything_between_black_bars(flag, tmp_path):
  image = shown(flag, tmp_path, 'pad')
  assert not image[:2].any() and not image[8:].any()
  assert image[4, 0] == 128 and image[4, 9] == 128 and image[4, 5] == 255


def test_stretch_keeps_everything(flag, tmp_path):
  image = shown(flag, tmp_path, 'stretch')
  assert image[0].tolist()[:2] == [128, 128] and image[0, 4] == 0
  assert image[5, 4:6].tolist() == [255, 255]


def test_bad_files_are_skipped_and_named(folder, tmp_path):
  whole = (folder / 'a.mkv').read_bytes()
  (folder / 'cut.mkv').write_bytes(whole[: len(whole) // 2])
  (folder / 'empty.mp4').write_bytes(b'')
  (folder / 'text.mp4').write_text('this is no video')
  write(folder / 'other.mkv', frames(5, height=16))
  write(folder / 'short.mkv', frames(1))
  odd = os.fsdecode(b'name-\xff.mkv')
  (folder / odd).write_bytes(whole)
  report = run(folder, tmp_path / 'd')
  skipped = report['skipped']
  assert set(skipped) >= {'empty.mp4', 'text.mp4', 'other.mkv', 'short.mkv'}
  assert 'damaged or no video' in skipped['empty.mp4']
  assert 'damaged or no video' in skipped['text.mp4']
  assert skipped['short.mkv'] == 'fewer than 2 frames'
  assert 'found shape (5, 16, 32, 3)' in skipped['other.mkv']
  source = EpisodeSource(tmp_path / 'd', 'train')
  lengths = {
    a['file']: int(n)
    for a, n in zip(source.index.attributes, source.index.lengths, strict=True)
  }
  assert lengths['a.mkv'] == 70 and lengths['name-\\xff.mkv'] == 70
  # A truncated file yields whole frames, or is skipped.
  if 'cut.mkv' in lengths:
    number = list(lengths).index('cut.mkv')
    found = source[number]['observation']
    np.testing.assert_array_equal(found, frames(70, seed=1)[: len(found)])
  else:
    assert 'cut.mkv' in skipped


def test_nothing_readable_is_an_error(tmp_path):
  (tmp_path / 'in').mkdir()
  with pytest.raises(FileNotFoundError, match='no file with an ending'):
    run(tmp_path / 'in', tmp_path / 'd')
  with pytest.raises(FileNotFoundError, match='no such file or directory'):
    run(tmp_path / 'nowhere', tmp_path / 'd')
  (tmp_path / 'in/x.mp4').write_bytes(b'nothing')
  with pytest.raises(ValueError, match='none of 1'):
    run(tmp_path / 'in', tmp_path / 'd')
  with pytest.raises(ValueError, match=r'x\.mp4: damaged or no video'):
    run(tmp_path / 'in', tmp_path / 'd', size=(8, 8), frame_rate=10.0)
  assert not (tmp_path / 'd').exists()


def test_splits_keep_files_together_and_near_their_share(tmp_path):
  splits = [convert.split_of(f'session {i}', 0.1) for i in range(5000)]
  # 500 expected; five standard deviations are 106.
  assert abs(splits.count('test') - 500) < 106
  assert splits == [convert.split_of(f'session {i}', 0.1) for i in range(5000)]


def test_an_interrupted_conversion_goes_on(folder, tmp_path, monkeypatch):
  write(folder / 'c.mkv', frames(5, seed=3))
  done = []
  original = lib.convert_file

  def stops(item, shard, **kwargs):
    if item.name == 'c.mkv' and len(done) < 10:
      raise KeyboardInterrupt
    done.append(item.name)
    return original(item, shard, **kwargs)

  monkeypatch.setattr(lib, 'convert_file', stops)
  with pytest.raises(KeyboardInterrupt):
    run(folder, tmp_path / 'd')
  assert done == ['a.mkv'] and not (tmp_path / 'd').exists()
  done.extend(['later'] * 10)
  run(folder, tmp_path / 'd')
  assert done[11:] == ['c.mkv', 'deep/b.avi']
  assert len(EpisodeSource(tmp_path / 'd', 'train')) == 3
  assert not pathlib.Path(tmp_path / '.d.incomplete').exists()
  with pytest.raises(FileExistsError, match='finished dataset'):
    run(folder, tmp_path / 'd')


def convert_files(folder, out, function, **kwargs):
  """Converts a folder with a function that a new process can import."""
  files = lib.find_files((str(folder),), ('mkv', 'avi'))
  return convert.run(
    convert.Output(out=str(out), **kwargs),
    Description(actions=(), tasks=(), frame_shape=(24, 32, 3)),
    [convert.Input(name=n, split='train', what=str(p)) for n, p in files],
    functools.partial(function, how=lib.Frames(), min_frames=1),
    progress=False,
  )


def dies(item, shard, **kwargs):
  if item.name == 'deep/b.avi':
    os._exit(11)
  return lib.convert_file(item, shard, **kwargs)


def test_a_process_that_dies_costs_one_file(folder, tmp_path):
  report = convert_files(folder, tmp_path / 'd', dies, workers=2)
  assert report['skipped'] == {'deep/b.avi': 'the process that read it died'}
  assert report['splits']['train']['episodes'] == 1


CHANGED = []
"""What stands for the allocator: each process has its own."""


def change():
  CHANGED.append(True)


def counts_changes(item, shard, **kwargs):
  lib.convert_file(item, shard, **kwargs)
  return {'changed': len(CHANGED)}


def test_the_allocator_is_changed_in_commands_and_new_processes_only(
  folder, tmp_path, monkeypatch
):
  (folder / 'a.mkv').unlink()
  for module in (convert, command):
    monkeypatch.setattr(module, 'keep_freed_memory', change)
  monkeypatch.setattr(f'{__name__}.CHANGED', [])
  for workers, expected in ((1, 0), (2, 1)):
    out = tmp_path / str(workers)
    report = convert_files(folder, out, counts_changes, workers=workers)
    assert report['notes'] == {'changed': expected} and not CHANGED
  argv = ['--inputs', str(folder), '--out', str(tmp_path / 'd'), '--workers=1']
  monkeypatch.setattr('sys.argv', ['video', *argv])
  convert.main_of(lib.VideoConfig, lib.convert_videos)
  assert CHANGED == [True]
