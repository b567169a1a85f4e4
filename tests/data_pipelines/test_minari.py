"""Minari datasets, made with Minari itself."""

import numpy as np
import pytest

gymnasium = pytest.importorskip('gymnasium')
minari = pytest.importorskip('minari')
pytest.importorskip('h5py')

from data_pipelines import minari_datasets as lib  # noqa: E402
from dreamer4_jax.data import EpisodeSource  # noqa: E402
from tests.data_pipelines import batches  # noqa: E402

LENGTHS = (5, 8, 2)


class Game(gymnasium.Env):
  """Shows its episode and step; ends or is cut after some steps."""

  def __init__(self, kind):
    spaces = gymnasium.spaces
    image = spaces.Box(0, 255, (6, 8, 3), np.uint8)
    self.observation_space = (
      spaces.Dict(
        {
          'camera': image,
          'arm': spaces.Dict({'at': spaces.Box(-99.0, 99.0, (2,))}),
        }
      )
      if kind == 'dict'
      else image
    )
    self.action_space = (
      spaces.Box(np.float32([-2, 0]), np.float32([2, 10]))
      if kind == 'box'
      else spaces.Discrete(4, start=1)
    )
    self.kind, self.episode = kind, -1

  def reset(self, *, seed=None, options=None):
    self.t, self.episode = 0, self.episode + 1
    return self._see(), {}

  def step(self, action):
    self.t += 1
    over = self.t >= LENGTHS[self.episode]
    terminal = over and self.episode == 1
    return self._see(), float(self.t), terminal, over and not terminal, {}

  def _see(self):
    image = np.full((6, 8, 3), 20 * self.episode + self.t, np.uint8)
    at = np.array([self.episode, self.t], np.float32)
    seen = {'camera': image, 'arm': {'at': at}}
    return seen if self.kind == 'dict' else image


def make(directory, kind, monkeypatch):
  """Records three episodes; returns the dataset's directory and actions."""
  monkeypatch.setenv('MINARI_DATASETS_PATH', str(directory))
  env = minari.DataCollector(Game(kind))
  env.action_space.seed(0)
  actions = []
  for length in LENGTHS:
    env.reset()
    actions.append([env.action_space.sample() for _ in range(length)])
    for action in actions[-1]:
      env.step(action)
  env.create_dataset(dataset_id=f'game/{kind}-v0')
  env.close()
  return directory / 'game' / f'{kind}-v0', actions


def run(dataset, out, **kwargs):
  config = lib.MinariConfig(
    **{
      'dataset': str(dataset),
      'out': str(out),
      'workers': 1,
      'eval_share': 0.0,
      **kwargs,
    }
  )
  return lib.convert_minari(config, progress=False)


@pytest.mark.parametrize('kind', ['image', 'dict', 'box'])
def test_episodes_come_back(tmp_path, monkeypatch, kind):
  dataset, actions = make(tmp_path / 'in', kind, monkeypatch)
  image = 'camera' if kind == 'dict' else ''
  report = run(dataset, tmp_path / 'd', image=image)
  assert report['splits']['train']['episodes'] == 3
  source = EpisodeSource(tmp_path / 'd', 'train')
  for i, length in enumerate(LENGTHS):
    found = source[i]
    t = np.arange(length + 1)
    np.testing.assert_array_equal(found['observation'][:, 0, 0, 0], 20 * i + t)
    given = np.array(actions[i])
    if kind == 'box':
      back = (found['action']['action'][:-1] + 1) / 2 * [4, 10] + [-2, 0]
      np.testing.assert_allclose(back, given, atol=1e-5)
    else:
      np.testing.assert_array_equal(found['action']['action'][:-1], given - 1)
    np.testing.assert_array_equal(found['action_known'], t < length)
    np.testing.assert_array_equal(
      found['reward'], np.where(t < length, t + 1, 0)
    )
    assert found['is_terminal'][-1] == (i == 1)


@pytest.mark.parametrize('size', [None, (3, 4)])
def test_vectors_are_kept_by_name(tmp_path, monkeypatch, size):
  dataset, _ = make(tmp_path / 'in', 'dict', monkeypatch)
  run(
    dataset, tmp_path / 'd', image='camera', vectors=('at=arm/at',), size=size
  )
  source = EpisodeSource(tmp_path / 'd', 'train')
  assert [(v.name, v.size) for v in source.description.vectors] == [('at', 2)]
  for i, length in enumerate(LENGTHS):
    found = source[i]['vector']['at']
    assert (found[:, 0] == i).all()
    np.testing.assert_array_equal(found[:, 1], np.arange(length + 1))
  with pytest.raises(ValueError, match="vectors = 'leg': no such observation"):
    run(dataset, tmp_path / 'e', image='camera', vectors=('leg',))
  with pytest.raises(ValueError, match=r"vectors = 'arm': is a dictionary"):
    run(dataset, tmp_path / 'e', image='camera', vectors=('arm',))


@pytest.mark.parametrize('vectors', [('arm/at',), ('at=a', 'at=b')])
def test_names_of_vectors_are_distinct_identifiers(vectors):
  with pytest.raises(ValueError, match=r'vectors = .*must be NAME=KEY or KEY'):
    lib.MinariConfig(dataset='x', out='y', vectors=vectors)


def test_actions_lead_to_frames_in_batches(tmp_path, monkeypatch):
  dataset, actions = make(tmp_path / 'in', 'image', monkeypatch)
  run(dataset, tmp_path / 'd')
  shown = lambda i, n: 20 * i + np.arange(n + 1, dtype=np.uint8)
  truth = [
    batches.Truth(
      frames=np.broadcast_to(
        shown(i, n)[:, None, None, None], (n + 1, 6, 8, 3)
      ),
      actions={'action': np.array(actions[i]) - 1},
      rewards=1.0 + np.arange(n),
      terminal=i == 1,
    )
    for i, n in enumerate(LENGTHS)
  ]
  batches.check(tmp_path / 'd', truth)


def test_frames_are_resized(tmp_path, monkeypatch):
  dataset, _ = make(tmp_path / 'in', 'image', monkeypatch)
  run(dataset, tmp_path / 'd', size=(3, 4))
  found = EpisodeSource(tmp_path / 'd', 'train')[0]['observation']
  assert found.shape == (6, 3, 4, 3) and found[2].max() == 2


def test_mistakes_are_named(tmp_path, monkeypatch):
  dataset, _ = make(tmp_path / 'in', 'dict', monkeypatch)
  with pytest.raises(
    ValueError, match=r"is a dictionary of \['arm', 'camera'\]"
  ):
    run(dataset, tmp_path / 'd')
  with pytest.raises(ValueError, match="image = 'depth': no such observation"):
    run(dataset, tmp_path / 'd', image='depth')
  with pytest.raises(FileNotFoundError, match='no Minari dataset there'):
    run(tmp_path, tmp_path / 'd')
  data = next(dataset.rglob('*.hdf5'))
  data.write_bytes(data.read_bytes()[:100])
  lib.open_dataset.cache_clear()
  with pytest.raises(ValueError, match=r'game.*dict-v0.*read'):
    run(dataset, tmp_path / 'd', image='camera')


class Wild(Game):
  """Takes any action, as many environments do, and records it as it is."""

  def __init__(self):
    super().__init__('box')
    self.action_space = gymnasium.spaces.Box(-10.0, 10.0, (2,), np.float64)


@pytest.fixture
def wild(tmp_path, monkeypatch):
  """A dataset with actions outside their box."""
  monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path / 'in'))
  env = minari.DataCollector(Wild())
  for e, length in enumerate(LENGTHS):
    env.reset()
    for t in range(length):
      env.step(np.array([3.0, -5.0] if (e, t) == (1, 2) else [0.5, -1.0]))
  env.create_dataset(dataset_id='game/wild-v0')
  env.close()
  root = tmp_path / 'in/game/wild-v0'
  # The box that the environment had declared is smaller.
  about = root / 'data/metadata.json'
  text = about.read_text()
  assert '10.0' in text
  about.write_text(text.replace('-10.0', '-1.0').replace('10.0', '1.0'))
  lib.open_dataset.cache_clear()
  return root


def test_an_action_outside_its_box_is_refused_or_clipped_and_counted(
  wild, tmp_path
):
  """Policies draw actions that environments clip in silence.

  github.com/liuzuxin/DSRL/issues/5,
  github.com/Farama-Foundation/Minari/issues/127
  """
  report = run(wild, tmp_path / 'd')
  assert report['splits']['train']['episodes'] == 2
  (note,) = report['notes']
  assert note == (
    'episode skipped: action: found [3.0, -5.0] in row 2, expected -1.0 to 1.0 '
    'at place 0; --clip-actions clips and counts such actions'
  )
  report = run(wild, tmp_path / 'e', clip_actions=True)
  assert report['notes'] == {lib.CLIPPED: 1}
  found = EpisodeSource(tmp_path / 'e', 'train')[1]['action']['action']
  assert found[2].tolist() == [1.0, -1.0] and found[1].tolist() == [0.5, -1.0]


def test_the_report_names_nothing_that_the_command_lacks(tmp_path, monkeypatch):
  dataset, _ = make(tmp_path / 'in', 'image', monkeypatch)
  monkeypatch.setattr(
    lib.minari.MinariDataset,
    'action_space',
    property(lambda self: gymnasium.spaces.Text(3)),
  )
  lib.open_dataset.cache_clear()
  with pytest.raises(ValueError, match='its actions are Text') as error:
    run(dataset, tmp_path / 'd')
  assert 'EnvConfig' not in str(error.value)


@pytest.mark.parametrize('fit', ['crop', 'pad'])
def test_pictures_follow_fit(tmp_path, monkeypatch, fit):
  dataset, _ = make(tmp_path / 'in', 'image', monkeypatch)
  run(dataset, tmp_path / 'd', size=(6, 6), fit=fit)
  found = EpisodeSource(tmp_path / 'd', 'train')[0]['observation'][3]
  # Padded, 4.5 rows of picture are rounded to five.
  shown = found if fit == 'crop' else found[:5]
  assert (shown == 3).all() and not found[len(shown) :].any()
