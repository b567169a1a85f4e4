"""The C allocator, in processes of their own."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import numpy as np
from dreamer4_jax import memory
if sys.argv[1] == 'keep':
  assert memory.keep_freed_memory()
def work():
  for _ in range(20):
    np.ones(24 << 20, np.uint8)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
  command = [sys.executable, '-c', COUNT, mode]
  return int(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc', reason='only glibc has mallopt'
)
def test_arrays_do_not_ask_the_system_for_pages_again():
  # 20 arrays of 24 MiB: 12 pages or more each even where pages are huge.
  assert faults('default') >= 20 * 12
  assert faults('keep') < 20


def test_elsewhere_it_has_no_effect(monkeypatch):
  from dreamer4_jax import memory

  monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
  assert not memory.keep_freed_memory()
