"""No function is longer, or takes more, than a reader can hold."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MOST_LINES, MOST_ARGUMENTS = 80, 8
FILES = sorted(
  path
  for folder in ('dreamer4_jax', 'data_pipelines', 'experiments', 'benchmarks')
  for path in (ROOT / folder).rglob('*.py')
)


def docstring_lines(node):
  """Numbers of the lines that docstrings inside a node fill."""
  kinds = (ast.FunctionDef, ast.ClassDef)
  for inner in ast.walk(node):
    if isinstance(inner, kinds) and ast.get_docstring(inner) is not None:
      first = inner.body[0]
      yield from range(first.lineno, first.end_lineno + 1)


def measure(source):
  """Yields name, lines of code and arguments of every function."""
  lines = source.splitlines()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.FunctionDef):
      docs = {*docstring_lines(node)}
      code = [
        number
        for number in range(node.lineno, node.end_lineno + 1)
        if number not in docs
        and (text := lines[number - 1].strip())
        and not text.startswith('#')
      ]
      a = node.args
      names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
      own = [name for name in names if name not in ('self', 'cls')]
      yield node.name, len(code), len(own)


def test_the_measure_sees_both():
  source = (
    'def f(self, a, *, b):\n  """D.\n\n  D.\n  """\n\n  # c\n  return a\n'
  )
  assert [*measure(source)] == [('f', 2, 2)]


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short_and_take_little(path):
  found = [
    (name, lines, arguments)
    for name, lines, arguments in measure(path.read_text())
    if lines > MOST_LINES or arguments > MOST_ARGUMENTS
  ]
  assert not found


def test_files_are_found():
  assert len(FILES) > 100
