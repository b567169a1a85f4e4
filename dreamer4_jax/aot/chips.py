"""Accelerators that are not attached: TPUs by libtpu, GPUs by JAX's plugin."""

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

  Sources: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm,
  https://jax-ml.github.io/scaling-book/tpus, and NVIDIA's data sheets of the
  A100, H100, H200 and B200 (SXM, without sparsity).

  Attributes:
    memory: bytes of HBM.
    flops: bfloat16 operations per second.
    links: bytes per second over all links to other chips, one way.
    clock: cycles per second of a core; for TPUs.
    bandwidth: bytes per second of HBM; for GPUs.
    gpu: what XLA has to know to compile for it; None for TPUs.
  """

  memory: int
  flops: float
  links: float
  clock: float = 0.0
  bandwidth: float = 0.0
  gpu: Gpu | None = None

  @property
  def platform(self) -> str:
    """The platform that JAX names it by."""
    return 'gpu' if self.gpu else 'tpu'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
  """A GPU as XLA describes it; its `GpuTargetConfigProto` in few fields.

  Attributes:
    name: as JAX names the device.
    capability: major CUDA compute capability.
    extension: whether it has the instructions of exactly this capability.
    cores: streaming multiprocessors.
    lanes: float32 units of each.
    clock: GHz.
    cache: bytes of the L2 cache.
    shared: bytes of shared memory of a core.
  """

  name: str
  capability: int
  extension: bool
  cores: int
  lanes: int
  clock: float
  cache: int
  shared: int

  def target(self, chip: Chip) -> str:
    """Returns the text of the `GpuTargetConfigProto`."""
    kind = 'ACCELERATED_FEATURES' if self.extension else 'NONE'
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  threads_per_core_limit: 2048 core_count: {self.cores}
  fpus_per_core: {self.lanes} clock_rate_ghz: {self.clock}
  shared_memory_per_block: 49152 shared_memory_per_core: {self.shared}
  shared_memory_per_block_optin: {self.shared - 1024}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {int(chip.bandwidth)} l2_cache_size: {self.cache}
  device_memory_size: {chip.memory}
  cuda_compute_capability {{
    major: {self.capability} feature_extension: {kind}
  }}
  name: "{self.name}" driver_version: "13.0.0" runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{self.name}"
"""


_HOPPER = {
  'capability': 9,
  'extension': True,
  'cores': 132,
  'lanes': 128,
  'clock': 1.98,
  'cache': 52428800,
  'shared': 233472,
}
CHIPS = {
  'v4': Chip(memory=32 * _GIB, flops=275e12, links=3 * 45e9 * 2, clock=1.05e9),
  'v5e': Chip(memory=16 * _GIB, flops=197e12, links=2 * 45e9 * 2, clock=1.5e9),
  'v5p': Chip(memory=95 * _GIB, flops=459e12, links=3 * 90e9 * 2, clock=1.75e9),
  'v6e': Chip(memory=32 * _GIB, flops=918e12, links=2 * 90e9 * 2, clock=1.75e9),
  'a100': Chip(
    memory=85100068864,
    flops=312e12,
    links=300e9,
    bandwidth=2.04e12,
    gpu=Gpu(
      name='NVIDIA A100-SXM4-80GB',
      capability=8,
      extension=False,
      cores=108,
      lanes=64,
      clock=1.41,
      cache=41943040,
      shared=167936,
    ),
  ),
  'h100': Chip(
    memory=84942979072,
    flops=989e12,
    links=450e9,
    bandwidth=3.35e12,
    gpu=Gpu(name='NVIDIA H100 80GB HBM3', **_HOPPER),
  ),
  'h200': Chip(
    memory=151397597184,
    flops=989e12,
    links=450e9,
    bandwidth=4.8e12,
    gpu=Gpu(name='NVIDIA H200 141GB HBM3e', **_HOPPER),
  ),
  'b200': Chip(
    memory=191514411008,
    flops=2250e12,
    links=900e9,
    bandwidth=7.67e12,
    gpu=Gpu(
      name='NVIDIA B200',
      capability=10,
      extension=True,
      cores=148,
      lanes=128,
      clock=1.965,
      cache=132644864,
      shared=233472,
    ),
  ),
}
"""By the name that topologies begin with."""
_MOST_GPUS = 8  # of a machine whose GPUs are all joined by NVLink


def open_topology(name: str) -> tuple[Sequence[Any], str]:
  """Returns the devices of an absent topology, and the name of their chip.

  Call it before anything else uses JAX: the compilers read the environment
  once.

  Args:
    name: chip and torus, for example 'v5p:8x8x4' or 'v6e:4x4'; for GPUs their
      number, for example 'h100:1' or 'h100:8'.

  Raises:
    ValueError: no such chip or topology, or its compiler is not installed.
  """
  kind, _, size = name.partition(':')
  if kind not in CHIPS or not size:
    raise ValueError(
      f'topology = {name!r}: must be CHIP:TORUS or GPU:NUMBER with a chip '
      f'among {", ".join(CHIPS)}, for example v5p:8x8x4, v6e:4x4 or h100:8'
    )
  jax.config.update('jax_platforms', 'cpu')
  if CHIPS[kind].gpu:
    return _open_gpus(name, CHIPS[kind], size), kind
  return _open_tpus(name), kind


def _open_gpus(name: str, chip: Chip, size: str) -> Sequence[Any]:
  if not size.isdigit() or not 1 <= int(size) <= _MOST_GPUS:
    raise ValueError(
      f'topology = {name!r}: must be GPU:NUMBER with 1 to {_MOST_GPUS} GPUs, '
      'those of a machine, for example h100:8'
    )
  plugins = ('jax_cuda12_plugin', 'jax_cuda13_plugin')
  if not any(importlib.util.find_spec(plugin) for plugin in plugins):
    raise ValueError(
      "JAX's plugin for CUDA is not installed; its compiler runs on any x86-64 "
      "Linux: pip install -e '.[cuda]' in the checkout, or pip install "
      "'jax[cuda12]'"
    )
  # A GPU that is there is not touched.
  os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')
  found = topologies.get_topology_desc(
    platform='cuda',
    target_config=chip.gpu.target(chip),
    topology=f'1x1x{int(size)}',
  )
  return found.devices


def _open_tpus(name: str) -> Sequence[Any]:
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
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=name)
  except Exception as error:
    reason = str(error).splitlines()[0][:200]
    raise ValueError(
      f'topology = {name!r}: libtpu knows none of this name ({reason}); '
      'a v5p or v4 torus has three sizes, such as 2x2x1, 4x4x4 or 8x8x16, a '
      'v5e or v6e two, such as 2x2, 4x4 or 16x16'
    ) from error
  return found.devices
