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
  for _ in range(10):
    [np.ones(20 << 20, np.uint8) for _ in range(4)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
  command = [sys.executable, '-c', COUNT, mode]
  return int(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc', reason='the C library is not glibc'
)
def test_arrays_do_not_ask_the_system_for_pages_again():
  # Ten rounds of four arrays of 20 MiB, each 9 pages or more even where pages
  # are huge. By default glibc hands back what is free beyond twice the largest
  # block; every version may keep blocks of 20 MiB.
  assert faults('default') >= 10 * 4 * 9
  assert faults('keep') < 40


def test_elsewhere_it_has_no_effect(monkeypatch):
  from dreamer4_jax import memory

  monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
  assert not memory.keep_freed_memory()
