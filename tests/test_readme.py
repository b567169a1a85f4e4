"""What the pages say is there; cli/test_run.py runs the README's examples."""

import pathlib
import re
import subprocess
import sys

import pytest

import dreamer4_jax as d4
from dreamer4_jax.config import presets

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
RUNNING = (ROOT / 'docs/running.md').read_text()
SNIPPETS = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


@pytest.mark.parametrize('code', SNIPPETS)
def test_an_example_is_short(code):
  assert len([line for line in code.splitlines() if line.strip()]) <= 15
  assert max(map(len, code.splitlines())) <= 80


def test_the_table_of_presets_is_that_of_the_module():
  for name in presets.PRESETS:
    ours = re.search(rf'\| `{name}` \| (\S+) M \| (\S+) M', RUNNING)
    theirs = re.search(
      rf'\| {name} +\| +\S+ +\| +(\S+) +\| +(\S+)', presets.__doc__
    )
    assert [float(x) for x in ours.groups()] == pytest.approx(
      [float(x) for x in theirs.groups()], rel=1e-3
    )


PAGES = ['README.md', *sorted(f'docs/{p.name}' for p in ROOT.glob('docs/*.md'))]


@pytest.mark.parametrize('page', PAGES)
def test_what_a_page_points_to_is_there(page):
  text = (ROOT / page).read_text()
  folder = (ROOT / page).parent
  links = re.findall(r'\]\(([^):]+)\)', text)
  named = re.findall(r'`((?:dreamer4_jax|tests|data_pipelines)/\S+?\.py)', text)
  assert links or named or page.endswith('report.md')
  for path in links:
    assert (folder / path.partition('#')[0]).exists(), path
  for path in named:
    assert (ROOT / path).exists(), path


NAMES = sorted(
  {
    name
    for page in PAGES
    for name in re.findall(r'\bd4(?:\.\w+)+', (ROOT / page).read_text())
  }
)


def test_names_in_the_pages_are_there_from_the_start():
  parts = [name.split('.')[1:] for name in NAMES]
  assert {p[0] for p in parts} <= {*d4.__all__}
  folders = [p for p in parts if len(p) > 1 and p[0].islower()]
  assert folders
  for folder, name, *_ in folders:
    assert name in getattr(d4, folder).__all__, (folder, name)
  names = ['.'.join(['d4', *p]) for p in folders if len(p) > 2]
  assert names
  # Each in a process of its own: another may have imported what it needs.
  code = """
import os, sys
import dreamer4_jax as d4
bad = []
for name in sys.argv[1:]:
  child = os.fork()
  if not child:
    try:
      eval(name)
    except BaseException as error:
      print(error, file=sys.stderr)
      os._exit(1)
    os._exit(0)
  if os.waitpid(child, 0)[1]:
    bad.append(name)
print(bad)
"""
  run = subprocess.run(
    [sys.executable, '-c', code, *names], capture_output=True
  )
  assert run.stdout == b'[]\n', run.stderr.decode()


def test_it_can_be_read_in_ten_minutes():
  assert len(README.split()) <= 900
