"""`dreamer4 data`: what is in a dataset."""

from __future__ import annotations

import argparse
import json
import pathlib


def add_commands(commands) -> None:
  """Adds `data info`, `show` and `novelty` to the console script."""
  parser = commands.add_parser('data', help='look at a dataset, measure it')
  actions = parser.add_subparsers(required=True, metavar='ACTION')
  info = actions.add_parser(
    'info', help='print what is in a dataset', description=_info.__doc__
  )
  info.add_argument('path', help='directory of the dataset')
  info.add_argument(
    '--json', action='store_true', help='print JSON instead of text'
  )
  info.set_defaults(run=_info)
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


def _info(args: argparse.Namespace) -> int:
  """Prints actions, tasks, sizes, events and attributes of each split."""
  from dreamer4_jax.evals import dataset  # Slow, and not for --help.

  found = dataset.summary(args.path)
  print(json.dumps(found, indent=2) if args.json else dataset.to_text(found))
  return 0


def _novelty(args: argparse.Namespace) -> int:
  """Writes novelty-SPLIT.npy into the dataset, for novel_share of a phase."""
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
