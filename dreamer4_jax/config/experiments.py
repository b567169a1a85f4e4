"""Experiments: Python files with a config; ours are found by name."""

from __future__ import annotations

import pathlib
import runpy

from dreamer4_jax.config.run import Config

_SHIPPED = pathlib.Path(__file__).parents[1] / 'experiments'


def load(name: str | pathlib.Path) -> Config:
  """Runs an experiment file and returns its variable `config`.

  Args:
    name: as in `find`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it defines no `config: Config`, or a config in it is refused.
  """
  path = find(name)
  try:
    config = runpy.run_path(str(path)).get('config')
  except (ValueError, TypeError) as error:
    raise ValueError(f'{path}: {error}') from error
  if not isinstance(config, Config):
    raise ValueError(
      f'{path}: must define a variable `config` of type '
      f'dreamer4_jax.config.Config, found {type(config).__name__}'
    )
  return config


def find(name: str | pathlib.Path) -> pathlib.Path:
  """Returns the file of an experiment.

  Args:
    name: a path, or the name of an experiment that ships with the package,
      such as 'quickstart'. A file at the path takes precedence.

  Raises:
    FileNotFoundError: there is neither.
  """
  path = pathlib.Path(name)
  if path.is_file():
    return path
  ours = _SHIPPED / f'{name}.py'
  if str(name).isidentifier() and ours.is_file():
    return ours
  near = sorted(str(p) for p in path.parent.glob('*.py'))
  hint = f'; there are {", ".join(near)}' if near else ''
  raise FileNotFoundError(
    f'{name}: no such experiment file{hint}; shipped are {", ".join(shipped())}'
  )


def shipped() -> list[str]:
  """Returns the names of the experiments in the package.

  Files beside them that train many configs, such as a sweep, define none.
  """
  paths = sorted(_SHIPPED.glob('*.py'))
  return [p.stem for p in paths if '\nconfig = ' in p.read_text()]
