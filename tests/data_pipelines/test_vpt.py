"""Whole recordings: video, lines, index, splits."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip('av')

from data_pipelines import vpt
from data_pipelines import vpt_actions as actions
from dreamer4_jax.data import EpisodeSource
from tests.data_pipelines import batches
from tests.data_pipelines.test_video import frames, write
from tests.data_pipelines.test_vpt_actions import line

KEYS = ('w', 'a', 's', 'd', 'space')


def lines(count, seed=0):
  """Lines on which some keys are held, the camera moves and logs are cut."""
  rng = np.random.default_rng(seed)
  logs = np.cumsum(rng.random(count) < 0.3)
  return [
    line(
      keys=[f'key.keyboard.{k}' for k in KEYS if rng.random() < 0.3],
      dx=float(rng.integers(-60, 61)),
      dy=float(rng.integers(-60, 61)),
      stats={'minecraft.mine_block:minecraft.oak_log': int(logs[t])},
    )
    for t in range(count)
  ]


def record(directory, name, texts, images):
  """Writes a recording as the recorder does, but lossless."""
  path = directory / f'{name}.mp4'
  path.parent.mkdir(parents=True, exist_ok=True)
  write(path.with_suffix('.mkv'), images, rate=20)
  path.with_suffix('.mkv').rename(path)
  path.with_suffix('.jsonl').write_text('\n'.join(texts) + '\n')
  return f'{name}.mp4'


def index(directory, names, base='/data'):
  path = directory / 'index.json'
  path.write_text(json.dumps({'basedir': base, 'relpaths': names}))
  return path


def run(index_file, root, out, **kwargs):
  config = vpt.VptConfig(
    **{
      'index': (str(index_file),),
      'root': str(root),
      'out': str(out),
      'size': (24, 32),
      'workers': 1,
      'eval_share': 0.0,
      **kwargs,
    }
  )
  return vpt.convert_vpt(config, progress=False)


def test_a_recording_comes_back(tmp_path):
  name = record(tmp_path, '6.13/ann-s1-20220101-101010', lines(70), frames(70))
  report = run(index(tmp_path, [name]), tmp_path, tmp_path / 'd')
  assert report['splits']['train'] == {
    'inputs': 1,
    'episodes': 1,
    'frames': 70,
  }
  source = EpisodeSource(tmp_path / 'd', 'train')
  steps, expected = source[0], actions.read_lines(lines(70))
  np.testing.assert_array_equal(steps['observation'], frames(70))
  np.testing.assert_array_equal(steps['action']['buttons'], expected.buttons)
  np.testing.assert_array_equal(steps['action']['camera'], expected.camera)
  np.testing.assert_array_equal(steps['events'], expected.events)
  np.testing.assert_array_equal(steps['reward'], expected.events.any(1))
  assert steps['action_known'].all() and not steps['is_terminal'].any()
  assert expected.events.sum() > 10
  assert source.index.attributes[0] == {
    'file': '6.13/ann-s1-20220101-101010.mp4',
    'player': 'ann',
    'session': 's1',
    'subset': '6.13',
  }
  found = source.description
  assert found.frame_rate == 20
  assert (found.actions, found.tasks) == (actions.ACTIONS, actions.TASKS)


@pytest.mark.parametrize('changed', [0, 9, 30])
def test_an_action_first_shows_on_the_frame_it_led_to(tmp_path, changed):
  texts, clips = lines(40), []
  for version in range(2):
    if version:
      texts[changed] = line(keys=['key.keyboard.q'])
    name = record(tmp_path / str(version), 'x', texts, frames(40))
    out = tmp_path / f'd{version}'
    run(index(tmp_path, [name]), tmp_path / str(version), out)
    batch = next(batches.loader(out, batch_size=1, length=40))
    clips.append(jax.tree.map(lambda x: x[0], batch))
  a, b = clips
  # The window may begin anywhere in the only episode.
  begin = int(np.argmax((a.frames == frames(40)[changed]).all((1, 2, 3))))
  for name in ('buttons', 'camera'):
    axes = tuple(range(1, a.action[name].ndim))
    now = (a.action[name] != b.action[name]).any(axis=axes)
    before = (a.prev_action[name] != b.prev_action[name]).any(axis=axes)
    assert set(np.flatnonzero(now)) <= {begin}
    assert set(np.flatnonzero(before)) <= {begin + 1}
  assert (a.action['buttons'] != b.action['buttons'])[begin].any()
  if begin + 1 < 40 and a.segment_ids[begin] == a.segment_ids[begin + 1]:
    changed_next = a.prev_action['buttons'] != b.prev_action['buttons']
    assert changed_next[begin + 1].any()


@pytest.mark.parametrize(
  ('texts', 'images', 'note'),
  [
    (30, 34, 'frames without a line'),
    (34, 30, 'lines without a frame'),
  ],
)
def test_the_shorter_one_wins_and_the_difference_is_told(
  tmp_path, texts, images, note
):
  name = record(tmp_path, 'x', lines(texts), frames(images))
  report = run(index(tmp_path, [name]), tmp_path, tmp_path / 'd')
  assert report['splits']['train']['frames'] == 30
  assert report['notes'][note] == 4
  steps = EpisodeSource(tmp_path / 'd', 'train')[0]
  np.testing.assert_array_equal(steps['observation'], frames(images)[:30])
  # What the last action earned would be on a frame that does not exist.
  assert not steps['events'][-1].any() and steps['reward'][-1] == 0


def test_unreadable_lines_are_unknown_actions(tmp_path):
  texts = lines(40)
  texts[7] = '{"mouse": '
  name = record(tmp_path, 'x', texts, frames(40))
  report = run(index(tmp_path, [name]), tmp_path, tmp_path / 'd')
  assert report['notes']['lines that could not be read'] == 1
  known = EpisodeSource(tmp_path / 'd', 'train')[0]['action_known']
  assert np.flatnonzero(~known).tolist() == [7]


def test_bad_recordings_are_skipped_and_named(tmp_path):
  names = [record(tmp_path, 'good', lines(20), frames(20))]
  names.append('missing.mp4')
  names.append(record(tmp_path, 'silent', lines(20), frames(20)))
  (tmp_path / 'silent.jsonl').unlink()
  names.append(record(tmp_path, 'noise', ['{'] * 20, frames(20)))
  names.append(record(tmp_path, 'empty', [], frames(20)))
  names.append(record(tmp_path, 'cut', lines(20), frames(20)))
  (tmp_path / 'cut.mp4').write_bytes(b'')
  report = run(index(tmp_path, names), tmp_path, tmp_path / 'd')
  assert report['skipped'] == {
    'missing.mp4': 'listed, but there is no such video',
    'silent.mp4': 'no actions beside the video',
    'noise.mp4': 'more than 10% of the lines cannot be read',
    'empty.mp4': 'more than 10% of the lines cannot be read',
    'cut.mp4': report['skipped']['cut.mp4'],
  }
  assert 'damaged or no video' in report['skipped']['cut.mp4']
  assert report['splits']['train']['episodes'] == 1


def test_sessions_are_not_torn_apart(tmp_path):
  names = [
    f'{player}-{session}-20220101-10{minute:02d}00.mp4'
    for player in ('a-b', 'c')
    for session in range(40)
    for minute in (0, 5, 10)
  ]
  config = vpt.VptConfig(
    index=(str(index(tmp_path, names)),), out='x', eval_share=0.3
  )
  found = vpt.list_recordings(config)
  splits = {}
  for item in found:
    splits.setdefault(item.name.rsplit('-', 2)[0], set()).add(item.split)
  assert len(splits) == 80 and all(len(s) == 1 for s in splits.values())
  assert {'train', 'test'} == set.union(*splits.values())
  assert found[0].what['path'] == f'/data/{names[0]}'
  assert (found[0].what['player'], found[0].what['session']) == ('a-b', '0')


def test_the_subset_is_read_off_the_directory(tmp_path):
  names = ['data/6.9/x.mp4', 'data/5.7/y.mp4', 'data/z.mp4']
  path = str(index(tmp_path, names, base=str(tmp_path)))
  found = vpt.list_recordings(vpt.VptConfig(index=(path,), out='x'))
  assert [i.what['subset'] for i in found] == ['6.9', '5.7', '']
  told = vpt.VptConfig(index=(path,), out='x', subset='6.8')
  assert {i.what['subset'] for i in vpt.list_recordings(told)} == {'6.8'}


def test_a_folder_needs_no_index(tmp_path):
  record(tmp_path / 'in', '6.9/a', lines(5), frames(5))
  config = vpt.VptConfig(root=str(tmp_path / 'in'), out='x')
  assert [i.name for i in vpt.list_recordings(config)] == ['6.9/a.mp4']


@pytest.mark.parametrize(
  'text',
  [
    '',
    '[]',
    '{"basedir": 1, "relpaths": []}',
    '{"relpaths": ["a"]}',
    '{"basedir": "/", "relpaths": 3}',
    '{"basedir": "/", "relpaths": [3]}',
  ],
)
def test_a_damaged_index_is_named(tmp_path, text):
  path = tmp_path / 'index.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=r'index = .*index\.json'):
    vpt.list_recordings(vpt.VptConfig(index=(str(path),), out='x'))
  with pytest.raises(FileNotFoundError, match='nowhere'):
    vpt.list_recordings(vpt.VptConfig(index=('nowhere',), out='x'))


def test_the_pointer_is_drawn_where_it_is_while_a_gui_is_open(tmp_path):
  grey = np.full((4, 72, 96, 3), 100, np.uint8)
  texts = [
    line(),
    line(isGuiOpen=True, x=200.0, y=300.0),
    line(isGuiOpen=True, x=955.0, y=715.0),
    line(x=200.0, y=300.0),
  ]
  name = record(tmp_path, 'x', texts, grey)
  run(index(tmp_path, [name]), tmp_path, tmp_path / 'd', size=(72, 96))
  found = EpisodeSource(tmp_path / 'd', 'train')[0]['observation']
  assert (found[0] == 100).all() and (found[3] == 100).all()
  # 72 of 720 rows: (200, 300) is column 20, row 30; the arrow is 16x16.
  changed = (found[1] != 100).any(-1)
  rows, cols = np.nonzero(changed)
  assert (rows.min(), cols.min()) == (30, 20)
  assert rows.max() == 45 and cols.max() <= 35
  assert {0, 255} <= set(np.unique(found[1]).tolist())
  # At the corner it is cut off.
  rows, cols = np.nonzero((found[2] != 100).any(-1))
  assert (rows.min(), cols.min()) == (71, 95)


def test_frames_are_brought_to_size_after_the_pointer_is_drawn(tmp_path):
  grey = np.full((2, 72, 96, 3), 100, np.uint8)
  texts = [line(isGuiOpen=True, x=200.0, y=300.0)] * 2
  name = record(tmp_path, 'x', texts, grey)
  run(index(tmp_path, [name]), tmp_path, tmp_path / 'd', size=(36, 48))
  found = EpisodeSource(tmp_path / 'd', 'train')[0]['observation'][0]
  rows, cols = np.nonzero((np.abs(found.astype(int) - 100) > 4).any(-1))
  assert 14 <= rows.min() <= 16 and 9 <= cols.min() <= 11
  assert rows.max() <= 23 and cols.max() <= 18


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({}, "root = ''"),
    ({'root': 'x', 'size': (0, 5)}, r'size = \(0, 5\)'),
    ({'root': 'x', 'eval_share': 1.0}, r'eval_share = 1\.0'),
    ({'root': 'x', 'workers': -1}, 'workers = -1'),
  ],
)
def test_wrong_settings_are_named(kwargs, message):
  with pytest.raises(ValueError, match=message):
    vpt.VptConfig(out='x', **kwargs)


def test_a_video_of_another_rate_does_not_match_its_lines(tmp_path):
  """A copy that was made smaller, and twice as fast, for an upload.

  github.com/minerllabs/minerl/issues/74,
  github.com/AnjieCheng/NaVILA/issues/13
  """
  good = record(tmp_path, 'good', lines(40), frames(40))
  other = record(tmp_path, 'other', lines(40), frames(40))
  (tmp_path / other).unlink()
  write(tmp_path / 'other.mkv', frames(40), rate=30)
  (tmp_path / 'other.mkv').rename(tmp_path / other)
  report = run(index(tmp_path, [good, other]), tmp_path, tmp_path / 'd')
  assert report['skipped'] == {
    other: 'the video has 30 frames a second, its lines 20; they cannot be '
    'matched'
  }


def test_lines_of_frames_that_cannot_be_decoded_are_not_guessed(tmp_path):
  from tests.data_pipelines.test_video_shown import H264, cut, film

  good = record(tmp_path, 'good', lines(40), frames(40))
  other = record(tmp_path, 'other', lines(40), frames(40))
  film(tmp_path / 'whole.mkv', frames(40), **H264, rate=20)
  cut(tmp_path / 'whole.mkv', tmp_path / 'other.mkv', first=5)
  (tmp_path / 'other.mkv').rename(tmp_path / other)
  report = run(index(tmp_path, [good, other]), tmp_path, tmp_path / 'd')
  assert report['skipped'][other].startswith('the first 7 frames of the video')
