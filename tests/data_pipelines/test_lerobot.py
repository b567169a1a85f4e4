"""LeRobot folders of both layouts, written by hand."""

import io
import json

import numpy as np
from PIL import Image
import pytest

pytest.importorskip('av')
pytest.importorskip('pyarrow')

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines import lerobot as lib
from dreamer4_jax.data import EpisodeSource
from tests.data_pipelines import batches
from tests.data_pipelines.test_video import frames, write

LENGTHS = (7, 12, 5)
CAMERA = 'observation.images.top'


def actions(seed, length):
  rng = np.random.default_rng(seed)
  return rng.uniform([-1, -2, 5], [1, 2, 7], (length, 3)).astype(np.float32)


def rows(seed, length, first=0):
  return {
    'action': actions(seed, length).tolist(),
    'episode_index': [seed] * length,
    'frame_index': list(range(length)),
    'index': list(range(first, first + length)),
    'next.reward': [0.0] * (length - 1) + [1.0],
    'next.done': [False] * (length - 1) + [seed == 1],
  }


def info(version, image='video', **extra):
  return {
    'codebase_version': version,
    'fps': 10,
    'chunks_size': 1000,
    'features': {
      CAMERA: {'dtype': image, 'shape': [24, 32, 3]},
      'action': {'dtype': 'float32', 'shape': [3]},
    },
    **extra,
  }


def put(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def table(path, columns):
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.table(columns), path)


def film(path, images):
  """Writes a lossless video under the name that the layout wants."""
  path.parent.mkdir(parents=True, exist_ok=True)
  write(path.with_suffix('.mkv'), images)
  path.with_suffix('.mkv').rename(path)


@pytest.fixture
def v2(tmp_path):
  root = tmp_path / 'v2'
  paths = {
    'data_path': 'data/chunk-{episode_chunk:03d}/'
    'episode_{episode_index:06d}.parquet',
    'video_path': 'videos/chunk-{episode_chunk:03d}/{video_key}/'
    'episode_{episode_index:06d}.mp4',
  }
  put(root / 'meta/info.json', json.dumps(info('v2.1', **paths)))
  episodes = [
    {'episode_index': i, 'tasks': [f'task {i}'], 'length': n}
    for i, n in enumerate(LENGTHS)
  ]
  put(root / 'meta/episodes.jsonl', '\n'.join(map(json.dumps, episodes)))
  for i, n in enumerate(LENGTHS):
    table(root / f'data/chunk-000/episode_{i:06d}.parquet', rows(i, n))
    film(
      root / f'videos/chunk-000/{CAMERA}/episode_{i:06d}.mp4',
      frames(n, seed=i),
    )
  return root


@pytest.fixture
def v3(tmp_path):
  root = tmp_path / 'v3'
  paths = {
    'data_path': 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet',
    'video_path': 'videos/{video_key}/chunk-{chunk_index:03d}/'
    'file-{file_index:03d}.mp4',
  }
  put(root / 'meta/info.json', json.dumps(info('v3.0', **paths)))
  starts = np.cumsum([0, *LENGTHS])
  parts = [rows(i, n, int(starts[i])) for i, n in enumerate(LENGTHS)]
  table(
    root / 'data/chunk-000/file-000.parquet',
    {k: [x for p in parts for x in p[k]] for k in parts[0]},
  )
  film(
    root / f'videos/{CAMERA}/chunk-000/file-000.mp4',
    np.concatenate([frames(n, seed=i) for i, n in enumerate(LENGTHS)]),
  )
  count = len(LENGTHS)
  table(
    root / 'meta/episodes/chunk-000/file-000.parquet',
    {
      'episode_index': list(range(count)),
      'length': list(LENGTHS),
      'tasks': [[f'task {i}'] for i in range(count)],
      'data/chunk_index': [0] * count,
      'data/file_index': [0] * count,
      f'videos/{CAMERA}/chunk_index': [0] * count,
      f'videos/{CAMERA}/file_index': [0] * count,
      f'videos/{CAMERA}/from_timestamp': [float(s) / 10 for s in starts[:-1]],
    },
  )
  return root


def run(dataset, out, **kwargs):
  config = lib.LeRobotConfig(
    **{
      'dataset': str(dataset),
      'out': str(out),
      'workers': 1,
      'eval_share': 0.0,
      **kwargs,
    }
  )
  return lib.convert_lerobot(config, progress=False)


@pytest.mark.parametrize('layout', ['v2', 'v3'])
def test_episodes_come_back(layout, request, tmp_path):
  dataset = request.getfixturevalue(layout)
  report = run(dataset, tmp_path / 'd', terminal='next.done')
  assert report['skipped'] == {}
  assert report['notes'][lib.MOVED_REWARD] == 3
  source = EpisodeSource(tmp_path / 'd', 'train')
  assert source.description.frame_rate == 10
  every = np.concatenate([actions(i, n) for i, n in enumerate(LENGTHS)])
  low, high = every.min(0), every.max(0)
  for i, length in enumerate(LENGTHS):
    found = source[i]
    np.testing.assert_array_equal(found['observation'], frames(length, seed=i))
    back = (found['action']['action'] + 1) / 2 * (high - low) + low
    np.testing.assert_allclose(back, actions(i, length), atol=1e-5)
    # No frame follows the last action; it is known all the same.
    assert found['action_known'].all()
    t = np.arange(length)
    np.testing.assert_array_equal(found['reward'], t == length - 2)
    np.testing.assert_array_equal(
      found['is_terminal'], (t == length - 1) & (i == 1)
    )
    assert source.index.attributes[i]['instruction'] == f'task {i}'


def states(seed, length):
  return np.random.default_rng([9, seed]).normal(size=(length, 2))


@pytest.fixture
def robot(v2):
  """The older layout with a state for each frame."""
  features = info('v2.1')['features']
  description = json.loads((v2 / 'meta/info.json').read_text())
  for name in ('observation.state', 'effort'):
    features[name] = {'dtype': 'float32', 'shape': [2]}
  put(v2 / 'meta/info.json', json.dumps({**description, 'features': features}))
  for i, n in enumerate(LENGTHS):
    columns = {
      **rows(i, n),
      'observation.state': states(i, n).tolist(),
      'effort': (-states(i, n)).tolist(),
    }
    table(v2 / f'data/chunk-000/episode_{i:06d}.parquet', columns)
  return v2


@pytest.mark.parametrize(('name', 'sign'), [(None, 1), ('effort', -1)])
def test_the_state_is_kept_as_a_vector(robot, tmp_path, name, sign):
  run(robot, tmp_path / 'd', **({'state': name} if name else {}))
  source = EpisodeSource(tmp_path / 'd', 'train')
  (part,) = source.description.vectors
  assert (part.name, part.size) == ('state', 2)
  every = sign * np.concatenate([states(i, n) for i, n in enumerate(LENGTHS)])
  np.testing.assert_allclose(part.mean, every.mean(0), atol=1e-5)
  np.testing.assert_allclose(part.std, every.std(0), rtol=1e-4)
  for i, length in enumerate(LENGTHS):
    found = source[i]['vector']['state']
    np.testing.assert_allclose(found, sign * states(i, length), atol=1e-6)


def test_a_state_is_left_out_or_must_be_there(robot, tmp_path):
  run(robot, tmp_path / 'd', state='')
  assert EpisodeSource(tmp_path / 'd', 'train').description.vectors == ()
  with pytest.raises(ValueError, match=r"state = 'torque': must be one of"):
    run(robot, tmp_path / 'e', state='torque')
  file = robot / 'data/chunk-000/episode_000000.parquet'
  table(file, {**rows(0, 7), 'observation.state': [[1.0, 2.0, 3.0]] * 7})
  report = run(robot, tmp_path / 'f')
  assert report['skipped'] == {
    'episode 0': 'observation.state: found shape (7, 3), expected rows of 2 '
    "finite numbers; --state '' leaves the state out"
  }
  table(file, rows(0, 7))
  report = run(robot, tmp_path / 'g')
  assert report['skipped']['episode 0'].endswith("'' leaves the state out")
  description = json.loads((robot / 'meta/info.json').read_text())
  description['features']['observation.state']['shape'] = [0]
  put(robot / 'meta/info.json', json.dumps(description))
  run(robot, tmp_path / 'h')
  assert EpisodeSource(tmp_path / 'h', 'train').description.vectors == ()


def test_actions_lead_to_frames_in_batches(v3, tmp_path):
  run(v3, tmp_path / 'd', terminal='next.done')
  every = np.concatenate([actions(i, n) for i, n in enumerate(LENGTHS)])
  low, high = every.min(0), every.max(0)
  truth = [
    batches.Truth(
      frames=frames(n, seed=i),
      actions={'action': (actions(i, n)[:-1] - low) / (high - low) * 2 - 1},
      rewards=np.arange(n - 1) == n - 2,
      terminal=i == 1,
    )
    for i, n in enumerate(LENGTHS)
  ]
  batches.check(tmp_path / 'd', truth, atol=1e-5, last_known=True)


def test_images_can_lie_in_the_table(tmp_path):
  root = tmp_path / 'in'
  paths = {'data_path': 'data/{episode_index}.parquet'}
  put(root / 'meta/info.json', json.dumps(info('v2.0', 'image', **paths)))
  put(root / 'meta/episodes.jsonl', '{"episode_index": 0}')

  def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'PNG')
    return {'bytes': buffer.getvalue(), 'path': ''}

  images = frames(6)
  table(root / 'data/0.parquet', {**rows(0, 6), CAMERA: list(map(png, images))})
  run(root, tmp_path / 'd')
  found = EpisodeSource(tmp_path / 'd', 'train')[0]
  np.testing.assert_array_equal(found['observation'], images)


def test_bad_episodes_are_skipped_and_named(v2, tmp_path):
  data = v2 / 'data/chunk-000'
  (data / 'episode_000000.parquet').write_bytes(b'nothing')
  (v2 / f'videos/chunk-000/{CAMERA}/episode_000002.mp4').unlink()
  report = run(v2, tmp_path / 'd')
  assert set(report['skipped']) == {'episode 0', 'episode 2'}
  assert 'actions cannot be read' in report['skipped']['episode 0']
  assert report['skipped']['episode 2'] == 'no video beside the actions'


def test_the_shorter_of_actions_and_frames_counts(v2, tmp_path):
  film(v2 / f'videos/chunk-000/{CAMERA}/episode_000001.mp4', frames(9, seed=1))
  report = run(v2, tmp_path / 'd')
  assert report['notes']['actions without a frame'] == 3
  assert EpisodeSource(tmp_path / 'd', 'train').index.lengths[1] == 9


def damage(root, name, text):
  put(root / name, text)
  return root


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (('meta/info.json', '{'), r'info\.json: damaged'),
    (('meta/info.json', '{"fps": 10}'), r'info\.json: damaged \(KeyError'),
    (
      ('meta/info.json', json.dumps(info('v9.0'))),
      "codebase_version: found 'v9.0'",
    ),
    (
      ('meta/info.json', json.dumps({**info('v2.0'), 'fps': 0})),
      'fps = 0.0: must be positive',
    ),
    (('meta/episodes.jsonl', '{"episode'), 'list of episodes in meta is damag'),
    (('meta/episodes.jsonl', ''), 'no episode with actions'),
  ],
)
def test_a_damaged_description_is_named(v2, tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    run(damage(v2, *change), tmp_path / 'd')


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'image': 'observation.depth'}, r"image = 'observation\.depth': must be"),
    ({'action': 'torque'}, 'torque: no such column'),
    ({'fit': 'squeeze'}, "fit = 'squeeze'"),
  ],
)
def test_mistakes_are_named(v2, tmp_path, kwargs, message):
  with pytest.raises(ValueError, match=message):
    run(v2, tmp_path / 'd', **kwargs)


def test_no_dataset_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no meta/info\.json'):
    run(tmp_path, tmp_path / 'd')
