"""What the compiler reports about a program."""

from __future__ import annotations

import dataclasses
from typing import Any

from dreamer4_jax.aot.chips import CHIPS
from dreamer4_jax.aot.hlo import COLLECTIVES, Program
from dreamer4_jax.aot.kernels import by_kind, list_kernels

# How often the bytes of `hlo.Cost` travel around a ring: an all-reduce
# scatters, then gathers.
_TRAVELS = {'all-reduce': 2}
_DEAREST = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """A compiled program; all but `parameters` and `devices` are per device.

  Attributes:
    chip: name in `chips.CHIPS`.
    devices: devices it runs on.
    parameters: numbers in its networks.
    model_flops: of matrix products, without recomputation.
    executed_flops: including what the backward pass recomputes.
    arguments: bytes of state and batch.
    outputs: bytes of results that do not replace an argument.
    temporaries: bytes of intermediate results, at their peak.
    code: bytes of the program itself.
    computing: seconds without collectives. On a TPU from the cycles that the
      compiler estimates, on a GPU by the roofline of `kernels`.
    collectives: by kind, how often it runs and its bytes, as in `hlo.Cost`.
    seconds_to_compile: what compiling took.
    kernels: of a GPU, by kind, as `kernels.by_kind` returns it.
    costliest: of a GPU, the fields of the kernels that take longest.
  """

  chip: str
  devices: int
  parameters: int
  model_flops: float
  executed_flops: float
  arguments: int
  outputs: int
  temporaries: int
  code: int
  computing: float
  collectives: dict[str, tuple[int, float]]
  seconds_to_compile: float
  kernels: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
  costliest: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  @property
  def memory(self) -> int:
    """Bytes of the chip's memory."""
    return CHIPS[self.chip].memory

  @property
  def used(self) -> int:
    """Bytes of the chip's memory that are needed."""
    return self.arguments + self.outputs + self.temporaries + self.code

  @property
  def spare(self) -> float:
    """Share of the chip's memory that stays free; negative if too little."""
    return 1 - self.used / self.memory

  @property
  def num_kernels(self) -> int:
    """Kernels that a GPU runs; 0 for a TPU."""
    return int(sum(kind['count'] for kind in self.kernels.values()))

  @property
  def moving(self) -> float:
    """Seconds that the collectives take over all links of the chip, at best."""
    travels = sum(
      _TRAVELS.get(kind, 1) * size
      for kind, (_, size) in self.collectives.items()
    )
    return travels / CHIPS[self.chip].links

  def utilisation(self, *, overlapped: bool) -> float:
    """Model FLOPs over the chip's rate, in the estimated time.

    Args:
      overlapped: whether the longer of computing and moving hides the other;
        else they take turns.
    """
    both = max if overlapped else sum
    seconds = both([self.computing, self.moving])
    return self.model_flops / CHIPS[self.chip].flops / seconds if seconds else 0


def measure(
  compiled: Any,
  *,
  chip: str,
  devices: int,
  parameters: int,
  model_flops: float,
  executed_flops: float,
  seconds_to_compile: float,
) -> Measured:
  """Reads memory, collectives and times off a compiled program.

  Args:
    compiled: result of `lowered.compile()`.
    chip: what it was compiled for; see `Measured`, as for the others.
    devices: how many of them.
    parameters: numbers in the networks.
    model_flops: for one device.
    executed_flops: for one device.
    seconds_to_compile: what compiling took.
  """
  memory = compiled.memory_analysis()
  program = Program(compiled.as_text())
  cost, about = program.cost, CHIPS[chip]
  kernels = []
  if about.gpu:
    kernels = [
      k for k in list_kernels(program, about) if k.kind not in COLLECTIVES
    ]
    computing = sum(k.total for k in kernels)
  else:
    computing = cost.cycles / about.clock
  return Measured(
    chip=chip,
    devices=devices,
    parameters=parameters,
    model_flops=model_flops,
    executed_flops=executed_flops,
    arguments=memory.argument_size_in_bytes,
    outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes,
    computing=computing,
    collectives={k: (n, cost.bytes[k]) for k, n in sorted(cost.counts.items())},
    seconds_to_compile=seconds_to_compile,
    kernels=by_kind(kernels),
    costliest=[dataclasses.asdict(k) for k in kernels[:_DEAREST]],
  )
