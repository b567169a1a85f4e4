"""`dreamer4 compile`: compiles programs for absent hardware."""

from __future__ import annotations

import argparse
import pathlib
import sys

from dreamer4_jax.cli.cluster import parse_mesh


def add_command(commands) -> None:
  """Adds `compile` to the console script."""
  parser = commands.add_parser(
    'compile',
    help='compile a train step or a frame for absent TPUs or GPUs',
    description='Compiles a real program for TPUs or GPUs that are not there, '
    'and prints what it needs: memory of a chip, FLOPs, collectives, the '
    'estimated time; for a GPU also its kernels. Nothing is run. Needs the '
    'extra tpu or cuda.',
  )
  parser.add_argument('--preset', default='paper', help='model sizes')
  parser.add_argument(
    '--experiment', default='',
    help='instead, the models, batches, short clips and horizon of an '
    'experiment file',
  )  # fmt: skip
  parser.add_argument(
    '--phase', default='dynamics',
    help="whose train step, or 'frame' for a frame of interactive play",
  )  # fmt: skip
  parser.add_argument(
    '--topology',
    default='v5p:8x8x4',
    help='chip and torus, e.g. v6e:4x4, or GPU and number, e.g. h100:8',
  )
  parser.add_argument(
    '--mesh', default='data=1,fsdp=-1,tensor=1', help='sizes of the axes'
  )
  parser.add_argument('--length', type=int, default=64, help='frames of a clip')
  parser.add_argument(
    '--rows', type=int, default=1, help='rows of the batch for each device'
  )
  parser.add_argument(
    '--accumulate', type=int, default=1,
    help='parts of the batch taken one after another',
  )  # fmt: skip
  parser.add_argument(
    '--pixels', action='store_true',
    help='encode frames in the step; by default it reads latents',
  )  # fmt: skip
  parser.add_argument(
    '--remat', choices=('none', 'dots', 'full'), default='',
    help="what the backward pass recomputes (default: the preset's)",
  )  # fmt: skip
  parser.add_argument(
    '--attention', choices=('xla', 'splash', 'triton'), default='',
    help="what computes attention (default: the preset's)",
  )  # fmt: skip
  parser.add_argument('--horizon', type=int, default=15, help='imagined frames')
  parser.add_argument(
    '--steps', type=int, default=4, help='denoising steps of a frame'
  )
  parser.add_argument(
    '--hlo', type=pathlib.Path, metavar='FILE',
    help='write the compiled program as well',
  )  # fmt: skip
  parser.add_argument(
    '--report', type=pathlib.Path, metavar='FILE',
    help='instead, write a report of the standard list for chips of this kind, '
    'TPU or GPU, to FILE.md; goes on where it was interrupted',
  )  # fmt: skip
  parser.set_defaults(run=_compile)


def _compile(args: argparse.Namespace) -> int:
  from dreamer4_jax import aot  # Slow, and not for --help.
  from dreamer4_jax.config import MeshConfig

  say = lambda text: print(text, file=sys.stderr, flush=True)
  if args.report:
    aot.write_report(args.report, aot.standard(args.topology), say=say)
    print(args.report)
    return 0
  job = aot.Job(
    preset=args.preset,
    experiment=args.experiment,
    program=args.phase,
    topology=args.topology,
    mesh=MeshConfig(**parse_mesh(args.mesh)),
    length=args.length,
    rows=args.rows,
    accumulate=args.accumulate,
    pixels=args.pixels,
    remat=args.remat,
    attention=args.attention,
    horizon=args.horizon,
    steps=args.steps,
  )
  try:
    print(aot.describe(aot.compile_job(job, say, args.hlo)))
  except RuntimeError as error:
    print(f'dreamer4: {error}', file=sys.stderr)
    return 1
  return 0
