"""`dreamer4 report`: several training seeds of one experiment, side by side."""

from __future__ import annotations

import argparse
import pathlib


def add_command(commands) -> None:
  """Adds `report` to the console script."""
  parser = commands.add_parser(
    'report',
    help='compare evaluated runs of one experiment over training seeds',
    description='Prints, as Markdown, the figures of evaluated runs that '
    'differ in their seed only, a row for each, and what they show together: '
    'means with intervals over training seeds. Nothing is computed again.',
  )
  parser.add_argument(
    'run_dirs',
    nargs='+',
    type=pathlib.Path,
    metavar='RUN',
    help='directory of a run that was evaluated',
  )
  parser.add_argument(
    '--json',
    type=pathlib.Path,
    metavar='FILE',
    help='write the same to a file as JSON',
  )
  parser.add_argument(
    '-o',
    '--out',
    type=pathlib.Path,
    metavar='FILE.md',
    help='write a page instead: tables, plots, pictures, hardware and commits; '
    'what belongs to it lies beside it',
  )
  parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
  from dreamer4_jax.evals import seeds  # Slow, and not for --help.

  report = seeds.summarise(seeds.load_results(args.run_dirs))
  if args.json:
    from dreamer4_jax.evals.files import write_json

    write_json(args.json, report)
  if args.out:
    from dreamer4_jax.evals import page

    names = ' '.join(map(str, args.run_dirs))
    page.write_page(
      args.run_dirs, args.out, f'dreamer4 report {names} -o {args.out}'
    )
    print(f'written: {args.out}')
    return 0
  print(seeds.markdown(report))
  return 0
