"""Attention kernels for play on GPUs, which read what a product leaves.

They take queries, keys and values as the joined product of `nn.fuse` has them,
so that norms, rotations and transpositions cost no kernels of their own. See
`nn.gpu_attention`, also for how fast they are.
"""

from __future__ import annotations

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.nn.attention import KeyValues
from dreamer4_jax.nn.backends import Fixed
from dreamer4_jax.nn.gpu_blocks import (
  KEYS,
  Launch,
  Plan,
  dot,
  is_exact,
  size_of,
  weights_of,
)
from dreamer4_jax.types import Array

_LEAST_ROWS = 16  # Fewest rows that Triton multiplies.


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
    mask: as in `gpu_attention.attend_tokens`, likewise the cap.
    soft_cap: see there.
    groups: G.
    interpret: run on any platform, slowly.

  Returns:
    `[X, S, H * h]`, what the product `out` takes.
  """
  count, length, heads, head = joined.shape
  heads -= 2 * groups
  rows = heads // groups
  plan = Plan(length, Fixed(np.asarray(mask, bool)))
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
    exact=is_exact(joined.dtype, interpret),
  )
  launch = Launch(
    'frame',
    grid=(count, heads, plan.blocks),
    out=jax.ShapeDtypeStruct((count, length, heads, head), joined.dtype),
    out_specs=block(lambda x, n, i: (x, 0, n, 0)),
    flops=4 * count * heads * head * plan.pairs,
    size=2 * size_of(joined),
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
    soft_cap: as in `gpu_attention.attend_tokens`.
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
    exact=is_exact(joined.dtype, interpret),
  )
  of_period = 2 * size_of(rings.keys) / rings.keys.shape[0]
  launch = Launch(
    'ring',
    grid=(batch, tokens, groups),
    out=jax.ShapeDtypeStruct(
      (batch, tokens, frames, heads, head), joined.dtype
    ),
    out_specs=at(frames, heads, head),
    flops=4 * batch * tokens * frames * heads * (slots + frames) * head,
    size=of_period + 2 * size_of(joined),
  )
  y = launch(kernel, inputs, specs, interpret)
  return jnp.reshape(y, (batch, tokens, frames, heads * head))


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
    k = halves(k_ref, 1, start, KEYS)
    x = sum(dot(a, b.T) for a, b in zip(q, k, strict=True))
    weights, _ = weights_of(x, seen, 2 * half, cap, exact)
    v = plan.take(v_ref, start, KEYS)
    mixed += dot(weights.astype(v.dtype), v)
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
    columns = j * KEYS + jnp.arange(KEYS)
    there = columns < slots
    take = lambda ref, at: triton.load(
      ref.at[period, b, n, g, pl.ds(j * KEYS, KEYS), pl.ds(at, half)],
      mask=there[:, None],
      other=0,
    )
    x = sum(dot(q[i], take(keys_ref, i * half).T) for i in range(2))
    shown = triton.load(
      ring_ref.at[frame[:, None], columns[None]], mask=there[None], other=0
    )
    seen = there[None] & (shown != 0)
    weights, _ = weights_of(x, seen, 2 * half, cap, exact)
    small = weights.astype(dtype)
    mixed = [
      m + dot(small, take(values_ref, i * half)) for i, m in enumerate(mixed)
    ]
    return total + weights.sum(axis=1), *mixed

  blocks = pl.cdiv(slots, KEYS)
  total, *mixed = jax.lax.fori_loop(0, blocks, ring, (total, *mixed))
  for t in range(frames):
    own = lambda ref, at, t=t: ref[g, t, pl.ds(at, half)].astype(jnp.float32)
    x = sum(
      (q[i].astype(jnp.float32) * own(own_k_ref, i * half)[None]).sum(axis=1)
      for i in range(2)
    )
    seen = own_ref[frame, jnp.full(size, t)] != 0
    weights, _ = weights_of(x, seen, 2 * half, cap, exact)
    small = weights.astype(dtype).astype(jnp.float32)[:, None]
    mixed = [
      m + small * own(own_v_ref, i * half)[None] for i, m in enumerate(mixed)
    ]
    total += weights
  for i, m in enumerate(mixed):
    y_ref[frame[:, None], heads[:, None], i * half + lane] = (
      m / total[:, None]
    ).astype(dtype)


def _normalised(a, b, scale, eps: float = 1e-6):
  """`nn.rms_norm` of heads given as two halves, float32."""
  mean = ((a * a).sum(axis=1) + (b * b).sum(axis=1)) / (2 * a.shape[1])
  inverse = jax.lax.rsqrt(mean + eps)[:, None]
  return a * inverse * scale[0], b * inverse * scale[1]


def _turned(a, b, cos, sin):
  """`nn.rope.rotate` of heads given as two halves, float32."""
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return a * cos - b * sin, b * cos + a * sin
