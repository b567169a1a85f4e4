"""What the writer refuses, and what it leaves behind."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import writer
from dreamer4_jax.config import ActionComponent
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.data import format as fmt

DESCRIPTION = fmt.Description(
  actions=(
    ActionComponent(name='move', kind='categorical', size=3),
    ActionComponent(name='aim', kind='continuous', size=2),
    ActionComponent(name='keys', kind='binary', size=4),
  ),
  tasks=('a', 'b'),
  frame_shape=(4, 6, 3),
  chunk_length=4,
  frame_rate=20.0,
)


def steps(count=10, seed=0):
  rng = np.random.default_rng(seed)
  known = np.arange(count) < count - 1
  return {
    'observation': rng.integers(0, 256, (count, 4, 6, 3), np.uint8),
    'action': {
      'move': rng.integers(0, 3, count, np.int32),
      'aim': rng.uniform(-1, 1, (count, 2)).astype(np.float32),
      'keys': rng.integers(0, 2, (count, 4), np.int32),
    },
    'action_known': known,
    'reward': np.where(known, rng.normal(size=count), 0).astype(np.float32),
    'events': known[:, None] & (rng.random((count, 2)) < 0.3),
  }


def same(a, b):
  np.testing.assert_equal(a['observation'], b['observation'])
  for name in ('action_known', 'reward', 'events'):
    np.testing.assert_array_equal(a[name], b[name])
  for name, value in a['action'].items():
    np.testing.assert_array_equal(value, b['action'][name])


@pytest.mark.parametrize('length', [1, 3, 4, 5, 8, 9])
def test_whole_episodes_come_back(tmp_path, length):
  written = [steps(length, seed) for seed in range(3)]
  out = writer.write_dataset(
    tmp_path / 'd',
    description=DESCRIPTION,
    splits={
      'train': [
        writer.Episode(steps=s, terminal=i == 1, attributes={'n': i})
        for i, s in enumerate(written)
      ]
    },
  )
  source = EpisodeSource(out, 'train')
  assert source.description == DESCRIPTION
  for i, expected in enumerate(written):
    found = source[i]
    same(expected, found)
    t = np.arange(length)
    np.testing.assert_array_equal(found['is_first'], t == 0)
    np.testing.assert_array_equal(found['is_last'], t == length - 1)
    np.testing.assert_array_equal(
      found['is_terminal'], (t == length - 1) & (i == 1)
    )
    assert source.index.attributes[i] == {'n': i}
    frames, tasks = source.index.of_episode(i)
    step, task = np.nonzero(expected['events'])
    assert frames.tolist() == (step + 1).tolist()
    assert tasks.tolist() == task.tolist()


@pytest.mark.parametrize('piece', [1, 2, 3, 7])
def test_pieces_make_the_same_episode(tmp_path, piece):
  whole = steps(19)
  flat = fmt.flatten(whole)
  with writer.Shard(tmp_path / 'shard', DESCRIPTION) as shard:
    for begin in range(0, 19, piece):
      part = {k: v[begin : begin + piece] for k, v in flat.items()}
      shard.append(fmt.unflatten(part))
    shard.end(terminal=True)
  with writer.Shard(tmp_path / 'other', DESCRIPTION) as other:
    other.add(writer.Episode(steps=whole, terminal=True))
  assert shard.index == other.index
  work = tmp_path / 'work'
  work.mkdir()
  out = tmp_path / 'd'
  writer.publish(out, work, DESCRIPTION, {'train': [tmp_path / 'shard']})
  same(whole, EpisodeSource(out, 'train')[0])


def test_an_abandoned_episode_is_never_read(tmp_path):
  with writer.Shard(tmp_path / 'shard', DESCRIPTION) as shard:
    shard.append(steps(11, seed=1))
    shard.abandon()
    shard.add(writer.Episode(steps=steps(5, seed=2), terminal=False))
    with pytest.raises(writer.EpisodeError, match='reward'):
      bad = steps(9, seed=3)
      bad['reward'][3] = np.nan
      shard.add(writer.Episode(steps=bad, terminal=False))
    shard.add(writer.Episode(steps=steps(6, seed=4), terminal=False))
  work = tmp_path / 'work'
  work.mkdir()
  shards = {'train': [tmp_path / 'shard', tmp_path / 'shard']}
  writer.publish(tmp_path / 'd', work, DESCRIPTION, shards)
  assert not work.exists()
  source = EpisodeSource(tmp_path / 'd', 'train')
  assert len(source) == 4
  for i, seed in enumerate((2, 4, 2, 4)):
    same(steps(len(source[i]['reward']), seed), source[i])


def broken(**changes):
  result = steps()
  for name, value in changes.items():
    if name in result['action']:
      result['action'][name] = value
    else:
      result[name] = value
  return result


def without(name):
  return {k: v for k, v in steps().items() if k != name}


NAN = np.array([0.0] * 4 + [np.nan] + [0.0] * 5, np.float32)


@pytest.mark.parametrize(
  ('bad', 'message'),
  [
    (without('reward'), 'reward: missing'),
    (without('action'), 'action/move: missing'),
    (broken(mood=np.zeros(10)), 'mood: no such field'),
    (
      broken(observation=np.zeros((10, 4, 5, 3), np.uint8)),
      r"observation: found shape \(10, 4, 5, 3\), expected \('steps', 4, 6, 3",
    ),
    (
      broken(observation=np.zeros((10, 4, 6, 3), np.float32)),
      'observation: found dtype float32, expected uint8',
    ),
    (broken(observation=np.full((10, 4, 6, 3), 300)), 'found 300, too much'),
    (broken(reward=np.zeros(9, np.float32)), 'different numbers of steps'),
    (broken(reward=NAN), 'reward: found nan on a step'),
    (broken(reward=np.ones(10)), 'reward: found 1.0 on the last step'),
    (broken(events=np.ones((10, 2))), 'events: found dtype float64'),
    (broken(events=np.full((10, 2), 2)), 'events: found 2, expected 0 or 1'),
    (
      broken(events=np.ones((10, 2), bool)),
      r'events: found \[0, 1\] on the la',
    ),
    (broken(move=np.full(10, 3)), 'action/move: found 3, expected 0 to 2'),
    (broken(move=np.full(10, -1)), 'action/move: found -1, expected 0 to 2'),
    (broken(keys=np.full((10, 4), 2)), 'action/keys: found 2, expected 0 to 1'),
    (broken(aim=np.full((10, 2), 1.5)), 'action/aim: found 1.5, expected -1.0'),
    (broken(move=np.array(['left'] * 10)), 'action/move: found dtype <U4'),
    ({k: v[:0] for k, v in fmt.flatten(steps()).items()}, 'found no frame'),
  ],
)
def test_a_bad_episode_is_named(tmp_path, bad, message):
  with pytest.raises(writer.EpisodeError, match=message):
    writer.write_dataset(
      tmp_path / 'd',
      description=DESCRIPTION,
      splits={'train': [writer.Episode(steps=bad, terminal=False)]},
    )
  assert not list(tmp_path.iterdir())


def test_an_odd_attribute_is_named(tmp_path):
  with writer.Shard(tmp_path / 's', DESCRIPTION) as shard:
    with pytest.raises(
      writer.EpisodeError, match='attribute where: found list'
    ):
      shard.add(
        writer.Episode(
          steps=steps(), terminal=False, attributes={'where': [1, 2]}
        )
      )


def test_a_split_without_episodes_is_named(tmp_path):
  with pytest.raises(writer.EpisodeError, match="split 'test': found no episo"):
    writer.write_dataset(
      tmp_path / 'd',
      description=DESCRIPTION,
      splits={
        'train': [writer.Episode(steps=steps(), terminal=False)],
        'test': [],
      },
    )


def test_many_shards_keep_the_order(tmp_path, monkeypatch):
  monkeypatch.setattr(writer, 'SHARD_BYTES', 1000)
  out = writer.write_dataset(
    tmp_path / 'd',
    description=DESCRIPTION,
    splits={
      'train': (
        writer.Episode(steps=steps(5, seed), terminal=False)
        for seed in range(40)
      )
    },
  )
  assert len(list(out.glob('*.array_record*'))) > 5
  source = EpisodeSource(out, 'train', cache_bytes=0)
  for seed in (0, 1, 17, 39):
    same(steps(5, seed), source[seed])


@pytest.fixture
def dataset(tmp_path):
  return writer.write_dataset(
    tmp_path / 'd',
    description=DESCRIPTION,
    splits={'train': [writer.Episode(steps=steps(), terminal=False)]},
  )


def edit(path, change):
  metadata = json.loads((path / 'metadata.json').read_text())
  change(metadata)
  (path / 'metadata.json').write_text(json.dumps(metadata))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda m: m.update(format_version=1), 'format_version: found 1, expected'),
    (lambda m: m.pop('actions'), 'metadata: damaged'),
    (
      lambda m: m.update(frame_shape=[4, 4, 3]),
      r'observation: found shape \(None, 4, 6, 3\) of uint8, expected shape '
      r'\(None, 4, 4, 3\)',
    ),
    (
      lambda m: m['splits']['train'].update(lengths=[100]),
      "chunks of 'train': found 3, expected at least 25 by the index",
    ),
    (lambda m: m['actions'].pop(), None),
  ],
)
def test_a_damaged_description_is_named(dataset, change, message):
  edit(dataset, change)
  if message is None:
    with pytest.raises(ValueError, match='actions: found'):
      EpisodeSource(dataset, 'train', actions=DESCRIPTION.actions)
    return
  with pytest.raises(ValueError, match=message) as error:
    EpisodeSource(dataset, 'train')
  assert str(dataset) in str(error.value)


def test_a_record_that_is_not_the_one_indexed_is_named(dataset):
  edit(
    dataset,
    lambda m: m['splits']['train'].update(first_chunks=[1], lengths=[5]),
  )
  with pytest.raises(ValueError, match=r'steps 0 ff. of episode 0 .* damaged'):
    EpisodeSource(dataset, 'train')[0]


def test_a_damaged_file_is_named(dataset):
  record = next(dataset.glob('*.array_record*'))
  data = bytearray(record.read_bytes())
  record.write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match=r'd: .*(damaged|cannot be read)'):
    EpisodeSource(dataset, 'train')[0]


HOLD = """
import pathlib, sys
from data_pipelines import writer
work = writer.work_directory(pathlib.Path(sys.argv[1]), key='one')
(work / 'done').touch()
print('ready', flush=True)
sys.stdin.read()
"""


def test_two_processes_never_write_one_dataset(tmp_path):
  out = tmp_path / 'data'
  first = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(out)],
    cwd=pathlib.Path(__file__).parents[2],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert first.stdout.readline() == 'ready\n'
    # Whether it would resume what is there, or discard it.
    for key in ('one', 'two'):
      with pytest.raises(FileExistsError, match=r'data: another process'):
        writer.work_directory(out, key=key)
    assert (tmp_path / '.data.incomplete/done').exists()
  finally:
    first.kill()
    first.communicate()
  # A killed process leaves its work, which this one resumes, twice.
  for _ in range(2):
    assert (writer.work_directory(out, key='one') / 'done').exists()
  work = writer.work_directory(out, key='two')
  assert [p.name for p in work.iterdir()] == ['key.json']
