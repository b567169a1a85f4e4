"""The devices and versions that an evaluation was measured with."""

from __future__ import annotations

from importlib import metadata
import os
import platform

import jax

from dreamer4_jax.config import Config

_PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain')
_ENGINES = {
  'navix': ('navix',),
  'craftax': ('craftax',),
  'gymnasium': ('gymnasium', 'ale-py'),
  'dm_control': ('dm-control', 'mujoco'),
}
"""Packages behind an adapter, whose versions are recorded as well."""


def device() -> str:
  """Returns number and kind of the devices, and the cores."""
  kind = jax.devices()[0].device_kind
  return f'{jax.device_count()} x {kind}, {os.cpu_count()} CPU cores'


def versions(config: Config) -> dict[str, str]:
  """Returns versions of what the run used, 'not installed' where missing."""
  found = {'python': platform.python_version()}
  engine = _ENGINES.get(config.env.name.partition(':')[0], ())
  for name in (*_PACKAGES, *engine):
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = 'not installed'
  return found
