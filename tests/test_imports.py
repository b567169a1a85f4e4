"""Imports point down only: the table of rooms, and who may use Orbax."""

import ast
from collections.abc import Iterator
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = 'dreamer4_jax'
OUTER = ('experiments', 'data_pipelines')

# What a room may import besides itself and EVERYWHERE.
EVERYWHERE = {'types', 'checks', 'config'}
BELOW_CONFIG = {'types', 'checks', 'nn'}
PARTS = {'config': 'nn.config'}  # The one module of a room that it may import.
ROOMS = {
  'types': set(),
  'checks': set(),
  'config': set(),
  'runtime': set(),
  'sharding': set(),
  'checkpoint': set(),
  'nn': set(),
  'objectives': set(),
  'data': set(),
  'envs': set(),
  'models': {'nn'},
  'rollout': {'models', 'nn', 'objectives'},
  'training': {
    'models',
    'rollout',
    'objectives',
    'sharding',
    'checkpoint',
    'data',
    'envs',
    'runtime',
  },
  'evals': {
    'models',
    'rollout',
    'objectives',
    'envs',
    'checkpoint',
    'data',
    'runtime',
  },
}
ROOMS['play'] = {
  'models', 'nn', 'rollout', 'objectives', 'envs', 'checkpoint', 'data'
}  # fmt: skip
ROOMS['aot'] = {'models', 'rollout', 'nn', 'training', 'sharding'}
ROOMS['__init__'] = set(ROOMS)  # The face, which imports lazily.
ROOMS['cli'] = set(ROOMS) - {'__init__'}


def imported(source: str, module: str) -> Iterator[str]:
  """Yields the dotted names a module imports, deferred ones included."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ''
      if node.level:
        parents = module.split('.')[: -node.level]
        base = '.'.join([*parents, *filter(None, [node.module])])
      yield from (f'{base}.{alias.name}' for alias in node.names)
    elif isinstance(node, ast.Call) and node.args:
      name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
      first = node.args[0]
      if name in ('import_module', '__import__'):
        yield first.value if isinstance(first, ast.Constant) else '<computed>'


def violations(module: str, source: str) -> list[str]:
  """Returns the imports of a module that the rooms forbid."""
  parts = module.split('.')
  inside = parts[0] == PACKAGE
  room = parts[1] if inside and len(parts) > 1 else ''
  allowed = EVERYWHERE | {room} | ROOMS.get(room, set())
  if room in BELOW_CONFIG:
    allowed -= {'config'}
  part = f'{PACKAGE}.{PARTS.get(room, room)}.'
  found = []
  for name in imported(source, module):
    top, _, rest = name.partition('.')
    target = rest.partition('.')[0]
    if top == 'orbax' and room != 'checkpoint':
      found.append(f'{module}: {name}; only checkpoint uses orbax')
    elif inside and (top in OUTER or name == '<computed>'):
      found.append(f'{module}: {name}')
    elif inside and top == PACKAGE:
      if target and target not in allowed and not name.startswith(part):
        found.append(f'{module}: {name}; {room} may import {sorted(allowed)}')
    elif top == PACKAGE and target == 'cli':
      found.append(f'{module}: {name}; nobody imports cli')
  return found


def modules() -> list[tuple[str, pathlib.Path]]:
  paths = [p for d in (PACKAGE, *OUTER) for p in (ROOT / d).rglob('*.py')]
  return [
    ('.'.join(p.relative_to(ROOT).with_suffix('').parts), p) for p in paths
  ]


def test_every_module_keeps_to_its_room():
  assert modules()
  found = [v for name, p in modules() for v in violations(name, p.read_text())]
  assert not found, '\n'.join(found)


def test_every_room_is_in_the_table():
  rooms = {n.split('.')[1] for n, _ in modules() if n.startswith(PACKAGE)}
  assert rooms <= set(ROOMS)


def test_the_docs_have_the_same_table():
  text = (ROOT / 'docs/layout.md').read_text()
  rows = re.findall(r'^\| `(\w+)` \|.*\| (.*?) ?\|$', text, re.MULTILINE)
  table = {room: set(re.findall(r'`(\w+)`', used)) for room, used in rows}
  built = {p.stem for p in (ROOT / PACKAGE).iterdir()} & set(ROOMS)
  built.remove('__init__')
  expected = {room: ROOMS[room] for room in built - EVERYWHERE}
  found = {room: table.get(room) for room in expected}
  assert found == expected | {'cli': set()}  # May import everything.


def test_what_all_may_import_stands_on_little():
  found = {name: [] for name in EVERYWHERE}
  for module, path in modules():
    room = (*module.split('.'), '')[1]
    if module.startswith(PACKAGE) and room in EVERYWHERE:
      found[room] += imported(path.read_text(), module)
  below = {'types': (), 'checks': (), 'config': ('checks', 'nn.config')}
  for room, names in found.items():
    assert names, f'{room} is not where it was'
    known = tuple(f'{PACKAGE}.{part}.' for part in (room, *below[room]))
    assert not [
      n
      for n in names
      if f'{n}.'.startswith(f'{PACKAGE}.') and not f'{n}.'.startswith(known)
    ]


@pytest.mark.parametrize(
  'module, source',
  [
    ('models.x', 'from dreamer4_jax.objectives import pmpo'),
    ('models.x', 'from dreamer4_jax import training'),
    ('models.x', 'import dreamer4_jax.data.pipeline as p'),
    ('models.x', 'def f():\n  from dreamer4_jax.rollout import imagine'),
    ('models.x', 'from ..rollout import imagine'),
    ('models.x', 'from .. import rollout'),
    ('models.x', 'import importlib\nimportlib.import_module("experiments.q")'),
    ('models.x', 'from importlib import import_module as i\nimport_module(n)'),
    ('data.x', 'from dreamer4_jax.models import tokenizer'),
    ('training.x', 'from dreamer4_jax.cli import configs'),
    ('training.x', 'from data_pipelines import collect'),
    ('training.x', 'import orbax.checkpoint as ocp'),
    ('nn', 'from dreamer4_jax.models import heads'),
    ('config', 'from dreamer4_jax.nn import rope'),
    ('config', 'from dreamer4_jax.nn.configs import x'),
    ('nn.x', 'from dreamer4_jax.config import Config'),
    ('nn.x', 'from dreamer4_jax import config'),
    ('types', 'from dreamer4_jax import config'),
    ('checks', 'from dreamer4_jax.config import Config'),
    ('__init__', 'from dreamer4_jax.cli import main'),
  ],
)
def test_an_import_that_points_up_is_found(module, source):
  assert violations(f'{PACKAGE}.{module}', source)


@pytest.mark.parametrize(
  'module, source',
  [
    ('models.x', 'from dreamer4_jax.models.y import z'),
    ('models.x', 'from . import y'),
    ('models.x', 'from dreamer4_jax.nn import rope\nimport jax'),
    ('models.x', 'from dreamer4_jax import config, types'),
    ('nn.x', 'from dreamer4_jax import checks, types'),
    ('config.x', 'from dreamer4_jax.nn.config import LayersConfig'),
    ('training.x', 'from dreamer4_jax import sharding, checkpoint'),
    ('checkpoint.items', 'import orbax.checkpoint as ocp'),
    ('cli.x', 'from dreamer4_jax.training import loop'),
  ],
)
def test_an_import_that_points_down_is_allowed(module, source):
  assert not violations(f'{PACKAGE}.{module}', source)


def test_outside_the_package_only_cli_and_orbax_are_closed():
  assert not violations('experiments.q', 'from dreamer4_jax.evals import x')
  assert violations('experiments.q', 'from dreamer4_jax.cli import main')
  assert violations('data_pipelines.q', 'import orbax')
