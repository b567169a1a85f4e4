"""The project as a wheel, and a Python without the checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGED = ('dreamer4_jax', 'data_pipelines', 'experiments')
# An editable install beside the wheel must not help.
ALONE = f"""
import runpy, sys
sys.path = [path for path in sys.path if path != {str(ROOT)!r}]
sys.meta_path = [f for f in sys.meta_path if 'ditable' not in repr(f)]
def run(module, *args):
  sys.argv = [module, *args]
  try:
    runpy.run_module(module, run_name='__main__', alter_sys=True)
  except SystemExit as error:
    assert not error.code, (module, args, error.code)
"""


def build(directory):
  """Builds the wheel; returns its path."""
  pytest.importorskip('setuptools', minversion='77')
  tree = directory / 'tree'
  for name in PACKAGED:
    shutil.copytree(ROOT / name, tree / name, symlinks=True)
  for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, tree)
  command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps']
  command += ['--no-build-isolation', '-w', str(directory / 'out'), str(tree)]
  subprocess.run(command, check=True)
  (path,) = (directory / 'out').glob('*.whl')
  return path


def unpack(wheel, directory):
  """Unpacks a wheel; returns the directory, to be put on Python's path."""
  site = directory / 'site'
  zipfile.ZipFile(wheel).extractall(site)
  return site


def python(site, code, cwd, **options):
  """Runs code that knows `run(module, *args)` on what was unpacked."""
  env = os.environ | {
    'PYTHONPATH': str(site),
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
    'SDL_VIDEODRIVER': 'dummy',  # SDL complains of a missing display.
  }
  env.pop('PYTHONWARNINGS', None)
  given = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE} | options
  return subprocess.run(
    [sys.executable, '-c', ALONE + code],
    cwd=cwd,
    env=env,
    text=True,
    timeout=900,
    **given,
  )
