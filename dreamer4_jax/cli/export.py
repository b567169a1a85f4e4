"""`dreamer4 export`: weights of a phase for other programs."""

from __future__ import annotations

import argparse
import logging
import pathlib

from dreamer4_jax.config import PHASES


def add_command(commands) -> None:
  """Adds `export` to the console script."""
  parser = commands.add_parser(
    'export',
    help='write the weights of a phase as safetensors',
    description='Writes the averaged weights of all modules that a phase '
    'leaves behind to OUT/model.safetensors, and the config to '
    'OUT/config.json. `dreamer4_jax.checkpoint.exported.load` reads them back.',
  )
  parser.add_argument('run_dir', type=pathlib.Path, help='run directory')
  parser.add_argument(
    '--phase',
    choices=PHASES,
    default=PHASES[-1],
    help=f'whose result (default: {PHASES[-1]})',
  )
  parser.add_argument(
    '--out', type=pathlib.Path, required=True, help='directory to write'
  )
  parser.add_argument(
    '--overwrite', action='store_true', help='replace weights that are there'
  )
  parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
  from dreamer4_jax.checkpoint import (
    exported,  # Slow, and not for --help.
    load_params,
  )
  from dreamer4_jax.runtime import logs

  logs.show(logging.INFO)
  params, config = load_params(args.run_dir, args.phase)
  path = exported.save(args.out, params, config, overwrite=args.overwrite)
  print(f'{path}: {path.stat().st_size:,} bytes, modules {", ".join(params)}')
  return 0
