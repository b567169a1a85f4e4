"""The scripts that install and run the suite on other versions."""

import configparser
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests import install, versions

FOUND = {'3.11': 'a', '3.12': 'b', '3.14': 'd'}


def test_environments_by_name():
  assert versions.plan(['oldest', 'newest', '3.11'], FOUND) == {
    'oldest': '3.12',
    'newest': '3.14',
    '3.11': '3.11',
  }
  everything = versions.plan([], FOUND)
  assert list(everything) == ['oldest', '3.11', '3.12', '3.14']
  with pytest.raises(ValueError, match=r'3\.13: .* there are oldest, newest'):
    versions.plan(['3.13'], FOUND)
  with pytest.raises(ValueError, match='newest'):
    versions.plan(['newest'], {})


def test_this_python_is_found():
  here = '.'.join(map(str, sys.version_info[:2]))
  assert here in versions.PYTHONS
  assert here in versions.find_pythons()


def test_the_lowest_versions_are_those_of_setup_cfg():
  lowest = install.lowest()
  for pin in ('jax==0.7.2', 'flax==0.11.2', 'numpy==2.1.3', 'navix==0.7.4'):
    assert pin in lowest  # What Colab ships.
  assert 'minari==0.5.2' in lowest  # Written with an extra of its own.


def test_every_requirement_has_a_lower_bound_and_no_upper_one():
  config = configparser.ConfigParser()
  config.read(pathlib.Path(install.ROOT) / 'setup.cfg')
  extras = dict(config['options.extras_require'])
  assert set(install.OPTIONAL) | {'cuda', 'tpu', 'test'} == set(extras)
  lists = [config['options']['install_requires']]
  lists += [v for k, v in extras.items() if k not in ('cuda', 'tpu')]
  lines = [line for text in lists for line in text.split('\n') if line]
  bounded = r'[\w.-]+(\[\w+\])?>=[\d.]+'
  bad = [x for x in lines if not re.fullmatch(bounded, x)]
  assert bad == ['mujoco<4']  # dm-control does not run with mujoco 4.


def test_without_engines_and_converters_tests_are_skipped(tmp_path):
  names = 'navix craftax gymnasium ale_py pygame dm_control mujoco av minari'
  blocked = [*names.split(), 'h5py', 'pyarrow']
  code = f'import sys\nsys.modules |= dict.fromkeys({blocked})\n'
  (tmp_path / 'nothing_else.py').write_text(code)
  paths = [str(tmp_path), str(install.ROOT)]
  command = [sys.executable, '-m', 'pytest', '-p', 'nothing_else', '-q']
  command += ['--collect-only', 'tests/envs', 'tests/data_pipelines']
  found = subprocess.run(
    [*command, 'tests/test_pong.py'],
    cwd=install.ROOT,
    env=os.environ | {'PYTHONPATH': os.pathsep.join(paths)},
    capture_output=True,
    text=True,
  )
  # Files whose engine is missing are skipped whole; none fails to import.
  assert found.returncode == 0, found.stdout
  assert 'test_writer.py' in found.stdout
  assert 'test_navix_env.py' not in found.stdout
