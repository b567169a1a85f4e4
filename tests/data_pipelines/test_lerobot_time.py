"""Rows of LeRobot datasets meet the frames of their time, or none."""

import json

import numpy as np
import pytest

pytest.importorskip('av')
pytest.importorskip('pyarrow')

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines import lerobot as lib
from data_pipelines import lerobot_files, lerobot_frames
from dreamer4_jax.data import EpisodeSource
from tests.data_pipelines import test_lerobot
from tests.data_pipelines.test_lerobot import (
  CAMERA,
  LENGTHS,
  actions,
  put,
  rows,
  run,
  table,
)
from tests.data_pipelines.test_video import frames
from tests.data_pipelines.test_video_shown import H264, film

v2 = test_lerobot.v2
v3 = test_lerobot.v3
TIMES = [i / 10 for i in range(max(LENGTHS))]


def clip(root, number):
  return root / f'videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4'


def at_rate(path, images, rate):
  """Writes a video that says how many frames it has."""
  path.unlink(missing_ok=True)
  film(path, images, **H264, rate=rate)


def about(root, **changed):
  file = root / 'meta/info.json'
  put(file, json.dumps({**json.loads(file.read_text()), **changed}))


def test_a_faster_video_gives_the_frame_of_each_row_s_time(v2, tmp_path):
  """The action of 3.0 s stood beside the picture of 1.0 s, without a word.

  github.com/huggingface/lerobot/issues/3513,
  github.com/OpenDriveLab/AgiBot-World/issues/149
  """
  images = frames(3 * LENGTHS[0], seed=0)
  at_rate(clip(v2, 0), images, 30)
  report = run(v2, tmp_path / 'd')
  source = EpisodeSource(tmp_path / 'd', 'train')
  np.testing.assert_array_equal(source[0]['observation'], images[::3])
  skipped = 2 * (LENGTHS[0] - 1)
  assert report['notes'][lerobot_frames.LEFT_OUT] == skipped
  assert source.index.lengths.tolist() == list(LENGTHS)


def test_as_many_frames_at_another_rate_are_refused(v2, tmp_path):
  """github.com/huggingface/lerobot/issues/2364"""
  at_rate(clip(v2, 0), frames(LENGTHS[0], seed=0), 30)
  report = run(v2, tmp_path / 'd')
  assert report['skipped'] == {
    'episode 0': 'the video ends at 0.2000 s, but row 3 is at 0.3000 s; the '
    'video has 30 frames a second and info.json says 10'
  }


def test_a_slower_video_is_refused_with_both_times(v2, tmp_path):
  at_rate(clip(v2, 1), frames(LENGTHS[1], seed=1), 5)
  report = run(v2, tmp_path / 'd')
  assert report['skipped'] == {
    'episode 1': 'row 1 is at 0.1000 s of the video, the nearest frame at '
    '0.2000 s; they may be 0.0250 s apart (--tolerance)'
  }


def with_times(root, number, times):
  path = root / f'data/chunk-000/episode_{number:06d}.parquet'
  table(path, {**rows(number, LENGTHS[number]), 'timestamp': times})


def test_timestamps_count_and_not_their_order(v2, tmp_path):
  """A camera that began late: the first rows have no picture of their time.

  github.com/huggingface/lerobot/issues/933
  """
  images = frames(LENGTHS[1] + 2, seed=1)
  at_rate(clip(v2, 1), images, 10)
  with_times(v2, 1, [0.2 + t for t in TIMES[: LENGTHS[1]]])
  run(v2, tmp_path / 'd')
  source = EpisodeSource(tmp_path / 'd', 'train')
  np.testing.assert_array_equal(source[1]['observation'], images[2:])


def test_a_row_between_two_frames_is_refused_or_allowed(v2, tmp_path):
  """Clocks of robot and camera differ: github.com/huggingface/lerobot/issues/
  2814.
  """
  with_times(v2, 1, [t + 0.04 for t in TIMES[: LENGTHS[1]]])
  report = run(v2, tmp_path / 'd')
  assert report['skipped'] == {
    'episode 1': 'row 0 is at 0.0400 s of the video, the nearest frame at '
    '0.0000 s; they may be 0.0250 s apart (--tolerance)'
  }
  report = run(v2, tmp_path / 'e', tolerance=0.45)
  assert not report['skipped']
  found = EpisodeSource(tmp_path / 'e', 'train')[1]['observation']
  np.testing.assert_array_equal(found, frames(LENGTHS[1], seed=1))
  with pytest.raises(ValueError, match=r'tolerance = 0\.6: must be more'):
    run(v2, tmp_path / 'f', tolerance=0.6)


@pytest.mark.parametrize(
  ('times', 'said'),
  [
    ([0.0, 0.1, 0.2, 0.2, 0.4], 'found 0.2000 s in row 3 after 0.2000 s'),
    ([0.0, 0.1, float('nan'), 0.3, 0.4], 'found no number in row 2'),
    ([26.33, 0.0, 0.1, 0.2, 0.3], 'found 0.0000 s in row 1 after 26.3300 s'),
  ],
)
def test_times_that_do_not_grow_are_refused(v2, tmp_path, times, said):
  """github.com/unitreerobotics/unitree_lerobot/issues/41"""
  with_times(v2, 2, times)
  report = run(v2, tmp_path / 'd')
  assert said in report['skipped']['episode 2']


def starts(root, times):
  """Sets where episodes begin in the video of the newer layout."""
  file = root / 'meta/episodes/chunk-000/file-000.parquet'
  columns = pq.read_table(file).to_pydict()
  columns[f'videos/{CAMERA}/from_timestamp'] = times
  pq.write_table(pa.table(columns), file)


@pytest.fixture
def long(v3):
  """The newer layout, whose video says how many frames it has."""
  images = [frames(n, seed=i) for i, n in enumerate(LENGTHS)]
  path = v3 / f'videos/{CAMERA}/chunk-000/file-000.mp4'
  at_rate(path, np.concatenate(images), 10)
  return v3


def test_a_little_drift_moves_no_episode(long, tmp_path):
  """Sums of rounded durations drift from the video's own times.

  github.com/huggingface/lerobot/issues/3177,
  github.com/huggingface/lerobot/pull/2447
  """
  starts(long, [0.0, 0.72, 1.88])
  report = run(long, tmp_path / 'd')
  assert not report['skipped']
  source = EpisodeSource(tmp_path / 'd', 'train')
  for i, length in enumerate(LENGTHS):
    np.testing.assert_array_equal(
      source[i]['observation'], frames(length, seed=i)
    )


@pytest.mark.parametrize(
  ('times', 'said'),
  [
    (
      [0.0, 0.74, 1.9],
      {1: 'row 0 is at 0.7400 s of the video, the nearest frame at 0.7000 s'},
    ),
    (
      [0.0, 0.8, 2.0],
      {
        1: 'begins at 0.8000 s of the video by its from_timestamp, '
        'but at 0.7000 s by the 7 frames',
        2: 'begins at 2.0000 s',
      },
    ),
    (
      [0.0, 0.6, 1.9],
      {
        0: 'episode 0 ends at 0.7000 s of the video by its length, but episode '
        '1 begins at 0.6000 s',
        1: 'episode 0 ends at 0.7000 s',
      },
    ),
  ],
)
def test_drift_of_a_frame_is_refused_with_both_times(
  long, tmp_path, times, said
):
  """Episodes pointed to times of other files, or of other episodes.

  github.com/huggingface/lerobot/issues/2627,
  github.com/huggingface/lerobot/pull/4027
  """
  starts(long, times)
  report = run(long, tmp_path / 'd')
  assert set(report['skipped']) == {f'episode {i}' for i in said}
  for i, text in said.items():
    assert text in report['skipped'][f'episode {i}']


def test_an_episode_beyond_the_end_of_its_video_is_refused(long, tmp_path):
  """github.com/huggingface/lerobot/pull/2550"""
  starts(long, [0.0, 0.7, 460.4])
  report = run(long, tmp_path / 'd')
  assert 'begins at 460.4000 s' in report['skipped']['episode 2']


def test_every_file_is_read_once_or_twice(v3, tmp_path, monkeypatch):
  """A file with 2,000 episodes was read twice for each of them.

  github.com/huggingface/lerobot/issues/3596,
  github.com/Robbyant/lingbot-vla-v2/issues/11
  """
  read, original = [], pq.read_table

  def counted(path, **kwargs):
    read.append(str(path))
    return original(path, **kwargs)

  monkeypatch.setattr(lerobot_files.pq, 'read_table', counted, raising=False)
  monkeypatch.setattr(pq, 'read_table', counted)
  lerobot_files._rows.cache_clear()
  run(v3, tmp_path / 'd')
  data = [path for path in read if '/data/' in path]
  assert len(data) == 2


def test_rows_are_found_in_any_order(v3, tmp_path):
  path = v3 / 'data/chunk-000/file-000.parquet'
  columns = pq.read_table(path).to_pydict()
  order = np.random.default_rng(0).permutation(sum(LENGTHS))
  mixed = {k: [v[i] for i in order] for k, v in columns.items()}
  pq.write_table(pa.table(mixed), path)
  run(v3, tmp_path / 'd')
  every = np.concatenate([actions(i, n) for i, n in enumerate(LENGTHS)])
  low, high = every.min(0), every.max(0)
  source = EpisodeSource(tmp_path / 'd', 'train')
  for i, length in enumerate(LENGTHS):
    back = (source[i]['action']['action'] + 1) / 2 * (high - low) + low
    np.testing.assert_allclose(back, actions(i, length), atol=1e-5)


def test_the_door_of_a_dataset_says_how_far_it_is(v3, tmp_path, capsys):
  config = lib.LeRobotConfig(
    dataset=str(v3), out=str(tmp_path / 'd'), workers=1, eval_share=0.0
  )
  lib.convert_lerobot(config)
  said = capsys.readouterr().err
  assert said.index('look: ') < said.index('convert: ')
