"""Reads the text of a compiled program: cycles and collectives, with loops.

XLA's own analysis counts the body of a loop once. Here it counts as often as
it runs, and a conditional counts as its most expensive branch.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
import dataclasses
import functools
import math
import re

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 'bf16': 2, 'f16': 2}
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
_INSTRUCTION = re.compile(
  r'^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$'
)
_SHAPE = re.compile(r'\b([a-z][a-z0-9]*)\[([\d,]*)\]')
_NAME = re.compile(r'%([\w.\-]+)')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r' constant\((\d+)\)')
_FRAME = re.compile(r'stack_frame_id=(\d+)')
_FILE, _LOCATION, _PARENT, _LINE = (
  re.compile(rf'\b{field}=(\d+)')
  for field in ('file_name_id', 'file_location_id', 'parent_frame_id', 'line')
)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line.

  Attributes:
    name: of the instruction.
    shape: its result, as written.
    opcode: what it does.
    line: the whole line.
    operands: names of the instructions that it reads, in order.
    is_root: whether it is the result of its computation.
  """

  name: str
  shape: str
  opcode: str
  line: str
  operands: tuple[str, ...] = ()
  is_root: bool = False

  @functools.cached_property
  def arrays(self) -> list[tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each array of the result."""
    return [
      (dtype, tuple(int(n) for n in sizes.split(',') if n))
      for dtype, sizes in _SHAPE.findall(self.shape)
    ]

  @functools.cached_property
  def bytes(self) -> float:
    """Bytes of the result, all of its arrays together."""
    arrays = [math.prod(shape) * _width(dtype) for dtype, shape in self.arrays]
    # A start instruction lists its operands first, then as many results.
    return sum(arrays[len(arrays) // 2 :] if self.starts else arrays)

  @property
  def starts(self) -> bool:
    """Whether it begins a collective that another instruction ends."""
    return self.opcode.endswith('-start')

  @property
  def operand(self) -> str:
    """Name of the first operand; empty without one."""
    return self.operands[0] if self.operands else ''

  def calls(self, *attributes: str) -> list[str]:
    """Computations named by the attributes, in order."""
    found: list[str] = []
    for attribute in attributes:
      for match in re.findall(
        rf'\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)', self.line
      ):
        found += _NAME.findall(match)
    return found


@dataclasses.dataclass
class Cost:
  """What runs when a computation runs once.

  Attributes:
    cycles: the compiler's estimate for a TPU core; 0 elsewhere.
    counts: how often each kind of collective runs.
    bytes: bytes of their results on one device; for reduce-scatter, of its
      inputs.
  """

  cycles: float = 0.0
  counts: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  bytes: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )

  def add(self, other: Cost, times: int = 1) -> None:
    """Adds another computation that runs `times` times."""
    self.cycles += times * other.cycles
    for kind in other.counts:
      self.counts[kind] += times * other.counts[kind]
      self.bytes[kind] += times * other.bytes[kind]


class Program:
  """The computations of a module."""

  def __init__(self, text: str):
    """Takes `compiled.as_text()`."""
    self.computations: dict[str, list[Instruction]] = {}
    self.entry = ''
    self._tables: dict[str, list[str]] = {}
    own: list[Instruction] = []
    table: list[str] = []
    for line in text.splitlines():
      if not line.startswith(' '):
        if match := _COMPUTATION.match(line):
          own = self.computations.setdefault(match[2], [])
          self.entry = match[2] if match[1] else self.entry
        elif line.isalpha():
          table = self._tables.setdefault(line, [])
        elif line[:1].isdigit():
          table.append(line.partition(' ')[2])
      elif match := _INSTRUCTION.match(line):
        inputs = tuple(_NAME.findall(_until_closed(match[5])))
        own.append(
          Instruction(
            match[2], match[3], match[4], line, inputs, bool(match[1])
          )
        )
    if not self.entry:
      raise ValueError('found no ENTRY computation in the text of the program')

  def __iter__(self) -> Iterator[Instruction]:
    """Yields every instruction, each once."""
    for own in self.computations.values():
      yield from own

  @functools.cached_property
  def cost(self) -> Cost:
    """Cost of the whole program."""
    return self._cost(self.entry)

  def trips(self, loop: Instruction) -> int:
    """Returns how often a `while` runs its body."""
    if match := _TRIPS.search(loop.line):
      return int(match[1])
    # A scan counts from 0 up to the one constant of its condition.
    limits = [
      int(n)
      for name in self._below(loop.calls('condition')[0])
      for x in self.computations[name]
      for n in _CONSTANT.findall(x.line)
    ]
    if not limits:
      raise ValueError(f'found no trip count of the loop {loop.name}')
    return max(limits)

  def source(self, x: Instruction, within: str) -> str:
    """Returns the line of code that an instruction comes from, `file:line`.

    Args:
      x: the instruction.
      within: part of a path; of the calls that led to it, the innermost in such
        a file counts.

    Returns:
      The path from `within` on, and the line; empty if there is none.
    """
    match = _FRAME.search(x.line)
    frame = int(match[1]) if match else 0
    seen: set[int] = set()
    while frame and frame not in seen:
      seen.add(frame)
      about = self._row('StackFrames', frame)
      location = self._row('FileLocations', _number(_LOCATION, about))
      path = self._row('FileNames', _number(_FILE, location)).strip('"')
      if within in path:
        short = within + path.rpartition(within)[2]
        return f'{short}:{_number(_LINE, location)}'
      # The outermost frame names itself.
      frame = _number(_PARENT, about)
    return ''

  def _row(self, table: str, number: int) -> str:
    rows = self._tables.get(table, [])
    return rows[number - 1] if 0 < number <= len(rows) else ''

  def _below(self, name: str) -> list[str]:
    return [
      name,
      *(c for x in self.computations[name] for c in x.calls('calls')),
    ]

  def _cost(self, name: str) -> Cost:
    total = Cost()
    own = {x.name: x for x in self.computations[name]}
    for x in own.values():
      if match := _CYCLES.search(x.line):
        total.cycles += int(match[1])
      if kind := _collective(x, self.computations):
        total.counts[kind] += 1
        source = own.get(x.operand) if kind == 'reduce-scatter' else None
        total.bytes[kind] += (source or x).bytes
      if x.opcode == 'while':
        total.add(self._cost(x.calls('body')[0]), self.trips(x))
      elif x.opcode == 'conditional':
        costs = [self._cost(branch) for branch in branches(x)]
        total.add(max(costs, key=lambda c: (c.cycles, sum(c.bytes.values()))))
      elif x.opcode in CALLS:
        for callee in x.calls('to_apply', 'calls'):
          total.add(self._cost(callee))
    return total


CALLS = ('call', 'async-start')
"""Instructions that run another computation once."""


def branches(x: Instruction) -> list[str]:
  """Returns the computations that a `conditional` chooses from."""
  return x.calls('branch_computations', 'true_computation', 'false_computation')


def _until_closed(text: str) -> str:
  """Returns what is before the parenthesis that closes one opened earlier."""
  depth = 1
  for i, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return text[:i]
  return text


def _number(pattern: re.Pattern[str], text: str) -> int:
  match = pattern.search(text)
  return int(match[1]) if match else 0


def _width(dtype: str) -> float:
  if dtype in _BYTES:
    return _BYTES[dtype]
  digits = re.search(r'\d+', dtype)
  return int(digits[0]) / 8 if digits else 0


def _collective(
  x: Instruction, computations: Mapping[str, list[Instruction]]
) -> str:
  """Names the kind of a collective; empty for anything else."""
  if x.opcode == 'fusion':
    # On TPU a reduction whose result is sliced at once is fused with the slice.
    inside = {y.opcode for c in x.calls('calls') for y in computations[c]}
    called = ' '.join(x.calls('calls'))
    if 'all-reduce-scatter' in called or 'reduce-scatter' in inside:
      return 'reduce-scatter'
    return next((k for k in COLLECTIVES if k in inside), '')
  return next((k for k in COLLECTIVES if x.opcode in (k, f'{k}-start')), '')
