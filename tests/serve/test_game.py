"""Worlds to be played: from runs, and as packages."""

import json
import shutil
import types

import jax
import numpy as np
import pytest

from dreamer4_jax.checkpoint import exported
from dreamer4_jax.cli.main import main
from dreamer4_jax.data import EpisodeSource, read_clips
from dreamer4_jax.envs import Tiles
from dreamer4_jax.play.serve import game
from tests.play.runs import write_run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('whole'))


@pytest.fixture(scope='module')
def package(run, tmp_path_factory):
  out = tmp_path_factory.mktemp('package') / 'tiny'
  args = ['export', str(run), '--play', '--out', str(out), '--starts', '5']
  assert main(args) == 0
  return out


def test_a_run_is_played_as_it_was_trained(run):
  found = game.load_game(run, starts=6)
  rules = found.rules()
  assert rules.steps == (2, 1, 4, 8) and rules.level == 7
  assert len(rules.starts) == 6 and rules.tasks == ('key', 'door')
  held = np.asarray(found.loaded.contexts.task)[:, -1]
  assert rules.starts == tuple(held.tolist())
  assert rules.policy and found.loaded.dream.termination == 'never'
  assert game.load_game(run, starts=1, steps=4).rules().steps[0] == 4


def test_a_world_without_an_agent_is_played_by_people(tmp_path):
  young = write_run(tmp_path, ['dynamics'])
  rules = game.load_game(young, starts=2).rules()
  assert not rules.policy and rules.tasks == ()


def test_a_package_is_the_same_world_in_little(run, package):
  small = game.load_game(package)
  whole = game.load_game(run, starts=5)
  assert small.rules().steps == whole.rules().steps
  assert small.loaded.dream.world.config == whole.loaded.dream.world.config
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  jax.tree.map(near, small.loaded.params, whole.loaded.params)
  key = jax.random.key(0)
  shown = [
    jax.jit(own.loaded.dream.reset)(
      own.loaded.params, own.loaded.contexts, key
    )[1]
    for own in (small, whole)
  ]
  apart = np.abs(shown[0].frame.astype(int) - shown[1].frame.astype(int))
  assert apart.max() <= 4
  # Nothing but what is needed, and in half the bytes.
  weights, _ = exported.load(package)
  assert {x.dtype for x in jax.tree.leaves(weights)} == {np.dtype('float16')}
  assert 'prior' not in weights and 'value' in weights
  card = (package / 'README.md').read_text()
  assert 'dreamer4 play' in card and 'has not been evaluated' in card


def test_the_card_has_the_figures_of_the_evaluation(run, tmp_path):
  results = {'agents': {'rl': {'success': 0.75, 'episodes': 40}}}
  (run / 'results.json').write_text(json.dumps(results))
  out = game.save_game(run, tmp_path / 'out', starts=2)
  assert '| rl | 40 | 75.0% |' in (out / 'README.md').read_text()
  with pytest.raises(FileExistsError, match='exists; pass overwrite=True'):
    game.save_game(run, out, starts=2)


def test_what_is_too_large_is_not_written(run, tmp_path, monkeypatch):
  monkeypatch.setattr(game, 'MOST_BYTES', 1000)
  with pytest.raises(ValueError, match=r'must be at most 1,000; take fewer'):
    game.save_game(run, tmp_path / 'out', starts=2)
  assert not (tmp_path / 'out').exists()


def test_a_package_that_lacks_a_file_is_named(package, tmp_path):
  broken = shutil.copytree(package, tmp_path / 'broken')
  (broken / 'starts.npz').unlink()
  with pytest.raises(FileNotFoundError, match=r'starts\.npz: no such file'):
    game.load_game(broken)


@pytest.mark.parametrize(
  'args, message',
  [
    (['play'], 'name a run, or a world with --pretrained, and not both'),
    (['play', 'x', '--pretrained', 'doorkey'], 'and not both'),
    (['play', '--pretrained', 'pong'], "--pretrained = 'pong': must be doork"),
    (['play', 'nowhere'], 'no such file; name a directory that'),
    (['play', 'x', '--host', '0.0.0.0'], 'others can reach this address'),
    (['export', 'x', '--out', 'y', '--starts', '3'], 'belongs to --play'),
  ],
)
def test_what_cannot_be_played_is_said(args, message, capsys):
  pytest.importorskip('fastapi')
  assert main(args) == 2
  assert message in capsys.readouterr().err


def test_weights_that_do_not_ship_are_said(tmp_path):
  with pytest.raises(FileNotFoundError, match='no weights of it ship with th'):
    game.find_pretrained('craftax', tmp_path)
  (tmp_path / 'craftax').mkdir()
  (tmp_path / 'craftax' / exported.WEIGHTS).write_bytes(b'')
  assert game.find_pretrained('craftax', tmp_path) == tmp_path / 'craftax'


def test_the_world_that_ships_turns_around_in_four_turns():
  shipped = game.find_pretrained('doorkey')
  files = [*shipped.iterdir()]
  assert sum(f.stat().st_size for f in files) <= game.MOST_BYTES
  assert '- **Trained by**: version' in (shipped / 'README.md').read_text()
  own = game.load_game(shipped)
  dream, params, contexts = own.loaded
  left = own.labels['action'].index('left')
  count = len(contexts.task)
  state, shown = jax.jit(dream.reset)(params, contexts, jax.random.key(0))
  step, frames = jax.jit(dream.step), [np.asarray(shown.frame)]
  for t in range(4):
    action = {'action': np.full(count, left)}
    state, shown = step(params, state, action, jax.random.key(t))
    frames.append(np.asarray(shown.frame))
  far = [np.abs(f.astype(int) - frames[0]).max(axis=(1, 2, 3)) for f in frames]
  # In the dream the player faces another way, and then the first one again.
  assert count >= 20 and (np.array(far[1:4]) > 150).all()
  assert np.mean(far[4] < 80) >= 0.9


def test_challenges_go_into_a_package_with_their_clips(
  run, tmp_path, monkeypatch
):
  pictures = np.stack([np.full((4, 4, 3), x, np.uint8) for x in (0, 255)])
  tiles = Tiles(side=4, pictures=pictures, names=('dark', 'light'))
  spec = types.SimpleNamespace(legend=tiles, tiles=None)
  monkeypatch.setattr(
    game, 'make_env', lambda config: types.SimpleNamespace(spec=spec)
  )
  path = tmp_path / 'own.json'
  stages = [{'any': 'light'}]
  path.write_text(
    json.dumps(
      [
        {'name': 'a', 'clip': [1, 4], 'stages': stages},
        {'name': 'b', 'clip': [2, 3], 'stages': stages, 'keys': ['left']},
      ]
    )
  )
  out = tmp_path / 'out'
  args = ['export', str(run), '--play', '--out', str(out), '--starts', '3']
  assert main([*args, '--challenges', str(path)]) == 0
  small = game.load_game(out)
  whole = game.load_game(run, starts=3, challenges=path)
  assert small.challenges.all == whole.challenges.all
  assert [c.start for c in small.challenges.all] == [3, 4]
  assert small.challenges.names == ('dark', 'light')
  assert len(small.rules().starts) == 5
  config = whole.loaded.dream.world.config
  source = EpisodeSource(config.data.path, 'test', cache_bytes=0)
  clips = read_clips(config, 'test', [(1, 4), (2, 3)], 3)
  np.testing.assert_array_equal(clips.frames[0], source[1]['observation'][2:5])
  np.testing.assert_array_equal(clips.frames[1], source[2]['observation'][1:4])
  np.testing.assert_array_equal(
    clips.prev_action['move'][0], source[1]['action']['move'][1:4]
  )
  with pytest.raises(ValueError, match='keeps to them'):
    game.load_game(out, challenges=path)
  for clip, message in (([9, 4], '9, 4'), ([1, 8], '1, 8'), ([1, 1], '1, 1')):
    path.write_text(json.dumps([{'name': 'a', 'clip': clip, 'stages': stages}]))
    with pytest.raises(ValueError, match=rf'clip = \({message}\): must be'):
      game.load_game(run, challenges=path)
  path.write_text(json.dumps([{'name': 'a', 'stages': stages}]))
  with pytest.raises(ValueError, match='missing in'):
    game.load_game(run, challenges=path)
  spec.legend = None
  with pytest.raises(ValueError, match='no tiles by name'):
    game.load_game(run, challenges=path)
