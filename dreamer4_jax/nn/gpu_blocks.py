"""What attention kernels for GPUs share: blocks, masks, launches, sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.nn.backends import Fixed
from dreamer4_jax.types import Array

KEYS = 64  # Keys per block.
_LONG = 512  # From here on, blocks of more queries pay.


@dataclasses.dataclass(frozen=True)
class Launch:
  """How a kernel is started.

  Attributes:
    name: says what it does, and its cost, which the compiled program does not.
    grid: programs along each axis.
    out: shapes of the results.
    out_specs: blocks of the results.
    flops: of its products.
    size: bytes that it has to move.
    warps: of a program.
  """

  name: str
  grid: tuple[int, ...]
  out: Any
  out_specs: Any
  flops: float
  size: float
  warps: int = 4

  def __call__(
    self,
    kernel: Callable[..., None],
    inputs: Sequence[Array],
    in_specs: Sequence[pl.BlockSpec],
    interpret: bool,
  ) -> Any:
    """Runs the kernel; returns its results."""
    flops, size = int(self.flops), int(self.size)
    more = {}
    if not interpret:
      more['compiler_params'] = triton.CompilerParams(
        num_warps=self.warps, num_stages=2
      )
    return pl.pallas_call(
      kernel,
      out_shape=self.out,
      grid=self.grid,
      in_specs=in_specs,
      out_specs=self.out_specs,
      cost_estimate=pl.CostEstimate(
        flops=flops, bytes_accessed=size, transcendentals=0
      ),
      name=f'attention_{self.name}_{flops}_flop_{size}_byte',
      interpret=interpret,
      **more,
    )(*inputs)


class Plan:
  """Blocks of queries, and which keys each block sees.

  Attributes:
    length: S.
    block: queries of a block.
    blocks: how many.
    warps: of a kernel.
    inputs: `[blocks, 2]` int32 the first key and the one after the last; and
      the mask, if some query of a block sees others than the block's range.
    pairs: queries times the keys of their ranges.
  """

  def __init__(self, length: int, seen: Fixed, flip: bool = False):
    mask = seen.mask.T if flip else seen.mask
    self.length = length
    self.block, self.warps = (128, 8) if length >= _LONG else (64, 4)
    if flip:
      self.block = KEYS
    self.blocks = pl.cdiv(length, self.block)
    ranges, even = [], True
    for start in range(0, length, self.block):
      own = mask[start : start + self.block]
      any_row = np.flatnonzero(own.any(axis=0))
      low, high = (any_row[0], any_row[-1] + 1) if any_row.size else (0, 0)
      even &= bool(own[:, low:high].all())
      ranges.append((low, high))
    self.inputs = [jnp.asarray(ranges, jnp.int32)]
    if not even:
      self.inputs.append(jnp.asarray(mask, jnp.int8))
    self.pairs = self.block * sum(high - low for low, high in ranges)

  def rows(self, i: Array) -> tuple[Array, Array]:
    """Indices of block i's queries, and which lie within the sequence."""
    rows = i * self.block + jnp.arange(self.block)
    return rows, rows < self.length

  def over_keys(
    self, i: Array, refs: Sequence[Any], body: Callable[..., Any], start: Any
  ) -> Any:
    """Loops over blocks of keys; `body(first, seen, carry)` returns a carry.

    Args:
      i: the block of queries.
      refs: of `inputs`.
      body: is given the first key of a block and which pairs are seen.
      start: the carry.
    """
    low, high = refs[0][i, 0], refs[0][i, 1]
    rows, _ = self.rows(i)

    def step(j: Array, carry: Any) -> Any:
      columns = j * KEYS + jnp.arange(KEYS)
      inside = (columns >= low) & (columns < high)
      seen = jnp.broadcast_to(inside[None], (self.block, KEYS))
      if len(refs) > 1:
        seen &= (rows < self.length)[:, None]
        at = refs[1].at[rows[:, None], columns[None]]
        seen &= triton.load(at, mask=seen, other=0) != 0
      return body(j * KEYS, seen, carry)

    return jax.lax.fori_loop(
      low // KEYS, (high + KEYS - 1) // KEYS, step, start
    )

  def take(self, ref: Any, start: Array, size: int, *lead: Array) -> Array:
    """Loads rows of `[*lead, S, n]`, zeros past the end."""
    inside = (start + jnp.arange(size) < self.length)[:, None]
    at = ref.at[(*lead, pl.ds(start, size), slice(None))]
    return triton.load(at, mask=inside, other=0)

  def put(self, ref: Any, start: Array, size: int, value: Array) -> None:
    """Stores rows of `[S, n]`, none past the end."""
    inside = (start + jnp.arange(size) < self.length)[:, None]
    at = ref.at[pl.ds(start, size), :]
    triton.store(at, value.astype(ref.dtype), mask=inside)


def weights_of(x, seen, head, cap, exact):
  """Exponentials of the capped logits, and `tanh(logits / cap)`."""
  tanh = jnp.tanh if exact else triton.approx_tanh
  bent = tanh(x * (head**-0.5 / cap))
  return jnp.where(seen, jnp.exp(cap * bent), 0.0), bent


def dot(a, b):
  """Product of matrices, `[m, k]` and `[k, n]`, added up in float32."""
  # Full float32, not TF32; no effect on bfloat16.
  precise = 'highest' if a.dtype == jnp.float32 else None
  return jnp.dot(a, b, precision=precise, preferred_element_type=jnp.float32)


def is_exact(dtype, interpret: bool) -> bool:
  """Whether to use the exact tanh; the hardware's is as precise as bfloat16."""
  return interpret or dtype == jnp.float32


def size_of(x: Array) -> int:
  """Bytes of an array."""
  return math.prod(x.shape) * x.dtype.itemsize
