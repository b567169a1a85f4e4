"""RLDS datasets, written by TFDS without TensorFlow, and their damage."""

import io
import struct

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from data_pipelines import rlds as lib
from data_pipelines import rlds_records, rlds_steps
from dreamer4_jax.data import EpisodeSource
from tests.data_pipelines import batches

LENGTHS = (6, 1, 9, 4)


def step(t, length, seed):
  rng = np.random.default_rng([seed, t])
  return {
    'observation': {
      'image_0': rng.integers(0, 256, (8, 10, 3), np.uint8),
      'state': rng.normal(size=3).astype(np.float32),
    },
    'action': (rng.uniform(-1, 1, 7) * [1, 2, 3, 4, 5, 6, 0]).astype(
      np.float32
    ),
    'grip': np.int32(rng.integers(0, 3)),
    'reward': np.float32(t == length - 1),
    'is_first': t == 0,
    'is_last': t == length - 1,
    'is_terminal': t == length - 1 and seed % 2 == 0,
    'language_instruction': b'pick \xc3\xbcp' if seed else 'put',
  }


FEATURES = tfds.features.FeaturesDict(
  {
    'steps': tfds.features.Dataset(
      {
        'observation': {
          'image_0': tfds.features.Image(shape=(8, 10, 3)),
          'state': tfds.features.Tensor(shape=(3,), dtype=np.float32),
        },
        'action': tfds.features.Tensor(shape=(7,), dtype=np.float32),
        'grip': tfds.features.Scalar(np.int32),
        'reward': tfds.features.Scalar(np.float32),
        'is_first': tfds.features.Scalar(np.bool_),
        'is_last': tfds.features.Scalar(np.bool_),
        'is_terminal': tfds.features.Scalar(np.bool_),
        'language_instruction': tfds.features.Text(),
      }
    )
  }
)


class Builder(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')
  name = 'robots'
  pkg_dir_path = None
  url_infos = {}  # noqa: RUF012

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self, features=FEATURES, disable_shuffling=True
    )

  def _split_generators(self, manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for seed, length in enumerate(LENGTHS):
      steps = [step(t, length, seed) for t in range(length)]
      for one in steps:
        png = io.BytesIO()
        Image.fromarray(one['observation']['image_0']).save(png, 'PNG')
        one['observation']['image_0'] = png.getvalue()
      yield seed, {'steps': steps}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  builder = Builder(
    data_dir=str(tmp_path_factory.mktemp('rlds')), file_format='array_record'
  )
  builder.download_and_prepare(file_format='array_record')
  return builder.data_dir


def run(dataset, out, **kwargs):
  config = lib.RldsConfig(
    **{
      'dataset': str(dataset),
      'out': str(out),
      'image': 'observation/image_0',
      'workers': 1,
      **kwargs,
    }
  )
  return lib.convert_rlds(config, progress=False)


def test_vectors_are_kept_in_their_units(dataset, tmp_path):
  fields = ('state=observation/state', 'paid=reward')
  run(dataset, tmp_path / 'd', vectors=fields)
  source = EpisodeSource(tmp_path / 'd', 'train')
  found = {v.name: v.size for v in source.description.vectors}
  assert found == {'state': 3, 'paid': 1}
  for i, length in enumerate(LENGTHS):
    steps = [step(t, length, i) for t in range(length)]
    vectors = source[i]['vector']
    expected = np.stack([s['observation']['state'] for s in steps])
    np.testing.assert_array_equal(vectors['state'], expected)
    paid = [[s['reward']] for s in steps]
    np.testing.assert_array_equal(vectors['paid'], paid)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('vectors', ('a=x', 'a=y')),
    ('vectors', ('a.b=x',)),
    ('actions', ('a=x', 'a=y')),
    ('actions', ('1=x',)),
  ],
)
def test_names_are_distinct_identifiers(field, value):
  with pytest.raises(ValueError, match=rf'{field} = .*must be NAME=FIELD each'):
    lib.RldsConfig(dataset='x', out='y', **{field: value})


def test_episodes_come_back(dataset, tmp_path):
  report = run(dataset, tmp_path / 'd', instruction='language_instruction')
  assert report['splits']['train']['episodes'] == 4
  source = EpisodeSource(tmp_path / 'd', 'train')
  actions = np.concatenate(
    [
      [step(t, n, s)['action'] for t in range(n - 1)]
      for s, n in enumerate(LENGTHS)
      if n > 1
    ]
  )
  low, high = actions.min(0), actions.max(0)
  for seed, length in enumerate(LENGTHS):
    found = source[seed]
    steps = [step(t, length, seed) for t in range(length)]
    np.testing.assert_array_equal(
      found['observation'], [s['observation']['image_0'] for s in steps]
    )
    given = np.array([s['action'] for s in steps])[: length - 1]
    back = (found['action']['action'][:-1] + 1) / 2 * (high - low) + low
    # The last component never moves, and has no width.
    np.testing.assert_allclose(
      back[:, :6], given[:, :6].reshape(-1, 6), atol=1e-6
    )
    last = np.arange(length) == length - 1
    np.testing.assert_array_equal(found['action_known'], ~last)
    np.testing.assert_array_equal(found['is_terminal'], last & (seed % 2 == 0))
    assert not found['reward'].any()
  assert source.index.attributes[1]['instruction'] == 'pick \u00fcp'
  assert source.index.attributes[0]['instruction'] == 'put'
  assert report['notes'][rlds_steps.LOST_REWARD] == 4


def test_actions_lead_to_frames_in_batches(dataset, tmp_path):
  run(dataset, tmp_path / 'd', reward_at='arrival', actions=('hand=grip:3',))
  truth = []
  for seed, length in enumerate(LENGTHS):
    steps = [step(t, length, seed) for t in range(length)]
    # No action of a one-frame episode is known; any will do.
    led = steps[:-1] or steps
    truth.append(
      batches.Truth(
        frames=np.array([s['observation']['image_0'] for s in steps]),
        actions={'hand': np.array([s['grip'] for s in led])},
        rewards=np.array([s['reward'] for s in steps[1:]]),
        terminal=bool(steps[-1]['is_terminal']),
      )
    )
  batches.check(tmp_path / 'd', truth)


def test_rewards_can_stand_on_the_frame_they_were_reached_with(
  dataset, tmp_path
):
  run(dataset, tmp_path / 'd', reward_at='arrival')
  source = EpisodeSource(tmp_path / 'd', 'train')
  for seed, length in enumerate(LENGTHS):
    expected = np.arange(length) == length - 2
    np.testing.assert_array_equal(source[seed]['reward'], expected)


def test_several_components_of_any_kind(dataset, tmp_path):
  names = ('arm=action', 'hand=grip:3', 'start=is_first')
  run(dataset, tmp_path / 'd', actions=names, size=(4, 5))
  source = EpisodeSource(tmp_path / 'd', 'train')
  assert [(a.name, a.kind, a.size) for a in source.description.actions] == [
    ('arm', 'continuous', 7), ('hand', 'categorical', 3),
    ('start', 'binary', 1),
  ]  # fmt: skip
  found = source[2]
  assert found['observation'].shape == (9, 4, 5, 3)
  expected = [int(step(t, 9, 2)['grip']) for t in range(8)]
  assert found['action']['hand'][:-1].tolist() == expected
  assert found['action']['start'][:, 0].tolist() == [1] + [0] * 8


def test_tfrecord_files_are_read_and_truncation_is_seen(tmp_path):
  records = [b'first', b'', b'third record']
  data = b''.join(
    struct.pack('<Q', len(r)) + b'\0' * 4 + r + b'\0' * 4 for r in records
  )
  path = tmp_path / 'x.tfrecord-00000-of-00001'
  path.write_bytes(data)
  assert list(rlds_records.read_records(path)) == records
  for cut in (3, 20, len(data) - 1):
    path.write_bytes(data[:cut])
    with pytest.raises(lib.convert.SkipError, match='truncated tfrecord'):
      list(rlds_records.read_records(path))
  path.write_bytes(struct.pack('<Q', 1 << 60) + b'\0' * 40)
  with pytest.raises(lib.convert.SkipError, match='truncated tfrecord'):
    list(rlds_records.read_records(path))


def test_a_missing_file_costs_its_episodes_only(dataset, tmp_path, monkeypatch):
  inputs = lib._inputs

  def one_more(builder, config):
    found = inputs(builder, config)
    broken = tmp_path / 'robots-train.array_record-00001-of-00002'
    broken.write_bytes(b'no records')
    return [*found, lib.convert.Input(
      name=broken.name, split='train', what=str(broken)
    )]  # fmt: skip

  monkeypatch.setattr(lib, '_inputs', one_more)
  report = run(dataset, tmp_path / 'd')
  assert report['splits']['train']['episodes'] == 4
  ((name, reason),) = report['skipped'].items()
  assert name.endswith('00001-of-00002') and 'damaged array_record' in reason


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (
      {'image': 'observation/camera'},
      r"image = 'observation/camera': .*it has \['action', 'grip', .*image_0",
    ),
    (
      {'actions': ('a=torque',)},
      r"actions = 'torque': a step has no such field",
    ),
    ({'actions': ('a=grip',)}, 'whole numbers; write a=FIELD:CLASSES'),
    ({'actions': ('grip',)}, r"actions = \('grip',\): needs at least one"),
    ({'splits': ('valid',)}, "no split 'valid'; there are"),
    ({'frame_rate': -1.0}, r'frame_rate = -1\.0'),
  ],
)
def test_mistakes_are_named(dataset, tmp_path, kwargs, message):
  with pytest.raises(ValueError, match=message):
    run(dataset, tmp_path / 'd', **kwargs)


def test_no_dataset_and_no_rlds_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no dataset_info\.json'):
    run(tmp_path, tmp_path / 'd')
