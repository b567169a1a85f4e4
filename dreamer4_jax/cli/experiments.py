"""Where an experiment's file is: a path, or the name of one that ships."""

from __future__ import annotations

import pathlib

_SHIPPED = pathlib.Path(__file__).parents[1] / 'experiments'


def find(name: str) -> pathlib.Path:
  """Returns the file of an experiment.

  Args:
    name: a path, or the name of an experiment that ships with the package,
      such as 'quickstart'. A file at the path comes first.

  Raises:
    FileNotFoundError: there is neither.
  """
  path = pathlib.Path(name)
  if path.is_file():
    return path
  ours = _SHIPPED / f'{name}.py'
  if name.isidentifier() and ours.is_file():
    return ours
  near = sorted(str(p) for p in path.parent.glob('*.py'))
  hint = f'; there are {", ".join(near)}' if near else ''
  raise FileNotFoundError(
    f'{name}: no such experiment file{hint}; shipped are {", ".join(shipped())}'
  )


def shipped() -> list[str]:
  """Names of the experiments in the package."""
  paths = sorted(_SHIPPED.glob('*.py'))
  return [p.stem for p in paths if not p.stem.startswith('_')]
