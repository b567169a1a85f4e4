"""TPU chips and topologies, opened through libtpu without a TPU."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """What a chip can do, by its vendor's data sheet.

  Source: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and
  https://jax-ml.github.io/scaling-book/tpus.

  Attributes:
    memory: bytes of HBM.
    flops: bfloat16 operations per second.
    links: bytes per second over all links to other chips, one way.
    clock: cycles per second of a core.
  """

  memory: int
  flops: float
  links: float
  clock: float


CHIPS = {
  'v4': Chip(memory=32 * _GIB, flops=275e12, links=3 * 45e9 * 2, clock=1.05e9),
  'v5e': Chip(memory=16 * _GIB, flops=197e12, links=2 * 45e9 * 2, clock=1.5e9),
  'v5p': Chip(memory=95 * _GIB, flops=459e12, links=3 * 90e9 * 2, clock=1.75e9),
  'v6e': Chip(memory=32 * _GIB, flops=918e12, links=2 * 90e9 * 2, clock=1.75e9),
}
"""By the name that topologies begin with."""


def open_topology(name: str) -> tuple[Sequence[Any], str]:
  """Returns the devices of an absent topology, and the name of their chip.

  Call it before anything else uses JAX: libtpu reads the environment once.

  Args:
    name: chip and torus, for example 'v5p:8x8x4' or 'v6e:4x4'.

  Raises:
    ValueError: no such chip or topology, or libtpu is not installed.
  """
  kind, _, torus = name.partition(':')
  if kind not in CHIPS or not torus:
    raise ValueError(
      f'topology = {name!r}: must be CHIP:TORUS with a chip among '
      f'{", ".join(CHIPS)}, for example v5p:8x8x4 or v6e:4x4'
    )
  path = os.environ.get('TPU_LIBRARY_PATH')
  if not path and importlib.util.find_spec('libtpu') is None:
    raise ValueError(
      'libtpu is not installed; its compiler runs on any x86-64 Linux: '
      "pip install -e '.[tpu]' in the checkout, or pip install 'jax[tpu]'"
    )
  # Without these, libtpu looks for a TPU machine's metadata for minutes.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5p-8')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  # Several processes may compile at once: no chip is in use.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  jax.config.update('jax_platforms', 'cpu')
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=name)
  except Exception as error:
    reason = str(error).splitlines()[0][:200]
    raise ValueError(
      f'topology = {name!r}: libtpu knows none of this name ({reason}); '
      'a v5p or v4 torus has three sizes, such as 2x2x1, 4x4x4 or 8x8x16, a '
      'v5e or v6e two, such as 2x2, 4x4 or 16x16'
    ) from error
  return found.devices, kind
