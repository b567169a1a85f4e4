"""Runs the test suite on several versions of Python and of the packages.

python tests/versions.py [NAME...]

NAME is `oldest`, the lowest versions that setup.cfg allows; `newest`, what pip
gives on the newest Python; or a Python version such as 3.12, with what pip
gives there. By default oldest and every Python that is found. Interpreters are
looked for on the PATH and among pyenv's versions; environments are made anew
where setup.cfg has changed, in .cache/versions. Standard library only.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
PYTHONS = ('3.11', '3.12', '3.13', '3.14')
OLDEST = ('3.13', '3.12', '3.11')
"""Pythons for the lowest versions, the one that Colab has first."""


def find_pythons() -> dict[str, str]:
  """Returns interpreters by version, as far as they are on this machine."""
  found = {}
  for version in PYTHONS:
    candidates = [shutil.which(f'python{version}'), *_of_pyenv(version)]
    for path in filter(None, candidates):
      if _runs_as(path, version):
        found[version] = path
        break
  return found


def _of_pyenv(version: str) -> list[str]:
  root = os.environ.get('PYENV_ROOT', '~/.pyenv')
  paths = pathlib.Path(root).expanduser().glob(f'versions/{version}.*')
  patch = lambda path: [int(n) for n in re.findall(r'\d+', path.name)]
  newest_first = sorted(paths, key=patch, reverse=True)
  return [str(path / 'bin/python') for path in newest_first]


def _runs_as(path: str, version: str) -> bool:
  """Whether it starts; pyenv's shims of versions that are not active do not."""
  code = 'import sys, venv; print("%d.%d" % sys.version_info[:2])'
  try:
    said = subprocess.run([path, '-c', code], capture_output=True, text=True)
  except OSError:
    return False
  return said.stdout.strip() == version


def plan(names: list[str], pythons: dict[str, str]) -> dict[str, str]:
  """Returns the Python version of each environment.

  Args:
    names: as on the command line; none for all.
    pythons: what `find_pythons` returned.

  Raises:
    ValueError: a name is unknown, or there is no interpreter for it.
  """
  found = {}
  for name in names or ['oldest', *pythons]:
    if name == 'oldest':
      choice = next((v for v in OLDEST if v in pythons), '')
    elif name == 'newest':
      choice = next((v for v in reversed(PYTHONS) if v in pythons), '')
    else:
      choice = name if name in pythons else ''
    if not choice:
      raise ValueError(
        f'{name}: no such environment, or no interpreter for it; there are '
        f'oldest, newest, {", ".join(pythons)}'
      )
    found[name] = choice
  return found


def prepare(name: str, python: str) -> pathlib.Path:
  """Makes the environment unless it is up to date; returns its Python."""
  where = ROOT / '.cache' / 'versions' / name
  stamp, wanted = where / 'setup.cfg', (ROOT / 'setup.cfg').read_text()
  inside = where / 'bin/python'
  if not stamp.exists() or stamp.read_text() != wanted:
    shutil.rmtree(where, ignore_errors=True)
    run = lambda *command: subprocess.run(command, check=True)
    run(python, '-m', 'venv', str(where))
    run(str(inside), '-m', 'pip', 'install', '-q', '--upgrade', 'pip')
    oldest = ['--oldest'] if name == 'oldest' else []
    run(str(inside), str(ROOT / 'tests/install.py'), *oldest)
    stamp.write_text(wanted)
  return inside


def main() -> int:
  """Runs the suite in each environment; returns 1 if it fails in one."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('names', nargs='*', metavar='NAME')
  parser.add_argument(
    '--find', action='store_true', help='only print the interpreters'
  )
  parser.add_argument(
    '--interfaces',
    action='store_true',
    help='only tests of what leans on other packages',
  )
  args = parser.parse_args()
  pythons = find_pythons()
  try:
    environments = plan(args.names, pythons)
  except ValueError as error:
    print(error, file=sys.stderr)
    return 2
  if args.find:
    print('\n'.join(pythons[version] for version in environments.values()))
    return 0
  results = {}
  for name, version in environments.items():
    print(f'\n=== {name}: Python {version}', flush=True)
    start = time.monotonic()
    try:
      inside = prepare(name, pythons[version])
    except subprocess.CalledProcessError as error:
      results[name] = f'Python {version}: not installed ({error})'
      continue
    subprocess.run([inside, '-m', 'dreamer4_jax.cli.main', 'info'])
    command = [inside, '-m', 'pytest', '-q', '-rs', '-n', 'auto']
    command += ['--dist', 'loadfile', '--no-loadscope-reorder']
    command += ['--interfaces'] if args.interfaces else []
    done = subprocess.run(command, cwd=ROOT)
    verdict = 'passed' if done.returncode == 0 else 'FAILED'
    minutes = (time.monotonic() - start) / 60
    results[name] = f'Python {version}: {verdict}, {minutes:.0f} min'
  print('\n' + '\n'.join(f'{k:8}{v}' for k, v in results.items()))
  return int(not all('passed' in verdict for verdict in results.values()))


if __name__ == '__main__':
  sys.exit(main())
