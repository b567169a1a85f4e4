"""What computes attention within a sequence: XLA, or a fused kernel.

A space layer attends within a frame, a time layer along a clip, and both know
their mask in advance, except for the segments. `xla` is `attention.attend`,
which serves everything and is what the others are tested against. `splash` is
JAX's Pallas kernel for TPU and `triton` this project's kernels for GPU; both
have the soft cap and grouped queries, which cuDNN does not. They never write
the logits to memory.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import importlib.util
import logging
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from dreamer4_jax.checks import require
from dreamer4_jax.nn import masks
from dreamer4_jax.nn.attention import KeyValues, attend
from dreamer4_jax.nn.config import Backend
from dreamer4_jax.nn.partition import per_device
from dreamer4_jax.types import Array

PLATFORMS = {'splash': ('tpu',), 'triton': ('gpu', 'cuda')}
"""Where the fused kernels run."""
DTYPES = ('bfloat16',)
"""Compute dtypes that kernels for GPU are taken for."""
INTERPRET = False
"""Whether kernels for GPU are interpreted, for tests on a CPU."""
_LANES = 128  # Splash attention takes sequences in multiples of this.
SHORTEST = {'splash': _LANES, 'triton': 32}
"""Tokens of the shortest sequence that a kernel takes."""
_BLOCK = 512
_PADDING = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Fixed:
  """A mask `[S, S]` that is known while tracing, compared by its values."""

  mask: np.ndarray

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Fixed) and np.array_equal(self.mask, other.mask)

  def __hash__(self) -> int:
    return hash((self.mask.shape, self.mask.tobytes()))


@struct.dataclass
class SequenceMask:
  """Which tokens of a sequence see which, true where row may see column.

  Attributes:
    fixed: what is known while tracing, if anything.
    segment_ids: `[..., S]` int32, no token sees another segment; or None.
    dense: both, broadcasts to `[..., G, R, S, S]`.
  """

  fixed: Fixed | None = struct.field(pytree_node=False)
  segment_ids: Array | None
  dense: Array

  @classmethod
  def make(
    cls, mask: ArrayLike, segment_ids: Array | None = None
  ) -> SequenceMask:
    """Combines a mask with segments.

    Args:
      mask: `[S, S]` bool, true where row may attend to column, of NumPy or JAX.
        One that is computed within `jax.jit` works as well, but kernels that
        are built for a mask then give way to XLA.
      segment_ids: `[..., S]` int32; None is one segment.

    Raises:
      ValueError: the mask is not square or not bool, or it is known while
        tracing and a row of it sees nothing.
    """
    known = not isinstance(mask, jax.core.Tracer)
    if known:
      mask = np.asarray(mask)
    shape = mask.shape
    if len(shape) != 2 or shape[0] != shape[1] or mask.dtype != bool:
      raise ValueError(
        f'mask has shape {shape} and dtype {mask.dtype}, expected [S, S] bool, '
        'true where row may attend to column'
      )
    if known and not mask.any(axis=1).all():
      row = int(np.argmin(mask.any(axis=1)))
      raise ValueError(
        f'mask[{row}] is false everywhere: every token must see one, for '
        'example itself'
      )
    dense = jnp.asarray(mask)
    if segment_ids is not None:
      same = segment_ids[..., :, None] == segment_ids[..., None, :]
      dense = (same & jnp.expand_dims(dense, tuple(range(same.ndim - 2))))[
        ..., None, None, :, :
      ]
    fixed = Fixed(mask) if known else None
    return cls(fixed=fixed, segment_ids=segment_ids, dense=dense)

  @classmethod
  def of(
    cls, mask: ArrayLike | SequenceMask | None, length: int
  ) -> SequenceMask:
    """Returns the mask of a sequence, as it is or made from an array.

    Args:
      mask: as `make` takes it; None lets all attend to all.
      length: S, tokens of the sequence.

    Raises:
      ValueError: as in `make`, or it is the mask of another length.
    """
    if mask is None:
      mask = np.ones((length, length), bool)
    if not isinstance(mask, cls):
      mask = cls.make(mask)
    found = mask.dense.shape[-1]
    if found != length:
      raise ValueError(f'mask is for {found} tokens, expected {length}')
    return mask

  def padded(self, padding: int) -> SequenceMask:
    """Returns the mask of one segment with tokens added that nobody sees."""
    whole = self.fixed.mask if self.fixed else self.dense
    return self.make(masks.padded_mask(whole, padding))


def resolve_backend(
  backend: Backend, platform: str | None, field: str
) -> Backend:
  """Returns the backend for a platform.

  Args:
    backend: as configured; `auto` is `triton` on NVIDIA GPUs from Ampere on if
      JAX has Pallas for Triton, and else `xla`: splash has not been measured on
      a TPU yet.
    platform: `cpu`, `gpu` or `tpu`; None is that of the process, whose devices
      this opens: join other processes before.
    field: named in errors.

  Raises:
    ValueError: the platform lacks the backend.
  """
  own = platform is None
  platform = platform or jax.default_backend()
  if backend == 'auto':
    if platform not in PLATFORMS['triton'] or (own and not _is_ampere()):
      return 'xla'
    found = importlib.util.find_spec('jax.experimental.pallas.triton')
    return 'triton' if found else 'xla'
  if backend in PLATFORMS:
    require(
      platform in PLATFORMS[backend],
      field,
      backend,
      f'runs on {PLATFORMS[backend][0]} only, and this is {platform}; use '
      "'auto' or 'xla'",
    )
  return backend


def attend_sequence(
  backend: Backend,
  queries: Array,
  own: KeyValues,
  mask: SequenceMask,
  soft_cap: float | None,
  *,
  fast_gradient: bool = True,
) -> Array:
  """Attention of a sequence to itself.

  Args:
    backend: as `resolve_backend` returns it. A kernel gives way to `xla` if the
      sequence is too short, the mask known too late, or the heads are of a size
      that it does not take; this is logged once. `triton` leaves several
      segments, such as those along time, to XLA, which is faster there.
    queries: `[..., G, R, S, h]`.
    own: keys and values `[..., G, S, h]`.
    mask: of the sequence; every token must see one.
    soft_cap: as in `attend`; splash also works without one.
    fast_gradient: as in `attend`; kernels have their own.

  Returns:
    `[..., G, R, S, h]`.
  """
  length = queries.shape[-2]
  kernel: Callable[..., Array] | None = None
  if backend == 'splash':
    kernel = splash
  elif backend == 'triton' and mask.segment_ids is None:
    head, dtype = queries.shape[-1], queries.dtype
    if has_gpu_kernel(head, soft_cap, dtype):
      kernel = on_gpu
    else:
      _log_once(
        f'attention with {dtype} heads of {head} and a soft cap of {soft_cap}: '
        'xla, there is no kernel for GPU'
      )
  if kernel is not None and length < SHORTEST[backend]:
    _log_once(f'attention over {length} tokens: xla, too short for {backend}')
    kernel = None
  if kernel is not None and mask.fixed is None:
    _log_once(
      f'attention over {length} tokens: xla, {backend} needs a mask that is '
      'known while tracing, such as one of NumPy'
    )
    kernel = None
  if kernel is None:
    blocks = [(own, mask.dense)]
    return attend(queries, blocks, soft_cap, fast_gradient=fast_gradient)
  return kernel(queries, own, mask, soft_cap)


def splash(
  queries: Array,
  own: KeyValues,
  mask: SequenceMask,
  soft_cap: float | None,
  *,
  interpret: bool = False,
) -> Array:
  """Splash attention; arguments as in `attend_sequence`.

  Sequences are padded to whole blocks; padding tokens see only themselves.
  """
  from jax.experimental.pallas.ops.tpu import (
    splash_attention,
  )

  rows, length, head = queries.shape[-3:]
  more = -length % _LANES
  whole = length + more
  block = max(b for b in range(_LANES, _BLOCK + 1, _LANES) if whole % b == 0)
  sides = ('q', 'kv', 'q_dkv', 'kv_dkv', 'q_dq', 'kv_dq')
  blocks = {f'block_{side}': block for side in sides}
  seen = np.eye(whole, dtype=bool)
  seen[:length, :length] = mask.fixed.mask

  def run(q: Array, k: Array, v: Array, ids: Array | None = None) -> Array:
    groups = q.shape[-4]
    kernel = splash_attention.make_splash_mha_single_device(
      splash_attention.MultiHeadMask(
        [splash_attention.NumpyMask(seen)] * (groups * rows)
      ),
      block_sizes=splash_attention.BlockSizes(**blocks),
      attn_logits_soft_cap=soft_cap,
      interpret=interpret,
    )
    flat = lambda x, n: jnp.reshape(x, (-1, n, whole, x.shape[-1]))
    args = [flat(q, groups * rows), flat(k, groups), flat(v, groups)]
    if ids is not None:
      ids = jnp.broadcast_to(ids, (*q.shape[:-4], whole))
      ids = jnp.reshape(ids, (-1, whole))
      args.append(splash_attention.SegmentIds(q=ids, kv=ids))
    return jnp.reshape(jax.vmap(kernel)(*args), q.shape)

  def pad(x: Array, axis: int, value: int = 0) -> Array:
    axis %= x.ndim
    widths = [(0, more if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)

  scaled = queries * jnp.asarray(head**-0.5, queries.dtype)
  args = [pad(x, -2) for x in (scaled, own.keys, own.values)]
  axes = [_by_head(queries)] * 3
  if mask.segment_ids is not None:
    args.append(pad(mask.segment_ids, -1, _PADDING))
    axes.append(('batch',))
  return per_device(run, args, axes)[..., :length, :]


def _is_ampere() -> bool:
  """Whether the GPU of this process is NVIDIA's, of Ampere or later."""
  capability = str(getattr(jax.devices()[0], 'compute_capability', ''))
  major = capability.partition('.')[0]
  return major.isdigit() and int(major) >= 8


def has_gpu_kernel(head: int, soft_cap: float | None, dtype: Any) -> bool:
  """Whether the kernels of `gpu_attention` take heads of this dimension.

  Those of float32 work, but have not been timed beside XLA's TF32.
  """
  fits = 32 <= head <= 128 and head & (head - 1) == 0
  return fits and soft_cap is not None and str(jnp.dtype(dtype)) in DTYPES


def on_gpu(
  queries: Array, own: KeyValues, mask: SequenceMask, soft_cap: float
) -> Array:
  """This project's kernel for GPU, for one segment; see `attend_sequence`."""
  from dreamer4_jax.nn import gpu_attention

  def run(q: Array, k: Array, v: Array) -> Array:
    flat = lambda x, lead: jnp.reshape(x, (-1, *x.shape[lead:]))
    y = gpu_attention.attend_tokens(
      flat(q, -4),
      flat(k, -3),
      flat(v, -3),
      mask.fixed.mask,
      soft_cap,
      interpret=INTERPRET,
    )
    return jnp.reshape(y, q.shape)

  args = [queries, own.keys, own.values]
  return per_device(run, args, [_by_head(queries)] * 3)


def _by_head(queries: Array) -> tuple[str | None, ...]:
  """Logical axes of the first dimensions `[B, ..., G]`."""
  return ('batch', *[None] * (queries.ndim - 5), 'kv_heads')


@functools.cache
def _log_once(text: str) -> None:
  logging.getLogger(__name__).info(text)
