"""A page of results, from results and episodes written by hand."""

import json

import imageio.v3 as imageio
import numpy as np
import pytest

from dreamer4_jax.cli.main import main
from dreamer4_jax.evals import page
from tests.evals.test_seeds import results

TASKS = ('wood', 'table', 'pickaxe', 'drink')
POLICIES = ('random', 'bc', 'bc_0.5', 'rl', 'rl_greedy', 'recorded_0.1')


def write_run(directory, seed, prompt=('wood', 'table:2', 'pickaxe')):
  directory.mkdir()
  found = results(seed)
  found['config'] |= {'env': {'name': 'mine:Level'}, 'tasks': TASKS}
  found['config'] |= {'prompt': prompt}
  found |= {'versions': {'jax': '0.12'}, 'seconds': {'total': 7200.0}}
  found |= {'device': '1 x cpu', 'commit': f'abc{seed}'}
  (directory / 'results.json').write_text(json.dumps(found))
  rng = np.random.default_rng(seed)
  arrays = {'tasks': np.array(TASKS)}
  for i, name in enumerate(POLICIES):
    achieved = rng.random((20, 4)) < 0.2 * (i + 1)
    arrays[f'{name}/achieved'] = achieved
    arrays[f'{name}/success'] = achieved[:, 2]
    arrays[f'{name}/first'] = np.where(achieved, 7 + i, -1)
  np.savez(directory / 'episodes.npz', **arrays)
  imageio.imwrite(directory / 'dreams.png', np.zeros((4, 4, 3), np.uint8))
  return arrays


@pytest.fixture
def runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return [write_run(tmp_path / name, seed) for seed, name in enumerate('ab')]


def test_one_command_makes_a_page_and_all_that_belongs_to_it(
  runs, tmp_path, capsys
):
  assert main(['report', 'a', 'b', '-o', 'docs/results/mine.md']) == 0
  assert capsys.readouterr().out == 'written: docs/results/mine.md\n'
  out = tmp_path / 'docs/results'
  text = (out / 'mine.md').read_text()
  assert text.startswith('# mine:Level\n')
  # Of four tasks, three are asked for.
  expected = [np.mean(r['rl/achieved'].sum(1)) for r in runs]
  asked = [np.mean(r['rl/achieved'][:, :3].sum(1)) for r in runs]
  table = text.split('## What episodes achieve')[1].splitlines()
  line = next(x for x in table if x.startswith('| rl | '))
  cells = [cell.strip() for cell in line.split('|')[1:-1]]
  assert cells[1].startswith(f'{np.mean(expected):.2f} [')
  # The same recordings count once, and have no interval over runs.
  line = next(x for x in table if x.startswith('| recorded_0.1 | '))
  once = runs[0]['recorded_0.1/achieved'].sum(1).mean()
  assert line.split('|')[2].strip() == f'{once:.2f}'
  assert cells[2].startswith(f'{np.mean(asked):.2f} [')
  shares = np.mean([r['rl/achieved'][:, :3].mean(0) for r in runs], axis=0)
  assert cells[3:] == [f'{x:.2f}' for x in shares]
  differences = [
    np.mean(r['rl/achieved'].sum(1) - r['bc_0.5/achieved'].sum(1)) for r in runs
  ]
  assert f'| rl - bc_0.5 | {np.mean(differences):+.2f} [' in text
  share = np.mean([r['rl/success'].mean() for r in runs])
  assert f'| rl | {share:.3f} [' in text
  assert 'rl: drink 10, pickaxe 10, table 10, wood 10.' in text
  for name in ('mine-milestones.png', 'mine-dreams.png'):
    assert f']({name})' in text and (out / name).stat().st_size > 0
  assert '| a | 0 | 1 x cpu | abc0 | 2.0 |' in text
  assert 'This page: `dreamer4 report a b -o docs/results/mine.md`.' in text
  # Again, over what is there.
  assert main(['report', 'a', 'b', '-o', 'docs/results/mine.md']) == 0
  assert (out / 'mine.md').read_text() == text


@pytest.mark.parametrize('lacking', ['tasks', 'file'])
def test_a_world_of_few_tasks_has_no_table_of_achievements(
  runs, tmp_path, lacking
):
  for name in 'ab':
    path = tmp_path / name / 'episodes.npz'
    with np.load(path) as archive:
      arrays = dict(archive)
    arrays['tasks'] = arrays['tasks'][:3]
    np.savez(path, **arrays)
  if lacking == 'file':
    (tmp_path / 'b/episodes.npz').unlink()
  page.write_page([tmp_path / 'a', tmp_path / 'b'], tmp_path / 'x.md', 'x')
  text = (tmp_path / 'x.md').read_text()
  assert 'What episodes achieve' not in text and '[milestones]' not in text
  assert not (tmp_path / 'x-milestones.png').exists()


def test_a_prompt_names_its_tasks_once():
  config = {'tasks': ['a', 'b:c'], 'prompt': ['b:c', 'a:3', 'b:c:2', 'a']}
  assert page._asked({'config': config}) == ['b:c', 'a']
  config['prompt'] += ['b:c:4']
  assert page._asked({'config': config}) == ['a', 'b:c']
  assert page._asked({'config': {'tasks': ['a', 'b']}}) == ['a', 'b']
