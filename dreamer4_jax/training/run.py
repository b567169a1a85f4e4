"""Training a run, from a program or a notebook."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib

import jax

from dreamer4_jax import checkpoint
from dreamer4_jax.config import PHASES, Config, saved
from dreamer4_jax.training import checks
from dreamer4_jax.training.clips import training_loader
from dreamer4_jax.training.loop import Look
from dreamer4_jax.training.phases import train_phases


def train(
  config: Config,
  run_dir: str | pathlib.Path,
  phases: Sequence[str] = PHASES,
  *,
  progress: bool = True,
  look: Look | None = None,
) -> None:
  """Trains phases on the datasets of the config, or resumes them.

  What cannot work is rejected before anything is written. The config is saved
  as `config.json`.

  Args:
    config: the run.
    run_dir: where checkpoints and metrics go, a directory for each phase.
    phases: names of phases, in their order; each needs the one before, trained
      now or earlier.
    progress: show progress bars.
    look: measures what training itself does not, see `train_phases`; such as
      `evals.play_along`, for learning curves in the real environment.

  Raises:
    ValueError: something does not fit; the message names the field.
    FileNotFoundError: there is no dataset, or the phase before is not trained.
    PreemptedError: SIGTERM asked the process to stop; what was done is saved.
  """
  run_dir = pathlib.Path(run_dir)
  checkpoint.check_run(run_dir, config)
  checks.check_training(config, run_dir, phases)
  if jax.process_index() == 0:
    saved.save(config, run_dir)
  train_phases(
    config,
    run_dir,
    phases,
    loaders=training_loader,
    progress=progress,
    look=look,
  )
