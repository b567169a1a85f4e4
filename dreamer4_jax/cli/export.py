"""`dreamer4 export`: weights of a phase for other programs."""

from __future__ import annotations

import argparse
import logging
import pathlib

from dreamer4_jax.config import PHASES, require


def add_command(commands) -> None:
  """Adds `export` to the console script."""
  parser = commands.add_parser(
    'export',
    help='write the weights of a phase as safetensors',
    description='Writes the averaged weights of all modules that a phase '
    'leaves behind to OUT/model.safetensors, and the config to '
    'OUT/config.json. `dreamer4_jax.checkpoint.exported.load` reads them back. '
    'With --play it writes what `dreamer4 play OUT` needs and no more: float16 '
    'weights, moments to begin from and a model card, 8 MB at most.',
  )
  parser.add_argument('run_dir', type=pathlib.Path, help='run directory')
  parser.add_argument(
    '--phase',
    choices=PHASES,
    help=f'whose result (default: {PHASES[-1]}; with --play the latest that '
    'is trained)',
  )
  parser.add_argument(
    '--out', type=pathlib.Path, required=True, help='directory to write'
  )
  parser.add_argument(
    '--overwrite', action='store_true', help='replace weights that are there'
  )
  parser.add_argument(
    '--play', action='store_true', help='write a world to be played'
  )
  parser.add_argument(
    '--starts',
    type=int,
    metavar='N',
    help='with --play, held-out moments to begin from (default: 24)',
  )
  parser.add_argument(
    '--challenges',
    type=pathlib.Path,
    metavar='FILE',
    help='with --play, what to try in the world, such as '
    'experiments/challenges/doorkey.json',
  )
  parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
  from dreamer4_jax.checkpoint import (
    exported,  # Slow, and not for --help.
    load_params,
  )
  from dreamer4_jax.runtime import logs

  logs.show(logging.INFO)
  if args.play:
    return _export_play(args)
  for name in ('starts', 'challenges'):
    given = getattr(args, name)
    require(given is None, f'--{name}', given, 'belongs to --play; add it')
  phase = args.phase or PHASES[-1]
  params, config = load_params(args.run_dir, phase)
  path = exported.save(args.out, params, config, overwrite=args.overwrite)
  print(f'{path}: {path.stat().st_size:,} bytes, modules {", ".join(params)}')
  return 0


def _export_play(args: argparse.Namespace) -> int:
  from dreamer4_jax.play.serve import game

  given = {} if args.starts is None else {'starts': args.starts}
  out = game.save_game(
    args.run_dir,
    args.out,
    phase=args.phase,
    challenges=args.challenges,
    overwrite=args.overwrite,
    **given,
  )
  size = sum(path.stat().st_size for path in out.iterdir())
  print(f'{out}: {size:,} bytes; play it with `dreamer4 play {out}`')
  return 0
