"""Fields of a config on the command line: overriding and listing them.

A field has a dotted name: `dynamics.depth`, `phases.finetune.steps`,
`actions.0.size`. Types and meanings come from the dataclasses themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import difflib
import functools
import json
import re
import types
import typing
from typing import Any

import docstring_parser
import msgspec

from dreamer4_jax.config import Config


@dataclasses.dataclass(frozen=True)
class Field:
  """One settable value of a config.

  Attributes:
    name: dotted name.
    type: annotated type.
    value: current value.
    meaning: the field's docstring.
  """

  name: str
  type: Any
  value: Any
  meaning: str


def fields(config: Config) -> list[Field]:
  """Returns every settable field, in order of definition."""
  return list(_walk('', Config, config, ''))


def override(config: Config, assignments: Sequence[str]) -> Config:
  """Returns the config with some fields replaced.

  Args:
    config: the config to start from; it is not changed.
    assignments: `name=value` texts. Tuples are comma-separated values, or
      JSON; tuples of groups, such as `actions`, are JSON.

  Raises:
    ValueError: an unknown field, a value that does not parse as the field's
      type, or one that the config refuses.
  """
  plain = json.loads(config.to_json())
  plain.pop('format')
  known = {f.name: f for f in fields(config)}
  for assignment in assignments:
    name, equals, text = assignment.partition('=')
    if not equals:
      raise ValueError(
        f'--set {assignment}: must have the form name=value, for example '
        'dynamics.depth=8'
      )
    if name not in known:
      raise ValueError(_unknown(name, list(known)))
    value = _parse(name, text, known[name].type)
    *groups, last = (int(k) if k.isdigit() else k for k in name.split('.'))
    node: Any = plain
    try:
      for group in groups:
        node = node[group]
    except IndexError:  # An earlier assignment made the tuple shorter.
      raise ValueError(_unknown(name, list(known))) from None
    node[last] = value
  try:
    return Config.from_plain(plain)
  except msgspec.ValidationError as error:
    # Its cause is the config's own message, without a JSON path.
    raise ValueError(str(error.__cause__ or error)) from error


def describe(config: Config, part: str = '') -> str:
  """Lists fields in the form that `--set` takes, with their meaning.

  Args:
    config: whose values are shown.
    part: dotted name of a group, or of a field; by default all, except the
      fields of the members of lists, such as `actions`.

  Raises:
    ValueError: there is no such part.
  """
  known = fields(config)
  chosen = [f for f in known if (f.name + '.').startswith(part + '.')]
  if not part:
    chosen = [f for f in known if not re.search(r'\.\d+\.', f.name)]
  if not chosen:
    raise ValueError(_unknown(part, [f.name for f in known]))
  lines = []
  for field in chosen:
    lines.append(f'{field.name}={_show(field.value)}  ({_spell(field.type)})')
    lines.append(f'    {field.meaning}')
  return '\n'.join(lines)


def _walk(name: str, kind: Any, value: Any, meaning: str) -> Iterator[Field]:
  if dataclasses.is_dataclass(kind) and value is not None:
    hints = typing.get_type_hints(type(value))
    meanings = _meanings(type(value))
    for field in dataclasses.fields(value):
      yield from _walk(
        f'{name}.{field.name}' if name else field.name,
        _required(hints[field.name]),
        getattr(value, field.name),
        meanings.get(field.name, ''),
      )
    return
  yield Field(name, kind, value, meaning)
  item = typing.get_args(kind)[:1]
  if typing.get_origin(kind) is tuple and dataclasses.is_dataclass(item[0]):
    for i, element in enumerate(value):
      yield from _walk(f'{name}.{i}', item[0], element, '')


def _required(kind: Any) -> Any:
  """Unwraps an optional group, and returns other types as they are."""
  members = [m for m in _members(kind) if m is not types.NoneType]
  if len(members) == 1 and dataclasses.is_dataclass(members[0]):
    return members[0]
  return kind


@functools.cache
def _meanings(kind: type) -> dict[str, str]:
  found: dict[str, str] = {}
  for base in reversed(kind.__mro__):
    if dataclasses.is_dataclass(base):
      for param in docstring_parser.parse_from_object(base).params:
        found[param.arg_name] = ' '.join((param.description or '').split())
  return found


def _parse(name: str, text: str, kind: Any) -> Any:
  value: Any = text
  members = _members(kind)
  try:
    if types.NoneType in members and text.strip().lower() == 'none':
      value = None
    elif any(typing.get_origin(m) is tuple for m in members):
      if text.lstrip().startswith('['):
        value = json.loads(text)
      else:
        value = [part.strip() for part in text.split(',')] if text else []
    return msgspec.to_builtins(msgspec.convert(value, kind, strict=False))
  except msgspec.ValidationError as error:
    cause = f' ({error.__cause__})' if error.__cause__ else ''
    raise ValueError(
      f'{name} = {text!r}: must be {_spell(kind)}{cause}'
    ) from error
  except json.JSONDecodeError as error:
    raise ValueError(f'{name} = {text!r}: is no JSON ({error})') from error


def _members(kind: Any) -> tuple[Any, ...]:
  """Returns the types of a union, or any other type on its own."""
  if typing.get_origin(kind) in (typing.Union, types.UnionType):
    return typing.get_args(kind)
  return (kind,)


def _spell(kind: Any) -> str:
  """Spells a type in words."""
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if kind is types.NoneType:
    return 'none'
  if origin is typing.Literal:
    return 'one of ' + ', '.join(map(str, args))
  if origin is tuple and dataclasses.is_dataclass(args[0]):
    return f'JSON list of {args[0].__name__}'
  if origin is tuple and Ellipsis not in args:
    return f'{len(args)} values ({_spell(args[0])}) with commas between them'
  if origin is tuple:
    return f'{_spell(args[0])}, with commas between several'
  if len(_members(kind)) > 1:
    return ' or '.join(map(_spell, args))
  return {bool: 'true or false', str: 'text'}.get(kind, kind.__name__)


def _show(value: Any) -> str:
  if isinstance(value, tuple):
    if any(dataclasses.is_dataclass(v) for v in value):
      return json.dumps([dataclasses.asdict(v) for v in value])
    text = ','.join(map(_show, value))
    plain = not text.lstrip().startswith('[') and text.lower() != 'none'
    if plain and (text.split(',') if text else []) == [
      _show(v).strip() for v in value
    ]:
      return text
    return json.dumps(value)
  if isinstance(value, bool) or value is None:
    return str(value).lower()
  return str(value)


def _unknown(name: str, known: list[str]) -> str:
  inside = [k for k in known if k.startswith(f'{name}.')]
  if inside:
    return f'{name}: is a group; set one of {", ".join(inside)}'
  last = name.rpartition('.')[2]
  near = [k for k in known if k.rpartition('.')[2] == last]
  near += difflib.get_close_matches(name, known, n=3, cutoff=0.6)
  hint = f'did you mean {", ".join(dict.fromkeys(near))}? ' if near else ''
  return f'{name}: no such field; {hint}--help-config lists all'
