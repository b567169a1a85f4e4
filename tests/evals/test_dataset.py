"""Reports of what is in a dataset, on one written by hand."""

import json

import imageio.v3 as imageio
import numpy as np
import pytest

from data_pipelines import writer
from dreamer4_jax.cli.main import main
from dreamer4_jax.config import ActionComponent
from dreamer4_jax.data import format as fmt
from dreamer4_jax.evals import dataset

ACTIONS = (
  ActionComponent(name='move', kind='categorical', size=2),
  ActionComponent(name='keys', kind='binary', size=3),
  ActionComponent(name='aim', kind='continuous', size=2),
)
LABELS = {'move': ['left', 'right'], 'keys': ['w', 'a', 'jump']}


def episode(length, known, reward, world, terminal):
  t = np.arange(length)
  events = np.zeros((length, 2), bool)
  events[0, 0] = events[1, 0] = reward > 0
  return writer.Episode(
    steps={
      'observation': np.full((length, 8, 8, 3), 30, np.uint8),
      'action': {
        'move': t % 2,
        'keys': np.tile([1, 0, 1], (length, 1)),
        'aim': np.full((length, 2), -0.25),
      },
      'action_known': t < known,
      'reward': np.where(t == 0, reward, 0.0),
      'events': events,
    },
    terminal=terminal,
    attributes={'world': world, 'number': length},
  )


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return writer.write_dataset(
    tmp_path_factory.mktemp('data') / 'd',
    description=fmt.Description(
      actions=ACTIONS,
      tasks=('log', 'stone'),
      frame_shape=(8, 8, 3),
      frame_rate=10.0,
      labels=LABELS,
    ),
    splits={
      'train': [
        episode(9, 8, 2.0, 'nether', True),
        episode(27, 0, 0.0, 'end', False),
      ],
      'test': [episode(4, 3, 1.0, 'end', False)],
    },
  )


def test_the_summary_counts(path):
  found = dataset.summary(path)
  assert list(found['tasks']) == ['log', 'stone']
  train = found['splits']['train']
  assert (train['episodes'], train['frames']) == (2, 36)
  assert train['hours'] == pytest.approx(36 / 10 / 3600)
  assert train['actions_known'] == pytest.approx(8 / 36)
  assert train['length'] == {'min': 9, 'mean': 18, 'max': 27}
  assert train['return'] == {'min': 0, 'mean': 1, 'max': 2}
  assert train['terminal'] == 0.5
  assert train['events'] == {
    'log': {'count': 2, 'episodes': 0.5},
    'stone': {'count': 0, 'episodes': 0.0},
  }
  assert train['attributes']['world'] == {'nether': 1, 'end': 1}
  assert found['splits']['test']['episodes'] == 1


def test_info_prints_it(path, capsys):
  assert main(['data', 'info', str(path)]) == 0
  text = capsys.readouterr().out
  for part in (
    'frames 8x8x3, chunks of 8, 10 frames/s',
    'move (categorical, 2), keys (binary, 3), aim (continuous, 2)',
    'train: 2 episodes, 36 frames, 0.00 h',
    'actions known: 22.2% of the steps',
    'event log: 2, in 50.0% of the episodes',
    'world: nether (1), end (1)',
  ):
    assert part in text
  assert main(['data', 'info', '--json', str(path)]) == 0
  assert json.loads(capsys.readouterr().out)['splits']['test']['frames'] == 4


def test_novelty_is_measured_and_says_so(path, capsys):
  assert main(['data', 'novelty', str(path)]) == 0
  weights = path / 'novelty-train.npy'
  assert np.load(weights).shape == (36,)
  assert f'{weights}: 36 frames; ' in capsys.readouterr().out
  assert main(['data', 'novelty', str(path), '--split', 'valid']) == 2
  assert 'split: found chunks' in capsys.readouterr().err
  weights.unlink()


def test_show_draws_episodes_with_their_actions(path, tmp_path, capsys):
  command = ['data', 'show', str(path), '--out', str(tmp_path / 'x')]
  assert main([*command, '--frames', '20']) == 0
  printed = capsys.readouterr().out.split()
  assert printed == [str(tmp_path / f'x/train.{s}') for s in ('png', 'mp4')]
  sheet = imageio.imread(printed[0])
  video = np.stack(list(imageio.imiter(printed[1])))
  assert len(video) == 20
  assert sheet.shape[0] >= 2 * 128 and video.shape[2] >= 2 * 128
  # The frames are there, and something is written beneath them.
  assert (sheet == 30).mean() > 0.3
  assert ((sheet != 30) & (sheet < 150)).any()


@pytest.mark.parametrize(
  ('number', 'value', 'text'),
  [
    (0, np.int32(1), 'right'),
    (1, np.array([1, 0, 1]), 'w jump'),
    (1, np.array([0, 0, 0]), '-'),
    (2, np.array([0.5, -1.0]), '+0.50 -1.00'),
  ],
)
def test_actions_are_spelled(number, value, text):
  part = ACTIONS[number]
  assert dataset.spell(part, value, LABELS.get(part.name)) == text


def test_mistakes_are_named(path, capsys, tmp_path):
  assert main(['data', 'info', str(tmp_path)]) == 2
  assert 'no dataset there' in capsys.readouterr().err
  assert main(['data', 'show', str(path), '--split', 'valid']) == 2
  assert "expected some in 'valid'" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    main(['data', 'show', str(path), '--episodes', '0'])
