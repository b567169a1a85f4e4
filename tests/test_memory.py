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
    np.ones(33 << 20, np.uint8)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
  command = [sys.executable, '-c', COUNT, mode]
  return int(subprocess.run(command, check=True, capture_output=True).stdout)


def keeps_any_size():
  """Whether this is a glibc that may keep blocks of more than 32 MiB."""
  name, version = platform.libc_ver()
  return name == 'glibc' and tuple(map(int, version.split('.'))) >= (2, 35)


@pytest.mark.skipif(not keeps_any_size(), reason='needs glibc 2.35')
def test_arrays_do_not_ask_the_system_for_pages_again():
  # 20 arrays of 33 MiB: 16 pages or more each even where pages are huge.
  assert faults('default') >= 20 * 16
  assert faults('keep') < 20


def test_elsewhere_it_has_no_effect(monkeypatch):
  from dreamer4_jax import memory

  monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
  assert not memory.keep_freed_memory()
