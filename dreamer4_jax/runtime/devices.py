"""Whether JAX computes on the accelerator of the machine, and if not, why.

When the plugin of an accelerator is installed but cannot be used, JAX falls
back to the CPU without a word, or with a page of them. Here that is one
sentence, with the command that fixes it.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from importlib import metadata
import logging
import os
import pathlib
import re
import warnings

import jax

_PLUGIN = re.compile(r'jax-(cuda\d+|rocm\d+)-plugin|libtpu')
_EXTRAS = {
  'cuda': 'cuda12', 'gpu': 'cuda12', 'rocm': 'rocm7-local', 'tpu': 'tpu'
}  # fmt: skip


def check_devices() -> str:
  """Starts JAX's devices and says what is wrong with them.

  Returns:
    One sentence if an accelerator, or the plugin of one, is here but JAX runs
    on the CPU without having been asked to; otherwise an empty string.

  Raises:
    ValueError: the environment variable JAX_PLATFORMS names a platform that
      JAX cannot start.
  """
  asked = _asked()
  with _collected() as said:
    try:
      platform = jax.default_backend()
    except (RuntimeError, AssertionError) as error:
      raise ValueError(_refusal(asked, [str(error), *said])) from error
  found = '' if asked or platform != 'cpu' else _unused(said)
  if not found:
    return ''
  return f'{found}; until then JAX runs on the CPU (or set JAX_PLATFORMS=cpu)'


def _asked() -> str:
  """Returns the platforms that JAX was told to use, or an empty string."""
  return jax.config.jax_platforms or ''


def _refusal(asked: str, said: list[str]) -> str:
  """Returns the sentence for platforms that were asked for but cannot start."""
  names = [name.strip() for name in asked.split(',')]
  unknown = [n for n in names if n not in _EXTRAS and n != 'cpu']
  if unknown:
    return (
      f'JAX_PLATFORMS = {asked!r}: JAX cannot start {unknown[0]!r} here; unset '
      f'it, or choose among cpu, {", ".join(_EXTRAS)}'
    )
  extra = next(_EXTRAS[n] for n in names if n != 'cpu')
  kind = re.match(r'[a-z]+', extra)[0]
  plugins = {k: v for k, v in _plugins().items() if kind in k}
  found = 'its plugin is not installed' + _run(extra)
  for name, version in plugins.items():
    found = _unusable(name, version, said)
  return f'JAX_PLATFORMS = {asked!r}: {found}, or unset JAX_PLATFORMS'


def _unused(said: list[str]) -> str:
  """What keeps JAX from an accelerator that is here, with a remedy."""
  for name, version in _plugins().items():
    return _unusable(name, version, said)
  if _has_nvidia_driver():
    return 'an NVIDIA GPU is here without a plugin for it' + _run('cuda12')
  if list(pathlib.Path('/dev').glob('accel[0-9]*')):
    return 'a TPU is here without libtpu' + _run('tpu')
  return ''


def _unusable(name: str, version: str, said: list[str]) -> str:
  """What keeps JAX from using an installed plugin, with a remedy."""
  start = f'{name} {version} '
  if name == 'libtpu':
    return (
      f'{start}is installed but finds no TPU: end other programs that use its '
      f'chips{_run("tpu", "; if there are none, run")}'
    )
  extra, jaxlib = _PLUGIN.fullmatch(name)[1], metadata.version('jaxlib')
  if extra.startswith('rocm'):
    return f'{start}is installed but finds no GPU: run rocm-smi to look for it'
  if _numbers(version) != _numbers(jaxlib):
    return f'{start}does not fit jaxlib {jaxlib}{_run(extra)}'
  hidden = os.environ.get('CUDA_VISIBLE_DEVICES')
  if hidden is not None and hidden.strip() in ('', '-1'):
    return (
      f'CUDA_VISIBLE_DEVICES = {hidden!r} hides all GPUs: run unset '
      'CUDA_VISIBLE_DEVICES'
    )
  if not _has_nvidia_driver():
    return (
      f'{start}is installed but the NVIDIA driver is not: install it, and run '
      'nvidia-smi to see whether it finds the GPU'
    )
  reason = next((line for line in said if 'CUDA' in line), 'it found no GPU')
  return f'{start}does not start ({reason.splitlines()[0][:200]}){_run(extra)}'


def _plugins() -> dict[str, str]:
  """Installed plugins of accelerators, and their versions; GPUs first."""
  found = {}
  for distribution in metadata.distributions():
    name = re.sub(r'[-_.]+', '-', distribution.name or '').lower()
    if _PLUGIN.fullmatch(name):
      found.setdefault(name, distribution.version)
  return dict(sorted(found.items()))


def _run(extra: str, before: str = ': run') -> str:
  jax_version = metadata.version('jax')
  return f"{before} pip install -U 'jax[{extra}]=={jax_version}'"


def _numbers(version: str) -> str:
  """Numbers of a version; those of CUDA's plugin and jaxlib must agree."""
  return re.match(r'[\d.]*\d', version)[0]


def _has_nvidia_driver() -> bool:
  return any(
    pathlib.Path(path).exists()
    for path in ('/proc/driver/nvidia/version', '/dev/nvidiactl')
  )


@contextlib.contextmanager
def _collected() -> Iterator[list[str]]:
  """Collects what JAX says meanwhile, instead of printing it."""
  said: list[str] = []

  def keep(record: logging.LogRecord) -> bool:
    said.append(record.getMessage())
    if record.exc_info:
      said.append(str(record.exc_info[1]))
    return False

  logger = logging.getLogger('jax._src.xla_bridge')
  logger.addFilter(keep)
  try:
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      yield said
    said += [str(w.message) for w in caught]
  finally:
    logger.removeFilter(keep)
