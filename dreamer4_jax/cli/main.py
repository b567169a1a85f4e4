"""The console script `dreamer4`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import logging
import os
import pathlib
import runpy
import sys
import traceback

from dreamer4_jax.cli import (
  cluster,
  compile,
  configs,
  data,
  doctor,
  evaluate,
  export,
  info,
  play,
  report,
  startup,
)
from dreamer4_jax.config import (
  PHASES,
  Config,
  SourceConfig,
  experiments,
  presets,
)
from dreamer4_jax.runtime.distributed import JoinError, join, joined, leave
from dreamer4_jax.runtime.logs import hush_grain
from dreamer4_jax.runtime.memory import keep_freed_memory
from dreamer4_jax.runtime.preemption import EXIT_CODE, PreemptedError

_LOG = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; returns the exit code.

  It is 2 for a user error, 75 if SIGTERM stopped a training run that the same
  command resumes, and 1 if the processes of a run did not find each other. One
  of several processes ends here if it fails alone.
  """
  parser = argparse.ArgumentParser(
    prog='dreamer4', description='Trains and runs Dreamer 4 agents.'
  )
  parser.add_argument(
    '--version', action=_Version, help='print the version and exit'
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  _add_train(commands)
  _add_quickstart(commands)
  evaluate.add_commands(commands)
  doctor.add_command(commands)
  report.add_command(commands)
  play.add_command(commands)
  data.add_commands(commands)
  export.add_command(commands)
  compile.add_command(commands)
  info.add_command(commands)
  argv = sys.argv[1:] if argv is None else [*argv]
  data.run_converter(argv)
  args = parser.parse_args(argv)
  keep_freed_memory()
  hush_grain()
  code = _run(args)
  return leave(code, together=code in (0, EXIT_CODE))


class _Version(argparse.Action):
  """Prints the version; asks git only when it is needed."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs | {'nargs': 0})

  def __call__(self, parser, namespace, values, option_string=None):
    print(info.version_line())
    parser.exit()


def _run(args: argparse.Namespace) -> int:
  try:
    return args.run(args)
  except PreemptedError as error:
    print(f'dreamer4: {error}', file=sys.stderr)
    return EXIT_CODE
  except JoinError as error:
    print(f'dreamer4: {error}', file=sys.stderr)
    return 1
  except (ValueError, FileNotFoundError, FileExistsError) as error:
    _LOG.debug('%s failed', args.run.__name__, exc_info=True)
    print(f'dreamer4: {error}', file=sys.stderr)
    return 2
  except ImportError as error:
    if error.name:  # Not one of ours, which name an extra to install.
      raise
    print(f'dreamer4: {error}', file=sys.stderr)
    return 2
  except BrokenPipeError:  # As in `dreamer4 ... | head`.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except BaseException:
    if not joined():
      raise
    traceback.print_exc()
    return 1


def _add_train(commands) -> None:
  parser = commands.add_parser(
    'train',
    help='train the phases of an experiment, or resume them',
    description='Trains the phases of an experiment. The same command again '
    'resumes from the latest checkpoint.',
  )
  _add_experiment(parser)
  parser.add_argument(
    '--phase',
    nargs='+',
    choices=[*PHASES, 'all'],
    default=['all'],
    help='which phases to train, always in their order (default: all)',
  )
  parser.add_argument(
    '--play-along',
    type=int,
    metavar='EPISODES',
    help='play so many episodes in the real environment with every checkpoint '
    'of finetune and imagination, for a learning curve (default: none)',
  )
  cluster.add_arguments(parser)
  parser.set_defaults(run=_train)


def _add_quickstart(commands) -> None:
  parser = commands.add_parser(
    'quickstart',
    help='record a dataset, train all phases, evaluate and report',
    description='Records a dataset, trains all phases, evaluates in the real '
    'environment and writes a report. The same command again goes on where it '
    'was interrupted. An experiment may also define the functions '
    '`record(config)`, without which the dataset must be there, and '
    '`pretokenise(run, dataset, out)`, without which later phases read frames.',
  )
  _add_experiment(parser, default='quickstart')
  parser.set_defaults(run=_quickstart)


def _add_experiment(parser, default: str = '') -> None:
  """Adds the arguments of every command that runs an experiment."""
  parser.add_argument(
    'experiment',
    **({'nargs': '?', 'default': default} if default else {}),
    help='python file with a variable `config: Config`, or the name of one '
    'that ships with the package, such as quickstart'
    + (f' (default: {default})' if default else ''),
  )
  parser.add_argument(
    '--run-dir',
    type=pathlib.Path,
    help='where checkpoints and metrics go (default: runs/NAME for NAME.py)',
  )
  parser.add_argument(
    '--preset',
    choices=presets.PRESETS,
    help="model sizes, and clips that fit them, instead of the experiment's; "
    'before --set',
  )
  parser.add_argument(
    '--data',
    nargs='+',
    metavar='DIR',
    help="datasets to take instead of the experiment's; before --set",
  )
  parser.add_argument(
    '--set',
    nargs='+',
    action='extend',
    default=[],
    metavar='FIELD=VALUE',
    help='override config fields, for example dynamics.depth=8; '
    '--help-config lists the fields',
  )
  parser.add_argument(
    '--help-config',
    nargs='?',
    const='',
    metavar='PART',
    help='list the config fields with value, type and meaning, and exit; those '
    'of one part if it is named, such as dynamics or phases.imagination',
  )


def _start(args: argparse.Namespace) -> tuple[Config, pathlib.Path] | None:
  """Loads the config, prepares the run; None if the config is only listed."""
  several = cluster.from_arguments(args)
  args.experiment = experiments.find(args.experiment)
  config = experiments.load(args.experiment)
  if args.preset:
    config = presets.apply(config, args.preset)
  if args.data:
    sources = tuple(SourceConfig(path=path) for path in args.data)
    config = config.edit({'data.sources': sources})
  config = configs.override(config, cluster.mesh_fields(args) + args.set)
  if args.help_config is not None:
    print(configs.describe(config, args.help_config))
    return None
  join(several)
  startup.prepare()
  return config, args.run_dir or pathlib.Path('runs') / args.experiment.stem


def _train(args: argparse.Namespace) -> int:
  started = _start(args)
  if started is None:
    return 0
  config, run_dir = started
  from dreamer4_jax.training.run import train  # Slow, and not for --help.

  chosen = {*args.phase}
  phases = tuple(p for p in PHASES if chosen & {p, 'all'})
  look = None
  if args.play_along is not None:
    from dreamer4_jax.evals import play_along

    look = play_along(config, args.play_along)
  train(config, run_dir, phases, look=look)
  return 0


def _quickstart(args: argparse.Namespace) -> int:
  started = _start(args)
  if started is None:
    return 0
  config, run_dir = started
  from dreamer4_jax.cli.quickstart import quickstart

  defined = runpy.run_path(str(args.experiment))
  functions = {k: defined.get(k) for k in ('record', 'pretokenise')}
  quickstart(config, run_dir, **functions)
  print((run_dir / 'report.md').read_text())
  return 0


if __name__ == '__main__':
  sys.exit(main())
