"""Settings of the C allocator that suit programs with large arrays."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in glibc's malloc.h."""
_LARGEST = 2**31 - 1
_LARGEST_BEFORE = 32 << 20
"""What older versions of glibc allow."""


def keep_freed_memory() -> bool:
  """Keeps freed memory in the process; programs call it before anything else.

  By default glibc hands large blocks back to the system as soon as they are
  freed. The next step of a training on CPU then gets new pages, each of which
  the system clears first: 13,000 a step in the quickstart's dynamics phase,
  a fifth of its time. A loader, which makes a batch of new arrays each time,
  pays likewise. The price: memory that was needed once stays with the process.

  Returns:
    Whether it had an effect; it has none outside of glibc. Older versions of
    that still hand blocks of more than 32 MiB back.
  """
  if platform.libc_ver()[0] != 'glibc':
    return False
  mallopt = ctypes.CDLL(None).mallopt
  mapped = mallopt(_MMAP_THRESHOLD, _LARGEST)
  mapped = mapped or mallopt(_MMAP_THRESHOLD, _LARGEST_BEFORE)
  trimmed = mallopt(_TRIM_THRESHOLD, _LARGEST)
  return bool(mapped and trimmed)
