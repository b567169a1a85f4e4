"""`dreamer4 play`: step into the dream of a run, from a browser."""

from __future__ import annotations

import argparse
import pathlib

from dreamer4_jax.cli import startup
from dreamer4_jax.config import PHASES, require


def add_command(commands) -> None:
  """Adds `play` to the console script."""
  parser = commands.add_parser(
    'play',
    help='play inside the world model, from a browser',
    description='Serves a page in which people drive the dream of a run by '
    'keyboard, mouse or gamepad, or watch its agent. Needs the extra play: '
    "pip install 'dreamer4_jax[play]'.",
  )
  parser.add_argument(
    'run_dir',
    type=pathlib.Path,
    nargs='?',
    metavar='RUN',
    help='directory of a run whose dynamics are trained, or one that '
    '`dreamer4 export --play` has written',
  )
  parser.add_argument(
    '--pretrained',
    metavar='NAME',
    help='a world that ships with the package instead: doorkey or craftax',
  )
  parser.add_argument(
    '--phase',
    choices=PHASES[1:],
    help='whose world model and heads (default: the latest)',
  )
  parser.add_argument(
    '--steps',
    type=int,
    metavar='K',
    help='denoising steps of a frame, to begin with (default: as imagination '
    'had)',
  )
  for name, default, meaning in (
    ('starts', 24, 'held-out moments to begin from'),
    ('players', 4, 'players at once'),
    ('port', 8000, 'port to listen on, 0 for any'),
  ):  # fmt: skip
    parser.add_argument(
      f'--{name}',
      type=int,
      default=default,
      metavar='N',
      help=f'{meaning} (default: {default})',
    )
  parser.add_argument(
    '--host',
    default='127.0.0.1',
    help='address to listen on; any but this machine needs --token (default: '
    '127.0.0.1)',
  )
  parser.add_argument(
    '--token', default='', help='secret that players need, 8 characters or more'
  )
  parser.add_argument(
    '--recordings',
    type=pathlib.Path,
    default=pathlib.Path('recordings'),
    metavar='DIR',
    help='folder for what players record (default: recordings)',
  )
  parser.add_argument(
    '--real',
    action='store_true',
    help='offer the real game beside the dream, which needs its package',
  )
  _add_tasks(parser)
  parser.set_defaults(run=_play)


def _add_tasks(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--challenges',
    type=pathlib.Path,
    metavar='FILE',
    help='what to try in the dream of a run; a world that ships has its own',
  )
  parser.add_argument(
    '--tasks',
    action='store_true',
    help='serve nothing: play the keys that come with the challenges, and say '
    'which are done',
  )
  parser.add_argument(
    '--page',
    type=pathlib.Path,
    metavar='FILE.md',
    help='with --tasks, a page to write, with a picture beside it',
  )


def _play(args: argparse.Namespace) -> int:
  if (args.run_dir is None) == (args.pretrained is None):
    raise ValueError(
      'play: name a run, or a world with --pretrained, and not both'
    )
  require(
    args.page is None or args.tasks, '--page', args.page, 'belongs to --tasks'
  )
  startup.prepare()
  if args.tasks:
    return _score(args)
  from dreamer4_jax.play.serve import server  # Slow, and not for --help.

  serving = server.Serving(
    host=args.host,
    port=args.port,
    token=args.token,
    players=args.players,
    recordings=args.recordings,
    real=args.real,
  )
  server.serve(_load(args), serving)
  return 0


def _load(args: argparse.Namespace):
  from dreamer4_jax.play.serve import game

  return game.load_game(
    args.run_dir or game.find_pretrained(args.pretrained),
    phase=args.phase,
    starts=args.starts,
    steps=args.steps,
    challenges=args.challenges,
  )


def _score(args: argparse.Namespace) -> int:
  from dreamer4_jax.play.serve import scoring

  loaded = _load(args)
  scores = scoring.Scorer(loaded).score()
  print('\n'.join(scoring.table(scores)))
  if args.page:
    world = args.run_dir or f'--pretrained {args.pretrained}'
    command = f'dreamer4 play {world} --tasks --page {args.page}'
    title = f'Tasks in the dream: {loaded.title}'
    scoring.write_page(args.page, title, command, scores)
  return 0
