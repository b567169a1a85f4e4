"""The C allocator, in processes of their own."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, threading
import numpy as np
from dreamer4_jax.runtime import memory
if sys.argv[1] == 'keep':
  assert memory.keep_freed_memory()
def work():
  for _ in range(10):
    [np.ones(size << 20, np.uint8) for size in (20, 20, 20, 20, 100)]
def count():
  work()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  work()
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=count)
thread.start()
thread.join()
"""


def faults(mode):
  command = [sys.executable, '-c', COUNT, mode]
  return int(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc', reason='the C library is not glibc'
)
def test_arrays_do_not_ask_the_system_for_pages_again():
  # Ten rounds of 180 MiB, 90 pages or more even where pages are huge, on a
  # thread that is not the main one, as XLA's are. By default glibc hands back
  # what is free beyond twice the largest block, and blocks above 32 MiB always.
  assert faults('default') >= 10 * 50
  assert faults('keep') < 50


def test_elsewhere_it_has_no_effect(monkeypatch):
  from dreamer4_jax.runtime import memory

  monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
  assert not memory.keep_freed_memory()
