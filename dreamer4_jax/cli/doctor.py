"""`dreamer4 doctor`: where a chain of four trainings is weak."""

from __future__ import annotations

import argparse
import pathlib

from dreamer4_jax.cli import startup


def add_command(commands) -> None:
  """Adds `doctor` to the console script."""
  parser = commands.add_parser(
    'doctor',
    help='examine a run, phase by phase, and say where it is weak',
    description='Examines all phases of a run that are trained, on held-out '
    'recordings and, where it is installed, in the environment. Prints one '
    'page: for each figure what is usual, and a verdict. Writes doctor.md and '
    'doctor.json to the run directory. The exit status is 1 if something is '
    'wrong.',
  )
  parser.add_argument(
    'run_dir', type=pathlib.Path, metavar='RUN', help='directory of the run'
  )
  parser.add_argument(
    '--clips',
    type=int,
    metavar='N',
    help='held-out clips of each kind (default: 192)',
  )
  parser.add_argument(
    '--episodes',
    type=int,
    metavar='N',
    help='episodes that an agent plays (default: 64)',
  )
  parser.add_argument(
    '--no-play',
    action='store_true',
    help='leave the environment out',
  )
  parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
  startup.prepare()
  from dreamer4_jax.evals.doctor import examine  # Slow, and not for --help.

  given = {'clips': args.clips, 'episodes': args.episodes}
  found = examine(
    args.run_dir,
    play=not args.no_play,
    **{k: v for k, v in given.items() if v is not None},
  )
  print((args.run_dir / 'doctor.md').read_text())
  return int(any(f.verdict == 'wrong' for f in found))
