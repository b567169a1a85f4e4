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
import warnings

from dreamer4_jax import presets
from dreamer4_jax.cli import (
  cluster,
  compile,
  configs,
  data,
  experiments,
  export,
  info,
  report,
)
from dreamer4_jax.config import PHASES, Config
from dreamer4_jax.distributed import JoinError, join, joined, leave
from dreamer4_jax.iterator_state import hush_grain
from dreamer4_jax.memory import keep_freed_memory
from dreamer4_jax.preemption import EXIT_CODE, PreemptedError

_LOG = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; returns the exit code.

  It is 2 for a mistake of the user, 75 if SIGTERM stopped a training that the
  same command goes on with, and 1 if the processes of a run did not find each
  other. A process of several ends here if it fails alone.
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
  _add_evaluate(commands)
  report.add_command(commands)
  data.add_commands(commands)
  export.add_command(commands)
  compile.add_command(commands)
  info.add_command(commands)
  args = parser.parse_args(argv)
  keep_freed_memory()
  hush_grain()
  code = _run(args)
  return leave(code, together=code in (0, EXIT_CODE))


class _Version(argparse.Action):
  """Prints the version; it asks git only if it is wanted."""

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
  cluster.add_arguments(parser)
  parser.set_defaults(run=_train)


def _add_quickstart(commands) -> None:
  parser = commands.add_parser(
    'quickstart',
    help='record a dataset, train all phases, evaluate and report',
    description='Records a dataset, trains all phases, evaluates in the real '
    'environment and writes a report. The same command again goes on where it '
    'was interrupted. An experiment may also define the functions '
    '`record(path)`, without which the dataset must be there, and '
    '`pretokenise(run, dataset, out)`, without which later phases read frames.',
  )
  _add_experiment(parser, default='quickstart')
  parser.set_defaults(run=_quickstart)


def _add_evaluate(commands) -> None:
  parser = commands.add_parser(
    'evaluate',
    help='evaluate a trained run and report',
    description='Evaluates a run whose four phases are trained: held-out '
    'video, and episodes in the real environment. Writes results.json, '
    'report.md, plots and videos to the run directory. Both options are by '
    'default as the config of the run says.',
  )
  parser.add_argument(
    'run_dir', type=pathlib.Path, metavar='RUN', help='directory of the run'
  )
  parser.add_argument(
    '--episodes', type=int, metavar='N', help='episodes of each policy'
  )
  parser.add_argument(
    '--seed', type=int, metavar='S', help='first seed of the episodes'
  )
  parser.set_defaults(run=_evaluate)


def _add_experiment(parser, default: str = '') -> None:
  """Arguments of every command that runs an experiment."""
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
    action='store_true',
    help='list every config field with its value, type and meaning, and exit',
  )


def _start(args: argparse.Namespace) -> tuple[Config, pathlib.Path] | None:
  """Loads the config and prepares the run; None if it is only to be listed."""
  several = cluster.from_arguments(args)
  args.experiment = experiments.find(args.experiment)
  config = configs.load_experiment(args.experiment)
  if args.preset:
    config = presets.apply(config, args.preset)
  config = configs.override(config, cluster.mesh_fields(args) + args.set)
  if args.help_config:
    print(configs.describe(config))
    return None
  join(several)
  _report_devices()
  run_dir = args.run_dir or pathlib.Path('runs') / args.experiment.stem
  _prepare(run_dir, config, _phases(args))
  enable_compilation_cache()
  return config, run_dir


def _phases(args: argparse.Namespace) -> tuple[str, ...] | None:
  """Returns the phases that `train` was asked for; None of `quickstart`."""
  if 'phase' not in args:
    return None
  chosen = {*args.phase}
  return tuple(p for p in PHASES if chosen & {p, 'all'})


def _train(args: argparse.Namespace) -> int:
  started = _start(args)
  if started is None:
    return 0
  config, run_dir = started
  from dreamer4_jax.cli.loaders import training_loader
  from dreamer4_jax.training.phases import train

  train(config, run_dir, _phases(args), loaders=training_loader)
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


def _evaluate(args: argparse.Namespace) -> int:
  from dreamer4_jax.cli.evaluation import evaluate_run

  _report_devices()
  _log_to_stderr()
  enable_compilation_cache()
  evaluate_run(args.run_dir, episodes=args.episodes, seed=args.seed)
  print((args.run_dir / 'report.md').read_text())
  return 0


def _report_devices() -> None:
  """Says so where an accelerator is here but not used."""
  # Ours is shorter, and says what to do.
  warnings.filterwarnings('ignore', 'JAX plugin .* is not compatible')
  from dreamer4_jax.devices import check_devices

  if problem := check_devices():
    print(f'dreamer4: {problem}', file=sys.stderr)


def _prepare(
  run_dir: pathlib.Path, config: Config, phases: tuple[str, ...] | None
) -> None:
  """Checks the config against the run and its data, then saves it.

  Args:
    run_dir: run directory.
    config: the run.
    phases: those that `train` will train; None for `quickstart`, which checks
      and saves itself.
  """
  _log_to_stderr()
  from dreamer4_jax.checkpoint import check_run  # Slow, and not for --help.

  check_run(run_dir, config)
  if phases is None:
    return
  from dreamer4_jax.cli import checks

  checks.check_training(config, run_dir, phases)
  if _is_first():
    configs.save(config, run_dir)


def enable_compilation_cache() -> None:
  """Keeps compiled programs on disk, so that the next run starts at once.

  They lie in `$JAX_COMPILATION_CACHE_DIR`, by default in
  `~/.cache/dreamer4_jax/xla`.
  """
  import jax

  default = pathlib.Path('~/.cache/dreamer4_jax/xla').expanduser()
  directory = os.environ.get('JAX_COMPILATION_CACHE_DIR', str(default))
  jax.config.update('jax_compilation_cache_dir', directory)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _is_first() -> bool:
  """Whether this process writes what is to be written once."""
  import jax

  return jax.process_index() == 0


def _log_to_stderr() -> None:
  """Shows the log of the first process, and warnings of the others."""
  from dreamer4_jax.cli import logs  # Not for --help.

  logs.show(logging.INFO if _is_first() else logging.WARNING)


if __name__ == '__main__':
  sys.exit(main())
