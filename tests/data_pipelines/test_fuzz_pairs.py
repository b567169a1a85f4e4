"""A hundred inputs, each with two things about it at once.

Each is skipped by name, in words, or gives frames of its own and no others.
"""

import itertools
import json

import numpy as np
import pytest

pytest.importorskip('av')
pytest.importorskip('pyarrow')

import av

from data_pipelines import decoding
from dreamer4_jax.data import EpisodeSource
from tests.data_pipelines import test_lerobot
from tests.data_pipelines.test_fuzz import KINDS, damaged
from tests.data_pipelines.test_lerobot import CAMERA, info, put, table
from tests.data_pipelines.test_video import frames, run
from tests.data_pipelines.test_video_shown import H264, film, matrix

SEED = 20_261_128
SIDE, LENGTH = 24, 12
CHECKED = {
  'codec': 'png',
  'pix_fmt': 'rgb24',
  'container': {'movflags': 'faststart'},
}
"""PNG has checksums, so that no damage is left unseen."""


def plain(path, images):
  film(path, images, **CHECKED)


def turned(path, images):
  film(path, images, **CHECKED, matrix=matrix(0, 1, -1, 0))


def mirrored(path, images):
  film(path, images, **CHECKED, matrix=matrix(-1, 0, 0, 1))


def slanted(path, images):
  film(path, images, **CHECKED, matrix=[50_000, 42_000, 0, -42_000, 50_000,
                                        0, 0, 0, 1 << 30])  # fmt: skip


def narrow(path, images):
  film(path, images, **CHECKED, aspect=(1, 2))


def jumping(path, images):
  times = [100 * i + 10**7 * (i >= 6) for i in range(len(images))]
  film(path, images, **CHECKED, times=times)


def uneven(path, images):
  times = np.cumsum([40, 100, 160] * len(images))[: len(images)]
  film(path, images, **CHECKED, times=times.tolist())


def depth(path, images):
  with av.open(str(path), 'w', options=CHECKED['container']) as file:
    stream = file.add_stream('png', rate=10)
    stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, 'gray16be'
    for image in images:
      deep = image[..., 0].astype(np.uint16) * 9
      frame = av.VideoFrame.from_ndarray(deep, format='gray16be')
      for packet in stream.encode(frame):
        file.mux(packet)
    for packet in stream.encode():
      file.mux(packet)


FILMS = (plain, turned, mirrored, slanted, narrow, jumping, uneven, depth)


def subsequence(found, whole):
  """Whether all frames are in the whole, in this order."""
  rest = iter(whole)
  return all(any(np.array_equal(x, y) for y in rest) for x in found)


def test_films_with_a_peculiarity_and_a_damage(tmp_path):
  rng = np.random.default_rng(SEED)
  folder, good = tmp_path / 'in', tmp_path / 'good'
  folder.mkdir()
  good.mkdir()
  for make in FILMS:
    path = good / f'{make.__name__}.mov'
    make(path, frames(LENGTH, SIDE, SIDE))
    whole = path.read_bytes()
    third = len(whole) // 3  # What the header says, it says without a checksum.
    for kind in KINDS:
      damage = damaged(whole[third:], kind, rng)
      keeps_head = kind not in ('empty', 'text', 'alien')
      bad = folder / f'{make.__name__}-{kind}.mov'
      bad.write_bytes(whole[:third] * keeps_head + damage)
  plain(folder / 'good.mov', frames(LENGTH, SIDE, SIDE))
  report = run(
    folder, tmp_path / 'd', size=(SIDE, SIDE), fit='stretch', frame_rate=10.0
  )
  source = EpisodeSource(tmp_path / 'd', 'train')
  assert len(source) + len(report['skipped']) == 65
  for name, reason in report['skipped'].items():
    assert name and reason and 'unreadable (' not in reason
  for kind in KINDS:
    for never in ('slanted', 'depth'):
      assert f'{never}-{kind}.mov' in report['skipped']
  how = decoding.Frames(size=(SIDE, SIDE), fit='stretch')
  for i, attributes in enumerate(source.index.attributes):
    name = attributes['file'].partition('-')[0]
    path = good / ('plain.mov' if name == 'good.mov' else f'{name}.mov')
    found = source[i]['observation']
    # A frame may stand for a while, to keep the rate.
    new = [
      found[0],
      *(b for a, b in itertools.pairwise(found) if (a != b).any()),
    ]
    whole = list(decoding.decode(path, how))
    assert subsequence(new, whole), attributes['file']


def null(columns):
  columns['action'][4] = None


def infinite(columns):
  columns['action'][4] = [float('inf'), 0.0, 0.0]


def backwards(columns):
  columns['timestamp'][4] = 0.0


def nowhere(columns):
  columns['timestamp'] = [t + 0.05 for t in columns['timestamp']]


def wordless(columns):
  columns['task_index'] = [99] * LENGTH


def fine(columns):
  pass


ROWS = (fine, null, infinite, backwards, nowhere, wordless)
CLIPS = ('fine', 'faster', 'short', 'turned', 'depth', 'missing')


def clip(path, kind, images):
  path.parent.mkdir(parents=True, exist_ok=True)
  if kind == 'missing':
    return
  if kind in ('fine', 'faster'):
    rate = 30 if kind == 'faster' else 10
    film(path, images, **H264, rate=rate)
    return
  own = path.with_suffix('.mov')
  make = {'short': plain, 'turned': turned, 'depth': depth}[kind]
  make(own, images[: 5 if kind == 'short' else None])
  own.rename(path)


def test_episodes_with_bad_rows_and_a_bad_film(tmp_path):
  root = tmp_path / 'in'
  paths = {
    'data_path': 'data/{episode_index}.parquet',
    'video_path': 'videos/{video_key}/{episode_index}.mp4',
  }
  put(root / 'meta/info.json', json.dumps(info('v2.1', **paths)))
  put(root / 'meta/tasks.jsonl', '{"task_index": 0, "task": "pick"}')
  pairs = list(itertools.product(ROWS, CLIPS))
  lines = [json.dumps({'episode_index': i}) for i in range(len(pairs))]
  put(root / 'meta/episodes.jsonl', '\n'.join(lines))
  for i, (spoil, kind) in enumerate(pairs):
    columns = {
      **test_lerobot.rows(i, LENGTH),
      'timestamp': [t / 10 for t in range(LENGTH)],
      'task_index': [0] * LENGTH,
    }
    spoil(columns)
    table(root / f'data/{i}.parquet', columns)
    clip(root / f'videos/{CAMERA}/{i}.mp4', kind, frames(LENGTH, SIDE, SIDE, i))
  report = test_lerobot.run(root, tmp_path / 'd', size=(SIDE, SIDE))
  source = EpisodeSource(tmp_path / 'd', 'train')
  kept = [a['number'] for a in source.index.attributes]
  expected = [
    i
    for i, (spoil, kind) in enumerate(pairs)
    if spoil in (fine, wordless) and kind in ('fine', 'short', 'turned')
  ]
  assert kept == expected
  assert len(report['skipped']) == len(pairs) - len(expected)
  for name, reason in report['skipped'].items():
    assert name.startswith('episode ') and 'unreadable (' not in reason
    assert len(reason) > 10
  for i, number in enumerate(kept):
    spoil, kind = pairs[number]
    shown = frames(LENGTH, SIDE, SIDE, number)
    if kind == 'turned':
      shown = np.rot90(shown, -1, (1, 2))
    count = 5 if kind == 'short' else LENGTH
    np.testing.assert_array_equal(source[i]['observation'], shown[:count])
    text = 'pick' if spoil is fine else ''
    assert source.index.attributes[i]['instruction'] == text


def test_there_are_a_hundred():
  assert len(FILMS) * len(KINDS) + len(ROWS) * len(CLIPS) == 100
