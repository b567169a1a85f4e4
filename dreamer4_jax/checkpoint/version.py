"""Which code wrote a checkpoint."""

from __future__ import annotations

import importlib.metadata
import pathlib

_DISTRIBUTION = 'dreamer4-jax'
_ROOT = pathlib.Path(__file__).parents[2]


def code_version(root: pathlib.Path = _ROOT) -> dict[str, str]:
  """Returns `version` and, in a git checkout, `commit`.

  Uncommitted changes do not show.

  Args:
    root: directory that holds the package.
  """
  try:
    version = importlib.metadata.version(_DISTRIBUTION)
  except importlib.metadata.PackageNotFoundError:
    version = 'not installed'
  try:
    commit = _commit(root / '.git')
  except OSError:
    return {'version': version}
  return {'version': version, 'commit': commit}


def _commit(git: pathlib.Path) -> str:
  """Reads the commit that is checked out; `OSError` if there is none."""
  if git.is_file():  # A worktree or submodule: 'gitdir: PATH'.
    git = git.parent / git.read_text().removeprefix('gitdir:').strip()
  head = (git / 'HEAD').read_text().strip()
  if not head.startswith('ref:'):
    return head
  ref = head.removeprefix('ref:').strip()
  common = git
  if (git / 'commondir').exists():
    common = git / (git / 'commondir').read_text().strip()
  for place in (git, common):
    if (place / ref).exists():
      return (place / ref).read_text().strip()
  for line in (common / 'packed-refs').read_text().splitlines():
    commit, _, name = line.partition(' ')
    if name == ref:
      return commit
  raise FileNotFoundError(f'{git}: {ref} has no commit yet')
