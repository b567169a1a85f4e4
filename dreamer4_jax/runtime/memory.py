"""Settings of the C allocator that suit programs with large arrays."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Numbers of the parameters in glibc's malloc.h."""
_NEVER = -1


def keep_freed_memory() -> bool:
  """Keeps freed memory in the process; programs call it before anything else.

  By default glibc hands large blocks back to the system as soon as they are
  freed. The next train step on CPU then gets new pages, each of which the
  system clears first: 1.5 GB a step for a tokenizer of 6.6 M parameters, which
  is a quarter of its time. A loader, which makes each batch of new arrays, pays
  the same price.

  All threads take blocks from the one heap that grows with the break: in other
  heaps glibc caps a block at 32 MiB and maps what is larger. The drawback:
  memory that was needed once stays with the process.

  Returns:
    Whether it had an effect; it has none outside of glibc.
  """
  if platform.libc_ver()[0] != 'glibc':
    return False
  mallopt = ctypes.CDLL(None).mallopt
  settings = {_TRIM_THRESHOLD: _NEVER, _MMAP_MAX: 0, _ARENA_MAX: 1}
  return all([mallopt(name, value) for name, value in settings.items()])
