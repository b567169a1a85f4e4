"""`dreamer4 data`: makes, shows and measures datasets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
import os
import pathlib
import sys

CONVERTERS = {
  'video': ('video', 'mp4, mkv, webm, ... without actions'),
  'vpt': ('vpt', 'Minecraft contractor recordings'),
  'rlds': ('rlds', 'TFDS directories, as of Open X-Embodiment'),
  'minari': ('minari_datasets', 'Minari datasets'),
  'lerobot': ('lerobot', 'LeRobot folders'),
  'collect': ('collect', 'an environment and a player'),
  'pretokenise': ('pretokenise', 'a dataset and the tokenizer of a run'),
}
"""Commands that make a dataset: module of `data_pipelines`, and its input."""


def run_converter(argv: Sequence[str]) -> None:
  """Replaces this process with a converter, if `argv` calls one.

  It is a program of its own, since it starts processes that import its main
  module. So it has its own options, as in `dreamer4 data video --help`.
  """
  if argv[:1] != ['data'] or argv[1:2] == [] or argv[1] not in CONVERTERS:
    return
  module = f'data_pipelines.{CONVERTERS[argv[1]][0]}'
  sys.stdout.flush()
  os.execv(sys.executable, [sys.executable, '-m', module, *argv[2:]])


def add_commands(commands) -> None:
  """Adds `data` to the console script."""
  parser = commands.add_parser('data', help='make, look at, measure a dataset')
  actions = parser.add_subparsers(required=True, metavar='ACTION')
  for name, (_, origin) in CONVERTERS.items():  # See `run_converter`.
    actions.add_parser(name, help=f'make one from {origin}', add_help=False)
  info = actions.add_parser(
    'info', help='print what is in a dataset', description=_info.__doc__
  )
  info.add_argument('path', help='directory of the dataset')
  info.add_argument(
    '--json', action='store_true', help='print JSON instead of text'
  )
  info.set_defaults(run=_info)
  _add_check(actions)
  show = actions.add_parser(
    'show', help='draw some episodes', description=_show.__doc__
  )
  show.add_argument('path', help='directory of the dataset')
  show.add_argument(
    '--out',
    type=pathlib.Path,
    default=pathlib.Path('.'),
    help='directory for SPLIT.png and SPLIT.mp4 (default: this one)',
  )
  show.add_argument('--split', default='train', help='which (default: train)')
  show.add_argument(
    '--episodes', type=_positive, default=4, help='how many (default: 4)'
  )
  show.add_argument(
    '--frames',
    type=_positive,
    default=200,
    help='at most so many of each are in the video (default: 200)',
  )
  show.set_defaults(run=_show)
  novelty = actions.add_parser(
    'novelty',
    help='measure which frames show something rare',
    description=_novelty.__doc__,
  )
  novelty.add_argument('path', help='directory of a dataset of frames')
  novelty.add_argument(
    '--split', default='train', help='which (default: train)'
  )
  novelty.set_defaults(run=_novelty)


def _add_check(actions) -> None:
  check = actions.add_parser(
    'check',
    help='examine whether a dataset can teach what it should',
    description=_check.__doc__,
  )
  check.add_argument('path', help='directory of the dataset')
  check.add_argument(
    '--split', default='train', help='which is examined (default: train)'
  )
  check.add_argument(
    '--clips',
    type=_positive,
    default=320,
    help='at most so many clips of 32 steps are read (default: 320)',
  )
  check.add_argument(
    '--lag',
    type=int,
    default=0,
    help='frames that the world takes to show an action (default: 0)',
  )
  check.add_argument(
    '--json', action='store_true', help='print JSON instead of text'
  )
  check.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
  """Prints a verdict for each figure; exit status 1 if something is wrong.

  Frames, actions, rewards, splits, and whether actions stand where they act,
  by a small probe that is trained within minutes.
  """
  from dreamer4_jax.evals import check, findings

  found = check.examine(
    args.path, split=args.split, clips=args.clips, lag=args.lag
  )
  if args.json:
    print(json.dumps(findings.as_json(found), indent=2))
  else:
    print(findings.page(found, f'Check of {args.path}'))
  return int(any(f.verdict == 'wrong' for f in found))


def _info(args: argparse.Namespace) -> int:
  """Prints actions, tasks, sizes, events and attributes of each split."""
  from dreamer4_jax.evals import dataset  # Slow, and not for --help.

  found = dataset.summary(args.path)
  print(json.dumps(found, indent=2) if args.json else dataset.to_text(found))
  return 0


def _novelty(args: argparse.Namespace) -> int:
  """Writes novelty-SPLIT.npy into the dataset, for data.novel_share."""
  from dreamer4_jax.data import novelty

  weights = novelty.measure_dataset(args.path, args.split)
  rare = weights >= weights.max() / 10
  print(
    f'{novelty.weights_path(args.path, args.split)}: {len(weights):,} frames; '
    f'{rare.mean():.2%} of them, the rarest, are drawn in '
    f'{weights[rare].sum() / weights.sum():.0%} of the novel clips'
  )
  return 0


def _show(args: argparse.Namespace) -> int:
  """Writes a contact sheet and a video of some episodes, with actions."""
  from dreamer4_jax.evals import dataset

  for path in dataset.show(
    args.path,
    args.out,
    split=args.split,
    episodes=args.episodes,
    frames=args.frames,
  ):
    print(path)
  return 0


def _positive(text: str) -> int:
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'{value}: must be at least 1')
  return value
