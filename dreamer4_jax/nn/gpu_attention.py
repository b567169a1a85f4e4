"""Attention kernels for GPUs, in Pallas.

Three operations, all with a soft cap, which bounds the logits: the softmax
needs no maximum, and one pass over the keys suffices. `attend_tokens` is for
training and has a backward pass. The others are for play: they take queries,
keys and values as one product leaves them, so that norms, rotations and
transpositions cost no kernels of their own. For bfloat16 the tanh of the cap is
the hardware's, whose relative error of 2**-11 is below that of bfloat16.

On an H100 a forward kernel of this kind took half of the time of XLA's einsum
for the 264 tokens of a frame of the dynamics, and a sixth for the tokenizer's
1,472 (`docs/notes.md`). A time layer that reads no ring is left to XLA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.nn.attention import KeyValues
from dreamer4_jax.nn.backends import Fixed
from dreamer4_jax.types import Array

_LONG = 512  # From here on, blocks of more queries pay.
_KEYS = 64  # Keys per block.
_LEAST_ROWS = 16  # Fewest rows that Triton multiplies.


def attend_tokens(
  queries: Array,
  keys: Array,
  values: Array,
  mask: np.ndarray,
  soft_cap: float,
  *,
  interpret: bool = False,
) -> Array:
  """Attention of sequences to themselves; differentiable.

  Args:
    queries: `[X, G, R, S, h]`, R query heads share a key/value head.
    keys: `[X, G, S, h]`.
    values: `[X, G, S, h]`.
    mask: `[S, S]` bool, true where row may attend to column. What lies before
      the first key and after the last that a block of queries sees costs
      nothing.
    soft_cap: logits become `cap * tanh(logits / cap)`; at most 80.
    interpret: run on any platform, slowly.

  Returns:
    `[X, G, R, S, h]`.
  """
  seen = Fixed(np.asarray(mask, bool))
  return _attend_tokens(queries, keys, values, seen, soft_cap, interpret)


def attend_frame(
  joined: Array,
  scales: Array,
  rotation: tuple[Array, Array] | None,
  mask: np.ndarray,
  soft_cap: float,
  *,
  groups: int,
  interpret: bool = False,
) -> Array:
  """A space layer's attention, from the joined product of `nn.fuse`.

  Args:
    joined: `[X, S, H + 2 G, h]` queries, keys and values, neither normalised
      nor rotated.
    scales: `[2, h]` of the RMSNorms of queries and keys.
    rotation: cosines and sines `[S, h / 2]` of each token, or None.
    mask: as in `attend_tokens`, likewise the cap.
    soft_cap: see there.
    groups: G.
    interpret: run on any platform, slowly.

  Returns:
    `[X, S, H * h]`, what the product `out` takes.
  """
  count, length, heads, head = joined.shape
  heads -= 2 * groups
  rows = heads // groups
  plan = _Plan(length, Fixed(np.asarray(mask, bool)))
  block = lambda index: pl.BlockSpec((None, length, None, head), index)
  whole = lambda *shape: pl.BlockSpec(shape, lambda x, n, i: (0,) * len(shape))
  inputs = [joined] * 3 + [scales]
  specs = [
    block(lambda x, n, i: (x, 0, n, 0)),
    block(lambda x, n, i: (x, 0, heads + n // rows, 0)),
    block(lambda x, n, i: (x, 0, heads + groups + n // rows, 0)),
    whole(2, head),
  ]
  if rotation is not None:
    inputs += rotation
    specs += [whole(length, head // 2)] * 2
  inputs += plan.inputs
  specs += [whole(*x.shape) for x in plan.inputs]
  kernel = functools.partial(
    _frame_kernel,
    plan=plan,
    cap=soft_cap,
    turned=rotation is not None,
    exact=_is_exact(joined.dtype, interpret),
  )
  launch = _Launch(
    'frame',
    grid=(count, heads, plan.blocks),
    out=jax.ShapeDtypeStruct((count, length, heads, head), joined.dtype),
    out_specs=block(lambda x, n, i: (x, 0, n, 0)),
    flops=4 * count * heads * head * plan.pairs,
    size=2 * _size(joined),
    warps=plan.warps,
  )
  y = launch(kernel, inputs, specs, interpret)
  return jnp.reshape(y, (count, length, heads * head))


def attend_ring(
  joined: Array,
  own: KeyValues,
  scales: Array,
  rotation: tuple[Array, Array],
  past: tuple[KeyValues, Array],
  seen: tuple[Array, Array],
  soft_cap: float,
  *,
  interpret: bool = False,
) -> Array:
  """A time layer's attention to the ring of past frames, which it reads once.

  Args:
    joined: `[B, N, T, H + 2 G, h]`, of which the queries are read, neither
      normalised nor rotated. T is 1 or 2.
    own: keys, normalised and rotated, and values of these frames,
      `[B, N, G, T, h]`.
    scales: `[2, h]` as in `attend_frame`, of which the first is read.
    rotation: cosines and sines `[T, h / 2]` of each frame.
    past: the rings of all periods, `[periods, B, N, G, L, h]`, read in place;
      and `[1]` int32, which period.
    seen: `[B, T, L]` bool, the slots, and `[B, T, T]` bool, the frames that a
      frame sees.
    soft_cap: as in `attend_tokens`.
    interpret: run on any platform, slowly.

  Returns:
    `[B, N, T, H * h]`, what the product `out` takes.
  """
  batch, tokens, frames, _, head = joined.shape
  rings, period = past
  groups, slots = rings.keys.shape[3:5]
  heads = joined.shape[3] - 2 * groups
  at = lambda *shape: pl.BlockSpec(
    (None, None, *shape), lambda b, n, g: (b, n, *[0] * len(shape))
  )
  whole = lambda *shape: pl.BlockSpec(shape, lambda b, n, g: (0,) * len(shape))
  of_batch = lambda *shape: pl.BlockSpec(
    (None, *shape), lambda b, n, g: (b, *[0] * len(shape))
  )
  inputs = [
    joined, own.keys, own.values, scales, *rotation, rings.keys, rings.values,
    period, *(mask.astype(jnp.int8) for mask in seen),
  ]  # fmt: skip
  specs = [
    at(frames, heads + 2 * groups, head),
    at(groups, frames, head),
    at(groups, frames, head),
    whole(2, head),
    whole(frames, head // 2),
    whole(frames, head // 2),
    whole(*rings.keys.shape),
    whole(*rings.keys.shape),
    whole(1),
    of_batch(frames, slots),
    of_batch(frames, frames),
  ]
  kernel = functools.partial(
    _ring_kernel,
    rows=heads // groups,
    frames=frames,
    slots=slots,
    cap=soft_cap,
    exact=_is_exact(joined.dtype, interpret),
  )
  of_period = 2 * _size(rings.keys) / rings.keys.shape[0]
  launch = _Launch(
    'ring',
    grid=(batch, tokens, groups),
    out=jax.ShapeDtypeStruct(
      (batch, tokens, frames, heads, head), joined.dtype
    ),
    out_specs=at(frames, heads, head),
    flops=4 * batch * tokens * frames * heads * (slots + frames) * head,
    size=of_period + 2 * _size(joined),
  )
  y = launch(kernel, inputs, specs, interpret)
  return jnp.reshape(y, (batch, tokens, frames, heads * head))


@dataclasses.dataclass(frozen=True)
class _Launch:
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


class _Plan:
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
      self.block = _KEYS
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
      columns = j * _KEYS + jnp.arange(_KEYS)
      inside = (columns >= low) & (columns < high)
      seen = jnp.broadcast_to(inside[None], (self.block, _KEYS))
      if len(refs) > 1:
        seen &= (rows < self.length)[:, None]
        at = refs[1].at[rows[:, None], columns[None]]
        seen &= triton.load(at, mask=seen, other=0) != 0
      return body(j * _KEYS, seen, carry)

    return jax.lax.fori_loop(
      low // _KEYS, (high + _KEYS - 1) // _KEYS, step, start
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


def _frame_kernel(q_ref, k_ref, v_ref, *refs, plan, cap, turned, exact):
  *given, y_ref = refs
  scales, *given = given
  angles, ranges = (given[:2], given[2:]) if turned else (None, given)
  i, half = pl.program_id(2), q_ref.shape[-1] // 2

  def halves(ref, number, start, size):
    """Rows, normalised and rotated: first and second half of each head."""
    inside = (start + jnp.arange(size) < plan.length)[:, None]
    cut = lambda r, rows, at: triton.load(
      r.at[rows, pl.ds(at, half)], mask=inside, other=0
    )
    rows = pl.ds(start, size)
    a, b = (cut(ref, rows, at).astype(jnp.float32) for at in (0, half))
    scale = [scales[number, pl.ds(at, half)][None] for at in (0, half)]
    a, b = _normalised(a, b, scale)
    if angles is not None:
      a, b = a.astype(ref.dtype), b.astype(ref.dtype)
      a, b = _turned(a, b, *(cut(r, rows, 0) for r in angles))
    return a.astype(ref.dtype), b.astype(ref.dtype)

  q = halves(q_ref, 0, i * plan.block, plan.block)

  def body(start, seen, carry):
    total, mixed = carry
    k = halves(k_ref, 1, start, _KEYS)
    x = sum(_dot(a, b.T) for a, b in zip(q, k, strict=True))
    weights, _ = _weights(x, seen, 2 * half, cap, exact)
    v = plan.take(v_ref, start, _KEYS)
    mixed += _dot(weights.astype(v.dtype), v)
    return total + weights.sum(axis=1), mixed

  start = (jnp.zeros(plan.block), jnp.zeros((plan.block, 2 * half)))
  total, mixed = plan.over_keys(i, ranges, body, start)
  total = jnp.where(plan.rows(i)[1], total, 1.0)
  plan.put(y_ref, i * plan.block, plan.block, mixed / total[:, None])


def _ring_kernel(*refs, rows, frames, slots, cap, exact):
  q_ref, own_k_ref, own_v_ref, scale_ref, cos_ref, sin_ref, *refs = refs
  keys_ref, values_ref, period_ref, ring_ref, own_ref, y_ref = refs
  b, n, g = (pl.program_id(i) for i in range(3))
  half, dtype = q_ref.shape[-1] // 2, q_ref.dtype
  size = max(_LEAST_ROWS, pl.next_power_of_2(rows * frames))
  # A row is a frame and one of the heads that share keys. Those beyond compute
  # the same as others do, and store it at the same place.
  number = jnp.arange(size) % (rows * frames)
  frame, heads = number // rows, g * rows + number % rows
  lane = jnp.arange(half)[None]
  cut = lambda at: q_ref[frame[:, None], heads[:, None], at + lane].astype(
    jnp.float32
  )
  scale = [scale_ref[0, pl.ds(at, half)][None] for at in (0, half)]
  q = _normalised(cut(0), cut(half), scale)
  q = [x.astype(dtype) for x in q]
  q = _turned(*q, *(r[frame[:, None], lane] for r in (cos_ref, sin_ref)))
  q = [x.astype(dtype) for x in q]
  total, mixed = jnp.zeros(size), [jnp.zeros((size, half))] * 2
  period = period_ref[0]

  def ring(j, carry):
    total, *mixed = carry
    columns = j * _KEYS + jnp.arange(_KEYS)
    there = columns < slots
    take = lambda ref, at: triton.load(
      ref.at[period, b, n, g, pl.ds(j * _KEYS, _KEYS), pl.ds(at, half)],
      mask=there[:, None],
      other=0,
    )
    x = sum(_dot(q[i], take(keys_ref, i * half).T) for i in range(2))
    shown = triton.load(
      ring_ref.at[frame[:, None], columns[None]], mask=there[None], other=0
    )
    seen = there[None] & (shown != 0)
    weights, _ = _weights(x, seen, 2 * half, cap, exact)
    small = weights.astype(dtype)
    mixed = [
      m + _dot(small, take(values_ref, i * half)) for i, m in enumerate(mixed)
    ]
    return total + weights.sum(axis=1), *mixed

  blocks = pl.cdiv(slots, _KEYS)
  total, *mixed = jax.lax.fori_loop(0, blocks, ring, (total, *mixed))
  for t in range(frames):
    own = lambda ref, at, t=t: ref[g, t, pl.ds(at, half)].astype(jnp.float32)
    x = sum(
      (q[i].astype(jnp.float32) * own(own_k_ref, i * half)[None]).sum(axis=1)
      for i in range(2)
    )
    seen = own_ref[frame, jnp.full(size, t)] != 0
    weights, _ = _weights(x, seen, 2 * half, cap, exact)
    small = weights.astype(dtype).astype(jnp.float32)[:, None]
    mixed = [
      m + small * own(own_v_ref, i * half)[None] for i, m in enumerate(mixed)
    ]
    total += weights
  for i, m in enumerate(mixed):
    y_ref[frame[:, None], heads[:, None], i * half + lane] = (
      m / total[:, None]
    ).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend_tokens(q, k, v, seen, cap, interpret):
  return _forward(q, k, v, seen, cap, interpret)[0]


def _forward(q, k, v, seen, cap, interpret):
  count, groups, rows, length, head = q.shape
  plan = _Plan(length, seen)
  per_head, per_group, whole = _specs(q)
  kernel = functools.partial(
    _forward_kernel, plan=plan, cap=cap, exact=_is_exact(q.dtype, interpret)
  )
  launch = _Launch(
    'forward',
    grid=(count, groups * rows, plan.blocks),
    out=[
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((*q.shape[:-1], 1), jnp.float32),
    ],
    out_specs=[per_head(head), per_head(1)],
    flops=4 * count * groups * rows * head * plan.pairs,
    size=2 * (_size(q) + _size(k)),
    warps=plan.warps,
  )
  specs = [per_head(head), per_group, per_group, *map(whole, plan.inputs)]
  y, inverse = launch(kernel, [q, k, v, *plan.inputs], specs, interpret)
  return y, (q, k, v, y, inverse)


def _backward(seen, cap, interpret, residuals, gradient):
  q, k, v, y, inverse = residuals
  count, groups, rows, length, head = q.shape
  wide = gradient.astype(jnp.float32)
  slope = (wide * y.astype(jnp.float32)).sum(axis=-1, keepdims=True)
  gradient = gradient.astype(q.dtype)
  per_head, per_group, whole = _specs(q)
  exact = _is_exact(q.dtype, interpret)
  pairs = count * groups * rows * head
  inputs = [q, k, v, gradient, inverse, slope]
  plan = _Plan(length, seen)
  launch = _Launch(
    'queries',
    grid=(count, groups * rows, plan.blocks),
    out=jax.ShapeDtypeStruct(q.shape, q.dtype),
    out_specs=per_head(head),
    flops=6 * pairs * plan.pairs,
    size=3 * _size(q) + 2 * _size(k),
    warps=plan.warps,
  )
  to_q = launch(
    functools.partial(_query_kernel, plan=plan, cap=cap, exact=exact),
    [*inputs, *plan.inputs],
    [
      per_head(head), per_group, per_group, per_head(head), per_head(1),
      per_head(1), *map(whole, plan.inputs),
    ],
    interpret,
  )  # fmt: skip
  plan = _Plan(length, seen, flip=True)
  heads = lambda n: pl.BlockSpec(
    (None, None, rows, length, n), lambda x, g, i: (x, g, 0, 0, 0)
  )
  group = pl.BlockSpec((None, None, length, head), lambda x, g, i: (x, g, 0, 0))
  launch = _Launch(
    'keys',
    grid=(count, groups, plan.blocks),
    out=[jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
    out_specs=[group, group],
    flops=8 * pairs * plan.pairs,
    size=2 * _size(q) + 4 * _size(k),
    warps=8 if head > 64 else 4,
  )
  to_k, to_v = launch(
    functools.partial(_key_kernel, plan=plan, cap=cap, exact=exact),
    [*inputs, *plan.inputs],
    [
      heads(head), group, group, heads(head), heads(1), heads(1),
      *map(whole, plan.inputs),
    ],
    interpret,
  )  # fmt: skip
  return to_q, to_k, to_v


_attend_tokens.defvjp(_forward, _backward)


def _forward_kernel(q_ref, k_ref, v_ref, *refs, plan, cap, exact):
  *ranges, y_ref, inverse_ref = refs
  i, head = pl.program_id(2), q_ref.shape[-1]
  q = plan.take(q_ref, i * plan.block, plan.block)

  def body(start, seen, carry):
    total, mixed = carry
    x = _dot(q, plan.take(k_ref, start, _KEYS).T)
    weights, _ = _weights(x, seen, head, cap, exact)
    v = plan.take(v_ref, start, _KEYS)
    mixed += _dot(weights.astype(v.dtype), v)
    return total + weights.sum(axis=1), mixed

  start = (jnp.zeros(plan.block), jnp.zeros((plan.block, head)))
  total, mixed = plan.over_keys(i, ranges, body, start)
  inverse = (1 / jnp.where(plan.rows(i)[1], total, 1.0))[:, None]
  plan.put(y_ref, i * plan.block, plan.block, mixed * inverse)
  plan.put(inverse_ref, i * plan.block, plan.block, inverse)


def _query_kernel(q_ref, k_ref, v_ref, *refs, plan, cap, exact):
  g_ref, inverse_ref, slope_ref, *ranges, out_ref = refs
  i, head = pl.program_id(2), q_ref.shape[-1]
  rows = [
    plan.take(ref, i * plan.block, plan.block)
    for ref in (q_ref, g_ref, inverse_ref, slope_ref)
  ]

  def body(start, seen, total):
    keys = [plan.take(ref, start, _KEYS) for ref in (k_ref, v_ref)]
    _, moved = _gradients(rows, keys, seen, cap, exact)
    return total + _dot(moved, keys[0])

  total = plan.over_keys(i, ranges, body, jnp.zeros((plan.block, head)))
  plan.put(out_ref, i * plan.block, plan.block, total)


def _key_kernel(q_ref, k_ref, v_ref, *refs, plan, cap, exact):
  g_ref, inverse_ref, slope_ref, *ranges, to_k_ref, to_v_ref = refs
  i, (heads, _, head) = pl.program_id(2), q_ref.shape
  keys = [plan.take(ref, i * plan.block, plan.block) for ref in (k_ref, v_ref)]
  totals = jnp.zeros((plan.block, head)), jnp.zeros((plan.block, head))
  for number in range(heads):

    def body(start, seen, totals, number=number):
      rows = [
        plan.take(ref, start, _KEYS, jnp.int32(number))
        for ref in (q_ref, g_ref, inverse_ref, slope_ref)
      ]
      q, g = rows[:2]
      # The plan's rows are keys here, and its columns queries.
      weights, moved = _gradients(rows, keys, seen.T, cap, exact)
      to_k, to_v = totals
      to_k += _dot(moved.T, q)
      return to_k, to_v + _dot(weights.astype(g.dtype).T, g)

    totals = plan.over_keys(i, ranges, body, totals)
  for ref, total in zip((to_k_ref, to_v_ref), totals, strict=True):
    plan.put(ref, i * plan.block, plan.block, total)


def _gradients(rows, keys, seen, cap, exact):
  """Softmax weights, and the gradient with respect to the product q k.

  Args:
    rows: queries, gradient, inverse of the weights' sum, and slope.
    keys: keys and values.
    seen: pairs that count.
    cap: the soft cap.
    exact: see `_is_exact`.
  """
  (q, g, inverse, slope), (k, v) = rows, keys
  head = q.shape[-1]
  weights, bent = _weights(_dot(q, k.T), seen, head, cap, exact)
  weights *= inverse
  scale = head**-0.5
  steep = (scale - scale * bent * bent) * weights
  moved = steep * (_dot(g, v.T) - slope)
  return weights, moved.astype(q.dtype)


def _weights(x, seen, head, cap, exact):
  """Exponentials of the capped logits, and `tanh(logits / cap)`."""
  tanh = jnp.tanh if exact else triton.approx_tanh
  bent = tanh(x * (head**-0.5 / cap))
  return jnp.where(seen, jnp.exp(cap * bent), 0.0), bent


def _normalised(a, b, scale, eps: float = 1e-6):
  """`nn.rms_norm` of heads given as two halves, float32."""
  mean = ((a * a).sum(axis=1) + (b * b).sum(axis=1)) / (2 * a.shape[1])
  inverse = jax.lax.rsqrt(mean + eps)[:, None]
  return a * inverse * scale[0], b * inverse * scale[1]


def _turned(a, b, cos, sin):
  """`nn.rope.rotate` of heads given as two halves, float32."""
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return a * cos - b * sin, b * cos + a * sin


def _dot(a, b):
  # Full float32, not TF32; no effect on bfloat16.
  precise = 'highest' if a.dtype == jnp.float32 else None
  return jnp.dot(a, b, precision=precise, preferred_element_type=jnp.float32)


def _is_exact(dtype, interpret: bool) -> bool:
  """Whether to use the exact tanh; the hardware's is as precise as bfloat16."""
  return interpret or dtype == jnp.float32


def _specs(q: Array):
  """Blocks of `[X, G, R, S, n]` by head, of `[X, G, S, h]`, and whole ones."""
  _, _, rows, length, head = q.shape
  per_head = lambda n: pl.BlockSpec(
    (None, None, None, length, n),
    lambda x, m, i: (x, m // rows, m % rows, 0, 0),
  )
  per_group = pl.BlockSpec(
    (None, None, length, head), lambda x, m, i: (x, m // rows, 0, 0)
  )
  whole = lambda a: pl.BlockSpec(a.shape, lambda x, m, i: (0,) * a.ndim)
  return per_head, per_group, whole


def _size(x: Array) -> int:
  return math.prod(x.shape) * x.dtype.itemsize
