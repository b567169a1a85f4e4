"""`dreamer4 report`, on results written by hand."""

import json

import pytest

from dreamer4_jax.cli.main import main
from dreamer4_jax.evals import seeds
from tests.evals.test_seeds import results


@pytest.fixture
def runs(tmp_path, monkeypatch):
  """Two evaluated runs, a and b, in the working directory."""
  monkeypatch.chdir(tmp_path)
  for seed, name in enumerate('ab'):
    (tmp_path / name).mkdir()
    path = tmp_path / name / 'results.json'
    path.write_text(json.dumps(results(seed)))
  return tmp_path


def test_it_prints_markdown_and_writes_the_same_as_json(runs, capsys):
  assert main(['report', 'a', 'b', '--json', 'both.json']) == 0
  found = json.loads((runs / 'both.json').read_text())
  assert found == json.loads(
    json.dumps(seeds.summarise({'a': results(0), 'b': results(1)}))
  )
  said = capsys.readouterr().out
  assert said == seeds.markdown(found) + '\n'
  assert said.startswith('| run | seed |') and '| b | 1 | 41.0 |' in said


def test_a_run_that_was_not_evaluated_is_named(runs, capsys):
  (runs / 'b/results.json').unlink()
  assert main(['report', 'a', 'b']) == 2
  said = capsys.readouterr()
  assert said.err == (
    'dreamer4: b/results.json: no such file; evaluate the run with '
    '`dreamer4 evaluate b`\n'
  )
  assert not said.out
  (runs / 'b/results.json').write_text('{')
  assert main(['report', 'b']) == 2
  assert 'b/results.json: is no JSON (' in capsys.readouterr().err
  (runs / 'b/results.json').write_text('{"seed": 1}')
  assert main(['report', 'b']) == 2
  assert 'b: results.json has no config, ' in capsys.readouterr().err


def test_a_run_named_twice_counts_once(runs, capsys):
  assert main(['report', 'a', 'a/']) == 0
  said = capsys.readouterr().out
  assert said.count('| a | 0 |') == 1 and 'Warning' not in said
