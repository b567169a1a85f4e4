"""`dreamer4 evaluate` and `dreamer4 dream`: what a run has learned."""

from __future__ import annotations

import argparse
import json
import pathlib

from dreamer4_jax.cli import startup


def add_commands(commands) -> None:
  """Adds `evaluate` and `dream` to the console script."""
  _add_evaluate(commands)
  _add_dream(commands)


def _add_evaluate(commands) -> None:
  parser = commands.add_parser(
    'evaluate',
    help='evaluate a trained run and report',
    description='Evaluates a run whose four phases are trained: held-out '
    'video, and episodes in the real environment. Writes results.json, '
    'report.md, plots and videos to the run directory. With any of --env, '
    '--prompt, --agents, --temperatures, --videos and --out it only plays: it '
    'writes episodes.json, with paired comparisons, and a video of each policy '
    'to --out.',
  )
  parser.add_argument(
    'run_dir', type=pathlib.Path, metavar='RUN', help='directory of the run'
  )
  parser.add_argument(
    '--episodes',
    type=int,
    metavar='N',
    help='episodes of each policy (default: as the config of the run says)',
  )
  parser.add_argument(
    '--seed',
    type=int,
    metavar='S',
    help='first seed of the episodes (default: likewise)',
  )
  parser.add_argument(
    '--env',
    metavar='NAME',
    help='environment to play in, with frames and actions as in the run, and '
    'at least its tasks (default: that of the run)',
  )
  parser.add_argument(
    '--prompt',
    nargs='+',
    metavar='TASK[:COUNT]',
    help='what agents pursue, one after another, and how many events of each; '
    'the last decides success (default: as the config of the run says)',
  )
  parser.add_argument(
    '--agents',
    nargs='+',
    metavar='AGENT',
    help='policies to play: bc, rl, and where finetuning had baselines bc_all '
    'and bc_best. The first is compared with all others, and with random '
    'actions (default: all, rl first)',
  )
  parser.add_argument(
    '--temperatures',
    nargs='+',
    type=float,
    metavar='T',
    help='of all policies; 0 is greedy (default: 1)',
  )
  parser.add_argument(
    '--videos',
    type=int,
    metavar='N',
    help='episodes in each video; 0 for no videos (default: 8)',
  )
  parser.add_argument(
    '--out',
    type=pathlib.Path,
    metavar='DIR',
    help='directory for what is played (default: RUN/episodes)',
  )
  parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
  startup.prepare()
  from dreamer4_jax.config import saved  # Slow, and not for --help.
  from dreamer4_jax.evals import evaluation, excerpts, report

  chosen = lambda *names: {
    name: getattr(args, name)
    for name in names
    if getattr(args, name) is not None
  }
  fields = chosen('env', 'prompt')
  given = chosen('agents', 'temperatures', 'videos', 'out')
  if not (given or fields):
    evaluation.evaluate(args.run_dir, episodes=args.episodes, seed=args.seed)
    print((args.run_dir / 'report.md').read_text())
    return 0
  config = saved.load_run(args.run_dir)
  if 'env' in fields:
    config = config.edit({'env.name': fields['env']})
  if 'prompt' in fields:
    config = config.edit({'prompt': tuple(fields['prompt'])})
  results = excerpts.play(
    args.run_dir,
    config=config,
    episodes=args.episodes,
    seed=args.seed,
    **given,
  )
  print(report.played(results))
  return 0


def _add_dream(commands) -> None:
  parser = commands.add_parser(
    'dream',
    help='continue held-out clips inside the world model',
    description='Dreams on from held-out clips with their own actions, and '
    'draws what was real above what was dreamed: dream.png, dream.mp4, and '
    'figures in dream.json. The dynamics must be trained.',
  )
  parser.add_argument(
    'run_dir', type=pathlib.Path, metavar='RUN', help='directory of the run'
  )
  for name, meaning in {
    'clips': 'clips to continue (default: 8)',
    'context_frames': 'real frames before each dream',
    'horizon': 'frames to dream',
    'sampling_steps': 'denoising steps K per frame, a power of two',
    'seed': 'which clips are drawn',
  }.items():
    unsaid = '' if 'default' in meaning else ' (default: as the config says)'
    parser.add_argument(
      f'--{name.replace("_", "-")}',
      type=int,
      metavar='N',
      help=meaning + unsaid,
    )
  parser.add_argument(
    '--out',
    type=pathlib.Path,
    metavar='DIR',
    help='directory to write to (default: RUN/dream)',
  )
  parser.set_defaults(run=_dream)


def _dream(args: argparse.Namespace) -> int:
  startup.prepare()
  from dreamer4_jax.evals.excerpts import dream  # Slow, and not for --help.

  own = ('out', 'clips', 'context_frames', 'horizon', 'sampling_steps', 'seed')
  given = {name: getattr(args, name) for name in own}
  results = dream(
    args.run_dir, **{k: v for k, v in given.items() if v is not None}
  )
  print(json.dumps(results, indent=2))
  return 0
