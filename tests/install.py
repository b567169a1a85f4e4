"""Installs the project for its tests into the environment that runs this.

python tests/install.py [--oldest]

All extras that this Python can have are installed; an engine without a wheel
for it is left out, with a message. With --oldest every requirement of setup.cfg
gets the lowest version that it allows. Standard library only.
"""

import argparse
import configparser
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]

# Extras of engines and converters, with those packages that must be compiled.
OPTIONAL = {
  'navix': (),
  'craftax': (),
  'gymnasium': ('ale-py',),
  'play': (),
  'dm_control': ('labmaze', 'mujoco'),
  'video': ('av',),
  'minari': ('h5py',),
  'lerobot': ('av', 'pyarrow'),
}


def lowest() -> list[str]:
  """Returns `name==version` for every lower bound in setup.cfg."""
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  extras = config['options.extras_require']
  wanted = [extras[name] for name in (*OPTIONAL, 'test')]
  lines = '\n'.join([config['options']['install_requires'], *wanted])
  found = re.findall(r'^([\w.-]+)(?:\[.*\])?>=([\w.]+)', lines, re.MULTILINE)
  # The linter's version decides about style, not about what runs.
  pairs = dict(sorted(found))
  return [f'{k}=={v}' for k, v in pairs.items() if k != 'ruff']


def pip(*arguments: str, quiet: bool = False) -> bool:
  """Runs `pip install`; returns whether it succeeded."""
  command = [sys.executable, '-m', 'pip', 'install', '-q', *arguments]
  error = subprocess.DEVNULL if quiet else None
  return subprocess.run(command, stderr=error).returncode == 0


def has_wheels(extra: str) -> bool:
  """Whether what an extra needs compiled is there for this Python."""
  names = OPTIONAL[extra]
  look = ('--dry-run', '--no-deps', '--only-binary', ':all:')
  return not names or pip(*look, *names, quiet=True)


def main() -> int:
  """Installs; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--oldest', action='store_true')
  args = parser.parse_args()
  extras = ['test']
  for extra in OPTIONAL:
    if has_wheels(extra):
      extras.append(extra)
    else:
      version = platform.python_version()
      print(f'{extra}: not installed, no wheels for Python {version}')
  with tempfile.TemporaryDirectory() as directory:
    options = []
    if args.oldest:
      path = pathlib.Path(directory) / 'oldest.txt'
      path.write_text('\n'.join(lowest()))
      options = ['-c', str(path)]
    return int(not pip(*options, '-e', f'{ROOT}[{",".join(extras)}]'))


if __name__ == '__main__':
  sys.exit(main())
