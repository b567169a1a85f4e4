"""The commit is found wherever git keeps it."""

import subprocess

import pytest

from dreamer4_jax.checkpoint.version import code_version


def git(where, *args):
  name = ['-c', 'user.name=a', '-c', 'user.email=a@b']
  command = ['git', *name, '-C', str(where), *args]
  return subprocess.run(
    command, check=True, capture_output=True, text=True
  ).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
  path = tmp_path / 'code'
  path.mkdir()
  git(path, 'init', '-q')
  return path


def test_loose_packed_and_detached_heads_and_worktrees(checkout):
  assert set(code_version(checkout)) == {'version'}  # Nothing committed.
  for i, change in enumerate(
    (
      [],
      ['pack-refs', '--all'],
      ['checkout', '-q', '--detach'],
      ['checkout', '-q', '-b', 'deep/name'],
    )
  ):
    git(checkout, 'commit', '-q', '--allow-empty', '-m', str(i))
    if change:
      git(checkout, *change)
    expected = git(checkout, 'rev-parse', 'HEAD')
    assert code_version(checkout)['commit'] == expected
  git(checkout, 'worktree', 'add', '-q', '-b', 'other', '../tree')
  tree = checkout.parent / 'tree'
  git(tree, 'commit', '-q', '--allow-empty', '-m', 'x')
  expected = git(tree, 'rev-parse', 'HEAD')
  assert code_version(tree)['commit'] == expected
  assert expected != code_version(checkout)['commit']


def test_installed_code_has_no_commit(tmp_path):
  assert set(code_version(tmp_path)) == {'version'}
