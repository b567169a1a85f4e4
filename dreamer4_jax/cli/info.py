"""`dreamer4 info`: versions, devices and the state of the checkout."""

from __future__ import annotations

import argparse
from importlib import metadata
import os
import pathlib
import platform
import re
import subprocess

import dreamer4_jax

_ENGINES = ('navix', 'craftax', 'gymnasium', 'ale-py', 'dm-control')


def add_command(commands) -> None:
  """Adds `info` to the console script."""
  parser = commands.add_parser(
    'info',
    help='print versions, devices and the git state',
    description='Prints what a bug report needs: versions, devices, the git '
    'state of a checkout, and what is wrong with an accelerator.',
  )
  parser.set_defaults(run=_info)


def version_line() -> str:
  """Returns the version, with the commit if this is a checkout."""
  commit = git_state()
  return f'dreamer4 {dreamer4_jax.__version__}' + (commit and f' ({commit})')


def git_state() -> str:
  """Returns the commit of this checkout; empty outside one or without git.

  It ends in '+changes' if files differ from the commit.
  """
  root = pathlib.Path(dreamer4_jax.__file__).resolve().parents[1]
  if not (root / '.git').exists():
    return ''
  command = ['git', '-C', str(root), 'describe', '--always', '--dirty=+changes']
  try:
    found = subprocess.run(command, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return ''
  return found.stdout.strip()


def _info(args: argparse.Namespace) -> int:
  del args
  lines = {'version': version_line(), 'code': dreamer4_jax.__path__[0]}
  lines['python'] = f'{platform.python_version()}, {platform.platform()}'
  lines['packages'] = ', '.join(_versions(_requirements()))
  lines['engines'] = ', '.join(_versions(_ENGINES)) or 'none'
  lines |= _devices()
  width = max(map(len, lines)) + 2
  for name, text in lines.items():
    print(f'{name:{width}}{text}')
  return 0


def _devices() -> dict[str, str]:
  from dreamer4_jax.runtime.devices import (
    check_devices,  # Slow, and not for --help.
  )

  platforms = os.environ.get('JAX_PLATFORMS', '')
  found = {'JAX_PLATFORMS': platforms} if platforms else {}
  try:
    problem = check_devices()
  except ValueError as error:
    return found | {'devices': 'none', 'problem': str(error)}
  import jax

  kinds: dict[str, int] = {}
  for device in jax.local_devices():
    name = f'{device.platform} ({device.device_kind})'
    kinds[name] = kinds.get(name, 0) + 1
  found['devices'] = ', '.join(f'{n} x {kind}' for kind, n in kinds.items())
  found['cores'] = str(os.cpu_count())
  return found | ({'problem': problem} if problem else {})


def _requirements() -> list[str]:
  """Names of the packages that this one needs, and of JAX's plugins."""
  try:
    wanted = metadata.requires('dreamer4-jax') or []
  except metadata.PackageNotFoundError:  # On the path, but not installed.
    wanted = ['jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy']
  names = [re.match(r'[\w.-]+', w)[0] for w in wanted if 'extra ==' not in w]
  plugins = ('libtpu', 'jax-cuda12-plugin', 'jax-cuda13-plugin')
  return sorted({'jaxlib', *names}) + list(plugins)


def _versions(names) -> list[str]:
  found = []
  for name in names:
    try:
      found.append(f'{name} {metadata.version(name)}')
    except metadata.PackageNotFoundError:
      continue
  return found
