"""`dreamer4 data check`: what is right passes, what is wrong is named."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines import writer
from dreamer4_jax.cli.main import main
from dreamer4_jax.config import ActionComponent
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.data import format as fmt
from dreamer4_jax.evals import check
from dreamer4_jax.evals.check import motion, sample, timing
from tests.evals import small_worlds

TIMING = 'what a frame tells of the action at k'


def by_name(found):
  return {f.name: f for f in found}


def moved(clip, by):
  """A clip whose actions stand `by` rows late; those at its end are unknown."""
  at = np.arange(len(clip.known)) - by
  there = (at >= 0) & (at < len(at))
  at = at % len(at)
  return dataclasses.replace(
    clip, actions=clip.actions[at], known=clip.known[at] & there
  )


@pytest.mark.parametrize('name', small_worlds.WORLDS)
def test_a_shift_by_one_row_is_found_in_worlds_of_every_kind(tmp_path, name):
  path = small_worlds.write(tmp_path / 'd', name)
  drawn = sample.draw(EpisodeSource(path, 'train'), check.CLIPS)
  for by in (-1, 0, 1):
    curve = timing.measure([moved(clip, by) for clip in drawn.clips])
    when = check.when(curve)
    assert (when.value, when.verdict) == (by, 'wrong' if by else 'fine'), curve


@pytest.mark.parametrize('by', [-1, 0, 1])
def test_a_dataset_that_is_shifted_is_wrong_for_that_alone(tmp_path, by):
  found = check.examine(small_worlds.write(tmp_path / 'd', 'grid', by=by))
  wrong = [f for f in found if f.verdict == 'wrong']
  assert [f.name for f in wrong] == [TIMING] * abs(by)
  if by:
    side = 'late' if by > 0 else 'early'
    assert f'1 row(s) {side}' in wrong[0].advice


def test_a_world_that_is_slow_is_no_mistake_once_it_is_said(tmp_path):
  path = small_worlds.write(tmp_path / 'd', 'grid', by=-1)
  assert by_name(check.examine(path, lag=1))[TIMING].verdict == 'fine'
  with pytest.raises(ValueError, match='lag: found 3, expected 0 to 2'):
    check.examine(path, lag=3)


def curve(gain, error=0.001):
  gain = dict(zip(range(-3, 4), gain, strict=True))
  same = dict.fromkeys(gain, error)
  return timing.Curve(gain=gain, error=same, margin=same, rows=9, groups=9)


@pytest.mark.parametrize(
  ('gain', 'verdict', 'onset'),
  [
    ((0, 0, 0, 0.4, 0, 0, 0), 'fine', 0),
    # It shows late, and for long, but not before it is chosen.
    ((0.1, 0.2, 0.3, 0.2, 0, 0, 0), 'fine', 0),
    ((0, 0, 0.2, 0.3, 0.2, 0, 0), 'wrong', 1),
    ((0, 0.2, 0.2, 0, 0, 0, 0), 'wrong', -1),
    # Is the gain at +1 large? Nobody knows.
    ((0, 0, 0, 0.4, 0.061, 0, 0), 'unknown', None),
    ((0, 0, 0, 0.002, 0, 0, 0), 'look', None),
  ],
)
def test_the_last_large_gain_decides_unless_there_is_doubt(
  gain, verdict, onset
):
  found = check.when(curve(gain))
  assert (found.verdict, found.value) == (verdict, onset)
  if onset is None:
    assert found.text.startswith('cannot tell')


def test_actions_that_do_nothing_are_no_mistake_of_timing():
  rng = np.random.default_rng(0)
  clips = [
    timing.Clip.of_frames(
      i,
      rng.integers(0, 256, (30, 8, 8, 3), np.uint8),
      np.eye(3)[rng.integers(0, 3, 30)],
      np.ones(30, bool),
    )
    for i in range(20)
  ]
  assert timing.measure(clips).onset is None
  assert timing.measure(clips[:2]) is None
  assert check.when(None).verdict == 'unknown'


def test_how_far_a_picture_moved_is_seen_at_its_offset():
  rng = np.random.default_rng(0)
  big = rng.random((60, 60, 3)).astype(np.float32)
  frames = np.stack([big[:40, :40], big[3:43, 2:42]])
  found = motion._offsets(frames.mean(axis=-1), 8).reshape(17, 17)
  assert np.unravel_index(found.argmax(), found.shape) == (8 - 3, 8 - 2)


@pytest.mark.parametrize('shape', [(360, 640, 3), (5, 7, 1), (63, 63, 4)])
def test_frames_of_any_size_are_described(shape):
  frames = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
  small = motion.shrink(frames)
  assert max(small.shape[1:3]) <= motion.FINE and small.shape[3] <= 3
  assert 0 <= small.min() and small.max() <= 1
  found = motion.moving(small)
  assert len(found) == 2 and np.isfinite(found).all()


def episode(seed, length=20, black=False, **steps):
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 256, (length, 8, 8, 3), np.uint8)
  if black:
    frames[5:] = 0
  return writer.Episode(
    steps={
      'observation': frames,
      'action': {
        'a': np.ones(length, int),
        'b': rng.uniform(0, 1, (length, 2)),
      },
      'action_known': np.arange(length) < length - 1,
      'reward': np.zeros(length),
      **steps,
    },
    terminal=False,
    attributes={'file': f'{seed}.mp4'},
  )


def written(path, train, test, **changes):
  space = (
    ActionComponent(name='a', kind='categorical', size=4),
    ActionComponent(name='b', kind='continuous', size=2),
  )
  known = {'actions': space, 'tasks': (), **changes}
  return writer.write_dataset(
    path,
    description=fmt.Description(frame_shape=(8, 8, 3), **known),
    splits={'train': train, 'test': test} if test else {'train': train},
  )


def test_mistakes_are_named(tmp_path, capsys):
  path = written(
    tmp_path / 'd',
    [episode(i, black=True) for i in range(6)],
    [episode(3, black=True), episode(9, black=True)],
  )
  assert main(['data', 'check', str(path), '--json']) == 1
  found = {f['name']: f for f in json.loads(capsys.readouterr().out)}
  assert found['black']['value'] == pytest.approx(0.75)
  assert found['black']['verdict'] == 'wrong'
  assert found['a: values that occur']['verdict'] == 'wrong'
  assert found['a: values that occur']['text'] == '1 of 4, not 0, 2, 3'
  assert found['b: values that occur']['verdict'] == 'fine'
  leak = found['episodes of test that train has too']
  assert (leak['text'], leak['verdict']) == ('1 of 2', 'wrong')
  assert found['file in train and test']['text'] == '1, as 3.mp4'
  assert found[TIMING]['verdict'] == 'unknown'
  assert main(['data', 'check', str(path)]) == 1
  page = capsys.readouterr().out
  assert '| black | 0.750 | at most 0.020 | **wrong** |' in page


def test_video_alone_is_examined_too(tmp_path, capsys):
  unknown = {'action': {}, 'action_known': np.zeros(20, bool)}
  clips = [episode(i, **unknown) for i in range(4)]
  path = written(tmp_path / 'd', clips, [], actions=())
  assert main(['data', 'check', str(path)]) == 0
  page = capsys.readouterr().out
  assert 'none: video alone' in page and TIMING not in page
  assert '| held out | nothing | another split | look at this |' in page


def test_latents_are_probed_as_they_are(tmp_path):
  rng = np.random.default_rng(0)
  clips = []
  for i in range(30):
    move = rng.integers(0, 4, 40)
    place = np.cumsum(np.eye(4)[move], axis=0)[:, None] + np.zeros((1, 2, 1))
    z = np.concatenate([np.zeros((1, 2, 4)), place[:-1]]).astype(np.float16)
    action = {'a': move, 'b': rng.uniform(0, 1, (40, 2))}
    clips.append(episode(i, 40, observation=z, action=action))
  path = written(
    tmp_path / 'd', clips, [], tokenizer='abc', latent_shape=(2, 4)
  )
  found = by_name(check.examine(path))
  assert found[TIMING].verdict == 'fine' and 'black' not in found
