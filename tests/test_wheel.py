"""The wheel alone, outside any checkout; cli/test_run.py trains with it."""

import zipfile

import pytest

from tests import wheel as project
from tests.wheel import PACKAGED, ROOT

CONVERTERS = sorted(
  path.stem
  for path in (ROOT / 'data_pipelines').glob('*.py')
  if "__name__ == '__main__'" in path.read_text()
)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  return project.build(tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def run_alone(wheel, tmp_path_factory):
  elsewhere = tmp_path_factory.mktemp('elsewhere')
  site = project.unpack(wheel, elsewhere)
  return lambda code: project.python(site, code, elsewhere)


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
  page = ROOT / 'dreamer4_jax/play/serve/page'
  shown = {str(p.relative_to(ROOT)) for p in page.iterdir()}
  assert shown <= names and 'dreamer4_jax/play/serve/page/index.html' in shown
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
  assert '/site/dreamer4_jax' in child.stdout.split('code is')[1]
  assert 'dreamer4 0.1.0\n' in child.stdout  # No git state outside a checkout.


def test_every_converter_has_its_help(run_alone):
  assert {'collect', 'pretokenise', 'video', 'vpt', 'rlds'} <= set(CONVERTERS)
  calls = [f"run('data_pipelines.{name}', '--help')" for name in CONVERTERS]
  child = run_alone('\n'.join(calls))
  assert child.returncode == 0, child.stderr
  assert child.stdout.count('usage: ') == len(CONVERTERS)
