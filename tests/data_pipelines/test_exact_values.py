"""Nothing is cast, clipped or spelled out unless it is exact, or asked for."""

import io
import json
import types

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

pytest.importorskip('av')
pytest.importorskip('pyarrow')

from data_pipelines import lerobot as lib
from data_pipelines import rlds, rlds_steps, values
from data_pipelines.writer import EpisodeError
from dreamer4_jax.data import EpisodeSource
from tests.data_pipelines import test_lerobot
from tests.data_pipelines.test_lerobot import CAMERA, info, put, rows, table
from tests.data_pipelines.test_video import frames

v2 = test_lerobot.v2
v3 = test_lerobot.v3
LENGTH = 6


def test_only_rounding_is_clipped():
  """Actions outside their box: github.com/mani-skill/ManiSkill/issues/1365."""
  low, high = np.float32([-1, 0]), np.float32([1, 10])
  inside = np.float32([[-1, 0], [1, 10], [1 + 1e-7, -1e-6]])
  found = values.scaled('arm', inside, low, high)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, [[-1, -1], [1, 1], [1, -1]], atol=1e-6)
  with pytest.raises(EpisodeError, match=r'arm: found \[3\.0, -5\.0\] in row '):
    values.scaled('arm', np.float32([[0, 1], [3, -5]]), low, high)


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    ('pick', 'pick'),
    (b'pick \xc3\xbcp', 'pick \u00fcp'),
    (np.array([112, 105, 99, 107, 0, 0, 0], np.int32), 'pick'),
    (np.array([b'pick', b'', b'grasp'], object), 'pick; grasp'),
    (np.array(['pick', 'pick']), 'pick'),
    (np.zeros(4, np.uint8), ''),
  ],
)
def test_text_is_read_in_every_spelling(value, text):
  """Some are arrays of bytes, some are arrays of character codes.

  github.com/SHAILAB-IPEC/OpenFly-Platform/issues/39,
  tensorflow.org/datasets/catalog/language_table
  """
  assert values.text('task', value) == text


@pytest.mark.parametrize(
  'value',
  [
    np.zeros(512, np.float32),
    np.int64(3),
    np.array([3, 1, 4]),
    np.array([1, 0, 1]),
    np.array([-5, 70]),
    None,
  ],
)
def test_what_is_no_text_is_refused(value):
  """An embedding or an index is not an instruction."""
  with pytest.raises(EpisodeError, match=r'task: found .* expected text'):
    values.text('task', value)


def with_picture(root, data):
  """Writes a dataset of one episode with images in its table."""
  paths = {'data_path': 'data/{episode_index}.parquet'}
  put(root / 'meta/info.json', json.dumps(info('v2.0', 'image', **paths)))
  put(root / 'meta/episodes.jsonl', '{"episode_index": 0}')
  cells = [{'bytes': data, 'path': ''}] * LENGTH
  table(root / 'data/0.parquet', {**rows(0, LENGTH), CAMERA: cells})


def run(root, out, **kwargs):
  return test_lerobot.run(root, out, **kwargs)


def png(image):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'PNG')
  return buffer.getvalue()


def test_depth_in_a_table_is_refused(tmp_path):
  """It became white all over: github.com/huggingface/lerobot/issues/1144."""
  with_picture(tmp_path / 'in', png(np.full((24, 32), 1500, np.uint16)))
  with pytest.raises(ValueError, match=r'images\.top: .* mode I;16'):
    run(tmp_path / 'in', tmp_path / 'd')


@pytest.mark.parametrize('fit', ['crop', 'pad', 'stretch'])
def test_pictures_and_films_follow_fit_alike(v2, tmp_path, fit):
  """Pictures in a table were always stretched."""
  image = np.zeros((24, 32, 3), np.uint8)
  image[6:18, 8:24] = 255
  image[:, :4] = 120
  with_picture(tmp_path / 'in', png(image))
  for i, n in enumerate(test_lerobot.LENGTHS):
    test_lerobot.film(
      v2 / f'videos/chunk-000/{CAMERA}/episode_{i:06d}.mp4',
      image[None].repeat(n, 0),
    )
  found = []
  for root in (tmp_path / 'in', v2):
    out = tmp_path / f'd{len(found)}'
    run(root, out, size=(12, 12), fit=fit)
    found.append(EpisodeSource(out, 'train')[0]['observation'][0])
  difference = np.abs(found[0].astype(int) - found[1])
  # Two programs average over pixels; no bar and no edge moves.
  assert difference.mean() < 6 and (difference < 90).all()


def test_an_instruction_may_be_text_or_an_index(v2, v3, tmp_path):
  """'pick' became 'p; i; c; k', and an index of a task became nothing.

  github.com/NVIDIA/Isaac-GR00T/issues/288,
  github.com/huggingface/lerobot/issues/2283
  """
  episodes = [
    {'episode_index': 0, 'tasks': 'pick', 'length': 7},
    {'episode_index': 1, 'tasks': [1], 'length': 12},
    {'episode_index': 2, 'length': 5},
  ]
  put(v2 / 'meta/episodes.jsonl', '\n'.join(map(json.dumps, episodes)))
  tasks = [{'task_index': i, 'task': f'do {i}'} for i in range(3)]
  put(v2 / 'meta/tasks.jsonl', '\n'.join(map(json.dumps, tasks)))
  columns = {**rows(2, 5), 'task_index': [2] * 5}
  table(v2 / 'data/chunk-000/episode_000002.parquet', columns)
  run(v2, tmp_path / 'd')
  texts = lambda out: [
    a['instruction'] for a in EpisodeSource(out, 'train').index.attributes
  ]
  assert texts(tmp_path / 'd') == ['pick', 'do 1', 'do 2']
  columns['task_index'] = [9] * 5
  table(v2 / 'data/chunk-000/episode_000002.parquet', columns)
  report = run(v2, tmp_path / 'e')
  assert texts(tmp_path / 'e') == ['pick', 'do 1', '']
  note = 'episodes whose task_index is not among the tasks in meta'
  assert report['notes'][note] == 1
  # Pandas keeps the text as the index of the table of tasks.
  file = v3 / 'meta/episodes/chunk-000/file-000.parquet'
  import pyarrow as pa
  import pyarrow.parquet as pq

  known = pq.read_table(file).to_pydict()
  known['tasks'] = [[0], [1], [1]]
  pq.write_table(pa.table(known), file)
  table(
    v3 / 'meta/tasks.parquet',
    {'task_index': [0, 1], '__index_level_0__': ['lift', 'drop']},
  )
  run(v3, tmp_path / 'f')
  assert texts(tmp_path / 'f') == ['lift', 'drop', 'drop']


@pytest.mark.parametrize(
  ('cells', 'said'),
  [
    ([[1.0, None, 2.0]], 'found null in row 3'),
    ([None], 'found null in row 3'),
    ([[1.0, float('nan'), 2.0]], 'found nan in row 3'),
    ([[1.0, float('inf'), 2.0]], 'found inf in row 3'),
  ],
)
@pytest.mark.parametrize('every', [False, True])
def test_a_bad_action_is_named_with_its_row(v2, tmp_path, cells, said, every):
  """It was reported as 'no episode'.

  github.com/huggingface/lerobot/issues/2283,
  github.com/huggingface/lerobot/pull/245
  """
  numbers = range(3) if every else [1]
  for i in numbers:
    columns = rows(i, test_lerobot.LENGTHS[i])
    columns['action'][3:4] = cells
    table(v2 / f'data/chunk-000/episode_{i:06d}.parquet', columns)
  if every:
    with pytest.raises(ValueError, match=rf'\(episode 2: action: {said}'):
      run(v2, tmp_path / 'd')
  else:
    report = run(v2, tmp_path / 'd')
    assert report['skipped']['episode 1'].startswith(f'action: {said}')


@pytest.mark.parametrize(
  ('action', 'said'),
  [
    ([['1', '2', '3']] * 7, 'action: no table of numbers'),
    ([[2**24 + 1, 0, 0]] * 7, 'action: found 16777217, a whole number'),
  ],
)
def test_text_and_great_numbers_are_no_actions(v2, tmp_path, action, said):
  columns = {**rows(0, 7), 'action': action}
  table(v2 / 'data/chunk-000/episode_000000.parquet', columns)
  report = run(v2, tmp_path / 'd')
  assert report['skipped']['episode 0'].startswith(said)


def test_a_reward_that_is_not_there_is_named(v2, tmp_path):
  with pytest.raises(ValueError, match=r"paid: no such.*--reward '' goes"):
    run(v2, tmp_path / 'd', reward='paid')
  for i, n in enumerate(test_lerobot.LENGTHS):
    columns = rows(i, n)
    del columns['next.reward']
    table(v2 / f'data/chunk-000/episode_{i:06d}.parquet', columns)
  report = run(v2, tmp_path / 'e')
  note = 'episodes without the column next.reward, rewards are 0'
  assert report['notes'][note] == 3


def test_depth_maps_are_not_taken_for_the_only_image(v2, tmp_path):
  description = json.loads((v2 / 'meta/info.json').read_text())
  description['features']['observation.images.depth'] = {
    'dtype': 'video',
    'shape': [24, 32, 1],
    'info': {'video.is_depth_map': True},
  }
  put(v2 / 'meta/info.json', json.dumps(description))
  assert not run(v2, tmp_path / 'd')['skipped']
  with pytest.raises(ValueError, match=rf"must be one of .*\['{CAMERA}'\]"):
    run(v2, tmp_path / 'e', image='observation.images.depth')


class Robots(tfds.core.GeneratorBasedBuilder):
  """Steps that say things as some public datasets do."""

  VERSION = tfds.core.Version('1.0.0')
  name = 'odd_robots'
  pkg_dir_path = None
  url_infos = {}  # noqa: RUF012
  spoilt = None

  def _info(self):
    features = tfds.features
    return tfds.core.DatasetInfo(
      builder=self,
      features=features.FeaturesDict(
        {
          'steps': features.Dataset(
            {
              'image': features.Image(shape=(8, 10, 3)),
              'action': features.Tensor(shape=(2,), dtype=np.float64),
              'hand': features.Scalar(np.float32),
              'discount': features.Scalar(np.float32),
              'codes': features.Tensor(shape=(12,), dtype=np.int32),
              'task': features.ClassLabel(names=['lift', 'drop']),
              'embedding': features.Tensor(shape=(4,), dtype=np.float32),
            }
          )
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for number in range(2):
      steps = []
      for t in range(LENGTH):
        codes = np.zeros(12, np.int32)
        codes[:4] = list(b'lift') if t < 3 or number else list(b'drop')
        action = np.array([t, -t], np.float64)
        if self.spoilt is not None and t == 2:
          action[1] = self.spoilt
        steps.append(
          {
            'image': png(frames(1, 8, 10, seed=t)[0]),
            'action': action,
            'hand': np.float32(t % 3),
            'discount': np.float32(t < LENGTH - 1 or number),
            'codes': codes,
            'task': number,
            'embedding': np.ones(4, np.float32),
          }
        )
      yield number, {'steps': steps}


def make_robots(folder, spoilt=None):
  builder = Robots(data_dir=str(folder), file_format='array_record')
  builder.spoilt = spoilt
  builder.download_and_prepare(file_format='array_record')
  rlds.features_of.cache_clear()
  return builder.data_dir


def convert(dataset, out, **kwargs):
  config = rlds.RldsConfig(
    **{
      'dataset': str(dataset),
      'out': str(out),
      'image': 'image',
      'reward': '',
      'workers': 1,
      **kwargs,
    }
  )
  return rlds.convert_rlds(config, progress=False)


@pytest.fixture(scope='module')
def robots(tmp_path_factory):
  return make_robots(tmp_path_factory.mktemp('robots'))


def test_rlds_instructions(robots, tmp_path):
  """Changing, numbered, missing: github.com/droid-dataset/droid/issues/3."""
  report = convert(robots, tmp_path / 'd', instruction='codes')
  source = EpisodeSource(tmp_path / 'd', 'train')
  texts = [a['instruction'] for a in source.index.attributes]
  assert texts == ['lift', 'lift']
  assert report['notes'][rlds_steps.WORDINGS] == 1
  convert(robots, tmp_path / 'e', instruction='task')
  source = EpisodeSource(tmp_path / 'e', 'train')
  texts = [a['instruction'] for a in source.index.attributes]
  assert texts == ['lift', 'drop']
  with pytest.raises(ValueError, match=r'embedding: found float32 of'):
    convert(robots, tmp_path / 'f', instruction='embedding')


def test_an_end_without_is_terminal_is_read_off_the_discount(robots, tmp_path):
  """A dataset may say how episodes end by their discounts alone.

  github.com/google-deepmind/deepmind-research/issues/279,
  github.com/google-deepmind/rlax/issues/17
  """
  report = convert(robots, tmp_path / 'd')
  source = EpisodeSource(tmp_path / 'd', 'train')
  assert source.index.terminal.tolist() == [True, False]
  assert report['notes'][rlds_steps.DISCOUNTED] == 1


def test_floats_may_be_classes_if_they_are_whole(robots, tmp_path):
  convert(robots, tmp_path / 'd', actions=('hand=hand:3',))
  found = EpisodeSource(tmp_path / 'd', 'train')[0]['action']['hand']
  assert found[:-1].tolist() == [0, 1, 2, 0, 1]
  with pytest.raises(ValueError, match='found 2 values a step'):
    convert(robots, tmp_path / 'e', actions=('arm=action:3',))
  with pytest.raises(ValueError, match="'many' classes"):
    convert(robots, tmp_path / 'e', actions=('hand=hand:many',))
  with pytest.raises(ValueError, match="reward = 'reward': a step has no such"):
    convert(robots, tmp_path / 'e', reward='reward')


@pytest.mark.parametrize('fit', ['crop', 'pad'])
def test_rlds_pictures_follow_fit(robots, tmp_path, fit):
  convert(robots, tmp_path / 'd', size=(8, 8), fit=fit)
  found = EpisodeSource(tmp_path / 'd', 'train')[0]['observation'][0]
  whole = frames(1, 8, 10, seed=0)[0]
  if fit == 'crop':
    np.testing.assert_array_equal(found, whole[:, 1:9])
  else:
    assert not found[0].any() and found[1:7].any()


def test_a_nan_in_every_action_is_named(tmp_path):
  """github.com/OpenHelix-Team/Spatial-Forcing/issues/4"""
  dataset = make_robots(tmp_path / 'in', spoilt=float('nan'))
  with pytest.raises(ValueError, match=r'episode 1: action: found nan'):
    convert(dataset, tmp_path / 'd')


def test_lerobot_needs_no_reward(v2, tmp_path):
  report = run(v2, tmp_path / 'd', reward='')
  assert report['notes'][lib.MOVED_REWARD] == 0
  assert not EpisodeSource(tmp_path / 'd', 'train')[0]['reward'].any()


def test_a_class_that_nobody_gave_is_no_instruction():
  """TFDS writes -1 where there is no class: not the last of the names."""
  fields = types.SimpleNamespace(instruction='task', names=('lift', 'drop'))
  found = rlds_steps._wordings([{'task': -1}, {'task': 7}], fields)
  assert found == ['']


@pytest.mark.parametrize('config', [lib.LeRobotConfig, rlds.RldsConfig])
def test_an_unknown_fit_is_refused(config):
  with pytest.raises(ValueError, match="fit = 'squeeze': must be one of"):
    config(dataset='x', out='y', fit='squeeze')
