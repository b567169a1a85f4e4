"""The kernels of a program compiled for a GPU, and how long each takes.

A roofline: a kernel takes the longer of moving its bytes and of computing its
FLOPs, plus a cost of its own. The constants were fitted to an H100, kernel by
kernel (`docs/notes.md`, "What a GPU said"); for other GPUs, the rates are
scaled by their data sheets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import re

from dreamer4_jax.aot.chips import Chip
from dreamer4_jax.aot.hlo import (
  CALLS,
  COLLECTIVES,
  Instruction,
  Program,
  branches,
)

MICRO = 1e-6
# Of the data sheet's 3.35 TB/s and 989 TFLOP/s, a copy of 1 GB reached 3.03
# and cuBLAS 812.
_MEMORY, _PRODUCT = 3.03 / 3.35, 812 / 989
_SMALL_COST, _PRODUCT_COST = 1.2 * MICRO, 4 * MICRO
_PRODUCT_SLACK = 1.15
# Products that XLA may compile by Triton; on a GPU it tries both and takes the
# faster. Half of the rate is reached at 330 rows.
_TRITON, _TRITON_ROWS = 760 / 989, 330
# The kernels of `nn.gpu_attention` and `nn.gpu_play`.
_ATTENTION, _ATTENTION_SLACK = 200 / 989, 1.05
# A loop on the device copies its condition to the host in every iteration.
_LOOP_COST = 1.9 * MICRO

_NOTHING = frozenset(
  'after-all bitcast constant get-tuple-element opt-barrier parameter '
  'partition-id replica-id tuple'.split()
)
_SLICES = ('dynamic-slice', 'slice', 'gather')
_VIEWS = ('bitcast', 'reshape', 'copy', 'convert')
_NO_KERNEL = ('AllocateBuffer', 'Sharding', 'annotate_device_placement')
_PARAMETER = re.compile(r'parameter\((\d+)\)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# As `nn.gpu_blocks` names kernels.
_ATTENTION_COST = re.compile(r'attention_\w*?_(\d+)_flop_(\d+)_byte')
_CONTRACTED = re.compile(
  r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d,"\s]*)[}\]]'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
  """A kernel, and how often it runs when the program runs once.

  Attributes:
    kind: 'product', 'attention', 'fusion', 'reduction', 'copy', 'transpose',
      'pad', 'concatenate', 'loop', 'library', or the kind of a collective.
    name: of the instruction.
    op: the operation that it comes from, as JAX names it.
    source: the line of code, `dreamer4_jax/...py:line`; empty if unknown.
    count: how often it runs.
    bytes: read and written in one run.
    flops: of products in one run.
    seconds: of one run.
  """

  kind: str
  name: str
  op: str
  source: str
  count: int
  bytes: float
  flops: float
  seconds: float

  @property
  def total(self) -> float:
    """Seconds of all its runs."""
    return self.count * self.seconds


def list_kernels(
  program: Program, chip: Chip, *, costliest: bool = True
) -> list[Kernel]:
  """Returns the kernels of a program, the one that takes longest first.

  Args:
    program: compiled for the chip.
    chip: a GPU.
    costliest: which branch of a conditional counts, such as the one of a train
      step that bootstraps; else the cheapest.
  """
  found = _Walk(program, chip, costliest).computation(program.entry, 1)
  return sorted(found, key=lambda kernel: -kernel.total)


def by_kind(kernels: Sequence[Kernel]) -> dict[str, dict[str, float]]:
  """Sums kernels by kind, the one that takes longest first.

  Returns:
    For each kind `count`, `bytes`, `flops`, and `seconds`.
  """
  found: dict[str, dict[str, float]] = {}
  for k in kernels:
    own = found.setdefault(
      k.kind, {'count': 0, 'bytes': 0.0, 'flops': 0.0, 'seconds': 0.0}
    )
    own['count'] += k.count
    own['bytes'] += k.count * k.bytes
    own['flops'] += k.count * k.flops
    own['seconds'] += k.total
  return dict(sorted(found.items(), key=lambda item: -item[1]['seconds']))


@dataclasses.dataclass(frozen=True)
class _Walk:
  program: Program
  chip: Chip
  costliest: bool

  def computation(self, name: str, times: int) -> Iterator[Kernel]:
    """Yields the kernels of a computation that runs `times` times."""
    own = {x.name: x for x in self.program.computations[name]}
    for x in own.values():
      if x.opcode == 'while':
        trips = times * self.program.trips(x)
        yield self._kernel(x, 'loop', trips, 0, 0, _LOOP_COST)
        yield from self.computation(x.calls('body')[0], trips)
        yield from self.computation(x.calls('condition')[0], trips)
      elif x.opcode == 'conditional':
        options = [list(self.computation(b, times)) for b in branches(x)]
        yield self._kernel(x, 'loop', times, 0, 0, _LOOP_COST)
        choose = max if self.costliest else min
        yield from choose(options, key=lambda ks: sum(k.total for k in ks))
      elif x.opcode in CALLS:
        for callee in x.calls('to_apply', 'calls'):
          yield from self.computation(callee, times)
      elif x.opcode not in _NOTHING and not x.opcode.endswith(
        ('-done', '-update')
      ):
        yield from self._one(x, own, times)

  def _one(
    self, x: Instruction, own: Mapping[str, Instruction], times: int
  ) -> Iterator[Kernel]:
    opcode = x.opcode.removesuffix('-start')
    if opcode in COLLECTIVES:
      seconds = x.bytes / self.chip.links
      yield self._kernel(x, opcode, times, x.bytes, 0, _PRODUCT_COST + seconds)
    elif opcode == 'custom-call':
      yield from self._library(x, own, times)
    elif opcode == 'fusion':
      yield self._fusion(x, own, times)
    else:
      size = _unfused_bytes(x, own)
      yield self._moving(x, _kind_of({opcode}), times, size)

  def _library(
    self, x: Instruction, own: Mapping[str, Instruction], times: int
  ) -> Iterator[Kernel]:
    match = _TARGET.search(x.line)
    target = match[1] if match else ''
    if target in _NO_KERNEL:
      return
    inputs = [own[name] for name in x.operands if name in own]
    size = _written(x, own) + sum(y.bytes for y in inputs)
    if _is_cublas(x):
      flops = _product_flops(x, inputs[0], x.arrays[0][1])
      yield self._product(x, times, size, flops)
    elif match := _ATTENTION_COST.search(x.line):
      # Of a ring that it reads in part, the operands would count in full.
      flops, size = int(match[1]), int(match[2])
      seconds = max(
        _SMALL_COST + _ATTENTION_SLACK * self._memory(size),
        _PRODUCT_COST + flops / (self.chip.flops * _ATTENTION),
      )
      yield self._kernel(x, 'attention', times, size, flops, seconds)
    else:
      yield self._moving(x, 'library', times, size)

  def _fusion(
    self, x: Instruction, own: Mapping[str, Instruction], times: int
  ) -> Kernel:
    inside = self.program.computations[x.calls('calls')[0]]
    size = _fused_bytes(x, inside, own)
    library = next((y for y in inside if _is_cublas(y)), None)
    if library:
      # Its operands are slices, which it reads in place.
      inner = {y.name: y for y in inside}
      left = inner[library.operand]
      flops = _product_flops(library, left, library.arrays[0][1])
      return self._product(library, times, size, flops)
    flops, rows = self._fused_product(inside)
    if flops:
      rate = self.chip.flops * _TRITON * rows / (rows + _TRITON_ROWS)
      slowest = max(_PRODUCT_SLACK * self._memory(size), flops / rate)
      seconds = _PRODUCT_COST + slowest
      return self._kernel(x, 'product', times, size, flops, seconds)
    return self._moving(x, _kind_of({y.opcode for y in inside}), times, size)

  def _fused_product(self, inside: Sequence[Instruction]) -> tuple[float, int]:
    """FLOPs of the products in a fusion, and the shorter side of a result."""
    own, total, rows = {y.name: y for y in inside}, 0.0, 0
    for y in inside:
      if y.opcode == 'dot':
        out = y.arrays[0][1]
        total += _product_flops(y, own[y.operand], out)
        rows = max(rows, min(out[-2:], default=1))
      elif y.opcode == 'fusion':
        for callee in y.calls('calls'):
          found = self._fused_product(self.program.computations[callee])
          total, rows = total + found[0], max(rows, found[1])
    return total, rows

  def _product(
    self, x: Instruction, times: int, size: float, flops: float
  ) -> Kernel:
    slowest = max(self._memory(size), flops / (self.chip.flops * _PRODUCT))
    seconds = _PRODUCT_COST + _PRODUCT_SLACK * slowest
    return self._kernel(x, 'product', times, size, flops, seconds)

  def _moving(
    self, x: Instruction, kind: str, times: int, size: float
  ) -> Kernel:
    more = 0.3 * MICRO if kind == 'reduction' else 0.0
    seconds = _SMALL_COST + more + self._memory(size)
    return self._kernel(x, kind, times, size, 0, seconds)

  def _memory(self, size: float) -> float:
    return size / (self.chip.bandwidth * _MEMORY)

  def _kernel(
    self,
    x: Instruction,
    kind: str,
    times: int,
    size: float,
    flops: float,
    seconds: float,
  ) -> Kernel:
    match = _OP_NAME.search(x.line)
    return Kernel(
      kind=kind,
      name=x.name,
      op=match[1] if match else '',
      source=self.program.source(x, 'dreamer4_jax/'),
      count=times,
      bytes=size,
      flops=flops,
      seconds=seconds,
    )


def _kind_of(opcodes: set[str]) -> str:
  """Names what a kernel does by the most telling of its operations."""
  for kind, telling in (
    ('reduction', ('reduce', 'reduce-window')),
    ('concatenate', ('concatenate',)),
    ('pad', ('pad',)),
  ):
    if opcodes.intersection(telling):
      return kind
  busy = opcodes - _NOTHING
  if busy <= {'transpose', 'copy', 'convert'} and 'transpose' in busy:
    return 'transpose'
  moves = {'copy', 'slice', 'dynamic-slice', 'dynamic-update-slice', 'reshape'}
  # Their indices are computed by a few scalar operations.
  scalar = {'add', 'compare', 'select', 'clamp', 'convert'}
  if busy & moves and busy <= moves | scalar:
    return 'copy'
  return 'fusion'


def _unfused_bytes(x: Instruction, own: Mapping[str, Instruction]) -> float:
  if x.opcode in _SLICES:
    return 2 * x.bytes
  if x.opcode == 'dynamic-update-slice':
    return 2 * own[x.operands[1]].bytes
  return x.bytes + sum(own[n].bytes for n in x.operands if n in own)


def _fused_bytes(
  x: Instruction,
  inside: Sequence[Instruction],
  own: Mapping[str, Instruction],
) -> float:
  """Bytes that a fusion reads and writes.

  Of an array of which it only takes slices, these count; one that it updates
  in place is neither read nor written, save the update.
  """
  inner = {y.name: y for y in inside}
  users: dict[str, list[Instruction]] = {}
  for y in inside:
    for name in y.operands:
      users.setdefault(name, []).append(y)

  def read(y: Instruction, whole: float) -> float:
    """Bytes that are read of an instruction's result."""
    total = 0.0
    for user in users.get(y.name, []):
      if user.opcode in _SLICES and user.operand == y.name:
        total += user.bytes
      elif user.opcode == 'dynamic-update-slice' and user.operand == y.name:
        continue
      elif user.opcode in _VIEWS and not user.is_root:
        total += read(user, whole)
      else:
        return whole
    return min(total, whole)

  total = 0.0
  for y in inside:
    if y.opcode == 'parameter':
      outer = own.get(x.operands[int(_PARAMETER.search(y.line)[1])])
      total += read(y, outer.bytes if outer else y.bytes)
  root = next(y for y in inside if y.is_root)
  roots = [root]
  if root.opcode == 'tuple':
    roots = [inner[name] for name in root.operands]
  return total + sum(map(lambda y: _written(y, inner), roots))


def _is_cublas(x: Instruction) -> bool:
  return (
    x.opcode == 'custom-call'
    and 'custom_call_target="__cublas' in x.line
    and bool(_CONTRACTED.search(x.line))
  )


def _written(y: Instruction, inner: Mapping[str, Instruction]) -> float:
  if y.opcode == 'custom-call' and len(y.arrays) > 1:
    # Results of cuBLAS come with a work space.
    return _size(y.arrays[0])
  while y.opcode in _VIEWS and y.operand in inner:
    below = inner[y.operand]
    if below.opcode not in (*_VIEWS, 'dynamic-update-slice'):
      break
    y = below
  if y.opcode == 'dynamic-update-slice':
    return inner[y.operands[1]].bytes
  return y.bytes


def _product_flops(
  x: Instruction, left: Instruction, out: tuple[int, ...]
) -> float:
  axes = [int(n) for n in re.findall(r'\d+', _CONTRACTED.search(x.line)[1])]
  shape = left.arrays[0][1]
  return 2.0 * math.prod(out) * math.prod(shape[i] for i in axes)


def _size(array: tuple[str, tuple[int, ...]]) -> float:
  dtype, shape = array
  return Instruction('', f'{dtype}[{",".join(map(str, shape))}]', '', '').bytes
