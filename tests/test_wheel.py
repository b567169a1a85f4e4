"""The wheel alone, outside any checkout."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from dreamer4_jax.checkpoint import latest_step
from dreamer4_jax.config import PHASES
from tests.cli.small_run import make_config, write_dataset

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
SNIPPETS = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
PACKAGED = ('dreamer4_jax', 'data_pipelines', 'experiments')
CONVERTERS = sorted(
  path.stem
  for path in (ROOT / 'data_pipelines').glob('*.py')
  if "__name__ == '__main__'" in path.read_text()
)
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


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  pytest.importorskip('setuptools', minversion='77')
  tree = tmp_path_factory.mktemp('tree')
  for name in PACKAGED:
    shutil.copytree(ROOT / name, tree / name, symlinks=True)
  for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, tree)
  build = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps']
  build += ['--no-build-isolation', '-w', str(tree / 'out'), str(tree)]
  subprocess.run(build, check=True)
  (path,) = (tree / 'out').glob('*.whl')
  return path


@pytest.fixture(scope='module')
def run_alone(wheel, tmp_path_factory):
  site, elsewhere = (tmp_path_factory.mktemp(n) for n in ('site', 'elsewhere'))
  zipfile.ZipFile(wheel).extractall(site)
  env = os.environ | {'PYTHONPATH': str(site), 'JAX_PLATFORMS': 'cpu'}

  def run(code):
    return subprocess.run(
      [sys.executable, '-c', ALONE + code],
      cwd=elsewhere,
      env=env,
      capture_output=True,
      text=True,
    )

  return run


def test_it_holds_every_module_and_no_package_called_experiments(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  modules = {
    str(path.relative_to(ROOT))
    for package in PACKAGED[:2]
    for path in (ROOT / package).rglob('*.py')
    if 'experiments' not in path.parts
  }
  assert modules and modules <= names
  tops = {name.split('/')[0] for name in names}
  assert {top for top in tops if '.dist-info' not in top} == set(PACKAGED[:2])
  for package in PACKAGED[:2]:
    assert f'{package}/py.typed' in names
  for path in (ROOT / 'experiments').glob('*.py'):
    assert f'dreamer4_jax/experiments/{path.name}' in names


def test_quickstart_train_and_data_need_no_checkout(run_alone):
  child = run_alone("""
import dreamer4_jax
main = 'dreamer4_jax.cli.main'
run(main, '--version')
run(main, 'quickstart', '--help-config')
run(main, 'train', 'quickstart', '--help-config')
run(main, 'data', '--help')
run(main, 'info')
print('code is', dreamer4_jax.__path__[0])
""")
  assert child.returncode == 0, child.stderr
  assert child.stdout.count('env.name=navix:Navix-DoorKey') == 2
  assert '/site0/dreamer4_jax' in child.stdout.split('code is')[1]
  assert 'dreamer4 0.1.0\n' in child.stdout  # No git state outside a checkout.


def test_every_phase_takes_ten_steps_and_the_snippets_run(run_alone, tmp_path):
  config = make_config(write_dataset(tmp_path / 'data'))
  experiment = tmp_path / 'ten.py'
  experiment.write_text(
    'from dreamer4_jax.config import Config\n'
    f'config = Config.from_json({config.to_json()!r})\n'
  )
  # The second snippet reads the run of this name.
  child = run_alone(f"""
import os, pathlib
os.chdir({str(tmp_path)!r})
run('dreamer4_jax.cli.main', 'train', 'ten.py', '--run-dir', 'runs/quickstart')
for code in {SNIPPETS!r}:
  exec(compile(code, 'README.md', 'exec'), {{}})
print('all', len({SNIPPETS!r}), 'ran')
""")
  assert child.returncode == 0, child.stderr
  assert 'all 3 ran' in child.stdout
  run = tmp_path / 'runs/quickstart'
  assert [latest_step(run, phase) for phase in PHASES] == [10] * 4


def test_every_converter_has_its_help(run_alone):
  assert {'collect', 'pretokenise', 'video', 'vpt', 'rlds'} <= set(CONVERTERS)
  calls = [f"run('data_pipelines.{name}', '--help')" for name in CONVERTERS]
  child = run_alone('\n'.join(calls))
  assert child.returncode == 0, child.stderr
  assert child.stdout.count('usage: ') == len(CONVERTERS)
