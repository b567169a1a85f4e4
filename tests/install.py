"""Installs the project for its tests into the environment that runs this.

python tests/install.py [--oldest]

All extras that this Python can have are installed; an engine without a wheel
for it is left out, and said so. With --oldest every requirement of setup.cfg
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

# Extras of engines and converters, with what of them has to be compiled.
OPTIONAL = {
  'navix': (),
  'craftax': (),
  'gymnasium': ('ale-py',),
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


def pip_install(extras: tuple[str, ...], options: list[str]) -> bool:
  """Installs the project with extras; False where that is impossible."""
  compiled = sorted({name for extra in extras for name in OPTIONAL[extra]})
  wheels = ['--only-binary', ','.join(compiled)] if compiled else []
  target = f'{ROOT}[{",".join(("test", *extras))}]'
  command = [sys.executable, '-m', 'pip', 'install', '-q', *wheels, *options]
  return subprocess.run([*command, '-e', target]).returncode == 0


def main() -> int:
  """Installs; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--oldest', action='store_true')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as directory:
    options = []
    if args.oldest:
      path = pathlib.Path(directory) / 'oldest.txt'
      path.write_text('\n'.join(lowest()))
      options = ['-c', str(path)]
    if pip_install(tuple(OPTIONAL), options):
      return 0
    # One of them cannot be had: which?
    if not pip_install((), options):
      return 1
    for extra in OPTIONAL:
      if not pip_install((extra,), options):
        version = platform.python_version()
        print(f'{extra}: not installed, no wheels for Python {version}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
