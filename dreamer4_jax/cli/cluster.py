"""Command-line arguments for several processes and their devices."""

from __future__ import annotations

import argparse
import dataclasses

from dreamer4_jax.config import MeshConfig
from dreamer4_jax.runtime.distributed import Cluster

_AXES = tuple(field.name for field in dataclasses.fields(MeshConfig))


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of commands that several processes may run together."""
  parser.add_argument(
    '--mesh',
    metavar='AXIS=SIZE,...',
    help='how devices are arranged, for example data=1,fsdp=-1,tensor=1; -1 '
    'takes those that are left, and axes not named have size 1',
  )
  group = parser.add_argument_group(
    'several processes',
    'One process runs on each host, all with the same command.',
  )
  group.add_argument(
    '--distributed',
    action='store_true',
    help='find the other processes through Cloud TPU, GKE, Slurm or Open MPI',
  )
  group.add_argument(
    '--coordinator',
    default='',
    metavar='HOST:PORT',
    help='elsewhere: the address of process 0, with a free port',
  )
  group.add_argument(
    '--num-processes', type=int, metavar='N', help='elsewhere: how many'
  )
  group.add_argument(
    '--process-id',
    type=int,
    metavar='I',
    help='elsewhere: which one this is, from 0',
  )
  group.add_argument(
    '--join-timeout',
    type=int,
    default=300,
    metavar='SECONDS',
    help='how long to wait for the others (default: 300)',
  )


def from_arguments(args: argparse.Namespace) -> Cluster:
  """Returns what the arguments say; one process for a command without them.

  Raises:
    ValueError: they contradict each other.
  """
  if 'distributed' not in args:
    return Cluster()
  return Cluster(
    auto=args.distributed,
    coordinator=args.coordinator,
    processes=args.num_processes,
    process=args.process_id,
    timeout=args.join_timeout,
  )


def mesh_fields(args: argparse.Namespace) -> list[str]:
  """Returns `--mesh` in the form that `configs.override` takes.

  Raises:
    ValueError: as in `parse_mesh`.
  """
  if getattr(args, 'mesh', None) is None:
    return []
  return [f'mesh.{axis}={n}' for axis, n in parse_mesh(args.mesh).items()]


def parse_mesh(text: str) -> dict[str, int]:
  """Returns the sizes of all axes; those that are not named have size 1.

  Args:
    text: `AXIS=SIZE,...`.

  Raises:
    ValueError: an axis is unknown or named twice, or a size is not a number.
  """
  sizes: dict[str, int] = {}
  for part in text.split(','):
    axis, _, size = (x.strip() for x in part.partition('='))
    if axis not in _AXES:
      raise ValueError(
        f'--mesh {text}: {axis!r} is no axis; must be among '
        f'{", ".join(_AXES)}, for example data=1,fsdp=-1,tensor=1'
      )
    if axis in sizes:
      raise ValueError(f'--mesh {text}: names {axis} twice; name it once')
    try:
      sizes[axis] = int(size)
    except ValueError:
      raise ValueError(
        f'--mesh {text}: {axis} = {size!r} must be a whole number, or -1 '
        'for all devices that are left'
      ) from None
  return {axis: sizes.get(axis, 1) for axis in _AXES}
