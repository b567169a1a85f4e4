"""`dreamer4 report`: several training seeds of one experiment, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
import pathlib
from typing import Any

FILE = 'results.json'


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
  parser.set_defaults(run=_report)


def load_results(
  run_dirs: Sequence[pathlib.Path],
) -> dict[str, dict[str, Any]]:
  """Reads `results.json` of runs, by directory; each counts once.

  Raises:
    FileNotFoundError: a run was not evaluated.
    ValueError: a file is no JSON.
  """
  found = {}
  for run in run_dirs:
    path = run / FILE
    if not path.is_file():
      raise FileNotFoundError(
        f'{path}: no such file; evaluate the run with `dreamer4 evaluate {run}`'
      )
    try:
      found[str(run)] = json.loads(path.read_text())
    except ValueError as error:
      raise ValueError(
        f'{path}: is no JSON ({error}); write it again with `dreamer4 evaluate '
        f'{run}`'
      ) from error
  return found


def _report(args: argparse.Namespace) -> int:
  results = load_results(args.run_dirs)
  from dreamer4_jax.evals import seeds  # Slow, and not for --help.

  report = seeds.summarise(results)
  if args.json:
    from dreamer4_jax.evals.report import write_json

    write_json(args.json, report)
  print(seeds.markdown(report))
  return 0
