"""What recordings contain, by their players."""

import numpy as np
import pytest

from data_pipelines import writer
from data_pipelines.episodes import Episode
from dreamer4_jax.config import ActionComponent, Config
from dreamer4_jax.data.format import Description
from dreamer4_jax.evals.recorded import recorded

MOVE = ActionComponent(name='move', kind='categorical', size=3)


def write(path, attributes, events):
  """Episodes of six steps; `events` are (episode, row, task)."""

  def episode(number):
    shown = np.zeros((7, 2), np.uint8)
    for who, row, task in events:
      shown[row, task] += who == number
    return Episode(
      steps={
        'observation': np.zeros((7, 8, 8, 3), np.uint8),
        'action': {'move': np.zeros(7, np.int32)},
        'action_known': np.arange(7) < 6,
        'reward': np.where(np.arange(7) == 2, number, 0).astype(np.float32),
        'events': shown,
      },
      terminal=False,
      attributes=attributes[number],
    )

  description = Description(
    actions=(MOVE,), tasks=('wood', 'stone'), frame_shape=(8, 8, 3)
  )
  splits = {s: map(episode, range(len(attributes))) for s in ('train', 'test')}
  writer.write_dataset(path, description=description, splits=splits)
  return Config(actions=(MOVE,), tasks=('stone', 'wood')).edit(
    {'data.sources.0.path': str(path), 'tokenizer.frame_shape': (8, 8, 3)}
  )


EVENTS = [(0, 1, 0), (0, 3, 0), (0, 4, 1), (2, 0, 1), (2, 5, 0)]


def test_players_are_told_apart_and_the_first_of_each_event_counts(tmp_path):
  noises = [{'noise': 0.5}, {'noise': 0.1}, {'noise': 0.5}]
  config = write(tmp_path / 'd', noises, EVENTS)
  found = recorded(config, ('stone', 'wood', 'iron'))
  assert list(found) == ['recorded_0.1', 'recorded_0.5']
  calm, noisy = found.values()
  assert not calm.achieved.any() and calm.first.tolist() == [[-1, -1, -1]]
  # An event of row t is seen on the frame after it.
  assert noisy.first.tolist() == [[5, 2, -1], [1, 6, -1]]
  assert noisy.achieved.tolist() == [[True, True, False]] * 2
  assert noisy.length.tolist() == [6, 6]
  assert noisy.returns.tolist() == [0, 2]
  assert calm.summary()['episodes'] == 1


def test_success_is_what_the_prompt_asks_for_last(tmp_path):
  config = write(tmp_path / 'd', [{}] * 3, EVENTS)
  once = recorded(config, config.tasks)['recorded']
  assert once.success.tolist() == [True, False, True]
  twice = recorded(config.edit({'prompt': ('stone', 'wood:2')}), config.tasks)
  assert twice['recorded'].success.tolist() == [True, False, False]


def test_rewards_alone_have_no_success(tmp_path):
  config = write(tmp_path / 'd', [{}], [])
  assert recorded(config, ('reward',))['recorded'].success is None
  with pytest.raises(ValueError, match='must have wood, which the prompt'):
    recorded(config, ('stone',))
