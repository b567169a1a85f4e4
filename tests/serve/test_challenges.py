"""What to try in a dream, and whether it is done."""

import json

import numpy as np
from PIL import Image
import pytest

from dreamer4_jax.cli.main import main
from dreamer4_jax.envs import Palette, Tiles
from dreamer4_jax.play.serve import challenges as lib
from dreamer4_jax.play.serve import game, scoring
from tests.serve.games import Table, challenged_game, tiny_game

TILES = Tiles(
  side=2,
  pictures=np.stack([np.full((2, 2, 1), x, np.uint8) for x in (0, 100, 200)]),
  names=('grass', 'tree', 'cow on grass'),
)


def picture(*rows):
  """A picture of tiles by the first letter of their names, a bit blurred."""
  grey = {'g': 12, 't': 88, 'c': 190}
  small = np.array([[grey[x] for x in row] for row in rows], np.uint8)
  return small.repeat(2, 0).repeat(2, 1)[:, :, None]


def challenges(*stages, **given):
  own = lib.Challenge(name='try', stages=stages, **given)
  return lib.Challenges((own,), Palette(TILES, TILES.pictures))


@pytest.mark.parametrize(
  ('stage', 'shown'),
  [
    ({'0,1': 'tree'}, True),
    ({'1,0': 'tree'}, False),
    ({'1,0': 'grass'}, True),
    ({'1,2': 'cow*'}, True),
    ({'0,1': 'cow*|tree'}, True),
    ({'0,1': 'tree', '1,2': 'tree'}, False),
    ({'any': 'cow on *'}, True),
    ({'none': 'cow on *'}, False),
    ({'none': '*sand|*path|g'}, None),
  ],
)
def test_a_stage_is_what_is_seen(stage, shown):
  if shown is None:
    with pytest.raises(ValueError, match=r'must be of .*cow on grass'):
      challenges(stage)
    return
  seen = picture('gtg', 'ggc')
  assert challenges(stage).shows(seen, stage) is shown


def test_stages_are_passed_in_order_and_one_at_a_time():
  own = challenges({'0,0': 'tree'}, {'0,0': 'grass'}, {'0,0': 'grass'})
  film = ['g', 't', 't', 'g', 'g', 'c']
  stage, passed = 0, []
  for name in film:
    stage = own.advance(0, stage, picture(name))
    passed.append(stage)
  assert passed == [0, 1, 1, 2, 3, 3]
  assert own.read(picture('tc')) == [['tree', 'cow on grass']]


def test_a_place_that_no_picture_has_is_named():
  own = challenges({'3,1': 'tree'})
  with pytest.raises(ValueError, match="'3,1': the picture has 1 rows and 2"):
    own.advance(0, 0, picture('gt'))


def test_keys_are_labels_that_may_repeat():
  own = lib.Challenge(
    name='x', stages=({'any': '*'},), keys=('left*2', '', 'jump+grab', '*3')
  )
  assert own.held == [['left'], ['left'], [], ['jump', 'grab'], [], [], []]


@pytest.mark.parametrize(
  ('plain', 'message'),
  [
    ('{', 'is not JSON'),
    ('{}', 'must be a list'),
    ('[3]', 'must be an object of'),
    ([{'name': 'a', 'stages': [{'any': 'tree'}], 'hint': 1}], 'hint'),
    ([{'name': 'a'}], 'stages'),
    ([{'name': '', 'stages': [{'any': 'tree'}]}], 'must not be empty'),
    ([{'name': 'a', 'stages': []}], 'at least one'),
    ([{'name': 'a', 'stages': [{}]}], 'at least one'),
    ([{'name': 'a', 'stages': [{'any': 'tree'}], 'clip': [3]}], 'a: clip'),
    ([{'name': 'a', 'stages': [{'any': 'tree'}], 'clip': [3, 'x']}], 'a: clip'),
    ([{'name': 'a', 'stages': ['tree']}], 'stages|place'),
    ([{'name': 'a', 'stages': [{'up': 'tree'}]}], 'must be ROW,COLUMN'),
    ([{'name': 'a', 'stages': [{'0,1': 'rock'}]}], "'rock': must be of"),
    (
      [{'name': 'a', 'stages': [{'any': 'tree'}], 'keys': ['left*x']}],
      'LABEL[*]TIMES',
    ),
    (
      [{'name': 'a', 'stages': [{'any': 'tree'}], 'keys': ['left*99999']}],
      'at most 10000',
    ),
  ],
)
def test_what_is_wrong_with_a_file_is_said(plain, message, tmp_path):
  path = tmp_path / 'own.json'
  path.write_text(plain if isinstance(plain, str) else json.dumps(plain))
  with pytest.raises(ValueError, match=message):
    lib.read_challenges(path, TILES)


def test_a_session_tells_how_far_it_is_and_rewinding_takes_it_back():
  table = Table(rows=1, game=challenged_game())
  session = table.sit()
  assert session.describe()['challenge'] == -1
  session.attempt(0)
  assert session.describe()['challenge'] == 0 and session.start_index == 3
  table.tick(0.5)
  stages = [0]
  for _ in range(60):
    table.act(session, 'move:1')
    stages.append(session.timeline[session.position].stage)
  assert stages[-1] == 2 and sorted(stages) == stages
  passed = stages.index(1)
  session.rewind(passed - 1)
  session.choose(paused=False)
  table.act(session, 'move:1')
  assert session.timeline[passed].stage == 1  # The same keys, the same frame.
  session.reset()
  assert session.challenge == 0
  session.start(1)
  assert session.challenge == -1
  with pytest.raises(ValueError, match='there are 1 challenges'):
    session.attempt(1)


def test_keys_are_scored_with_their_seed_and_with_others():
  own = challenged_game()
  scorer = scoring.Scorer(own)
  first, again = scorer.play(0, 7), scorer.play(0, 7)
  assert np.array_equal(first.frames, again.frames)
  assert len(first.frames) == 44 and len(first.stages) == 44
  assert first.done == first.stages.index(2)
  (score,) = scorer.score(seeds=2)
  assert score.attempt.done == first.done and 0 <= score.again <= 2
  (impossible,) = scoring.Scorer(
    _with(own, keys=('left',), stages=({'none': 'old|new'},))
  ).score(seeds=1)
  assert impossible.attempt.done is None and impossible.again == 0


def _with(own, **changes):
  (challenge,) = own.challenges.all
  changed = lib.dataclasses.replace(challenge, **changes)
  found = lib.dataclasses.replace(own.challenges, all=(changed,))
  return lib.dataclasses.replace(own, challenges=found)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'keys': ('fly',)}, "'fly': must be of .*left"),
    ({'keys': ('',)}, 'has no action for it'),
    ({'stages': ({'0,0': 'old'},)}, 'seen before anybody acts'),
  ],
)
def test_keys_that_mean_nothing_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    scoring.Scorer(_with(challenged_game(), **changes)).play(0, 7)


def test_a_world_without_challenges_has_nothing_to_score():
  with pytest.raises(ValueError, match='give some with --challenges'):
    scoring.Scorer(tiny_game())


def test_the_world_that_ships_can_do_what_its_card_says(tmp_path, capsys):
  page = tmp_path / 'docs' / 'tasks.md'
  args = ['play', '--pretrained', 'doorkey', '--tasks', '--page', str(page)]
  assert main(args) == 0
  printed = capsys.readouterr().out
  whole = game.load_game(game.find_pretrained('doorkey')).challenges
  assert len(whole.all) == 8
  assert printed.count('| frame ') == 8 and 'not done' not in printed
  text = page.read_text()
  assert text.startswith('# Tasks in the dream: Navix-DoorKey')
  assert '8 of 8 are done' in text and printed.strip() in text
  with Image.open(page.with_suffix('.png')) as image:
    assert image.width > 500 and image.height > 1000


def test_a_page_is_of_the_tasks(capsys):
  assert main(['play', 'x', '--page', 'tasks.md']) == 2
  assert 'belongs to --tasks' in capsys.readouterr().err
