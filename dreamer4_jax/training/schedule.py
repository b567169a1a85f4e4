"""Which steps of a phase take long clips, and which of them bootstrap."""

from __future__ import annotations

from typing import TypeVar

from dreamer4_jax.config import Config
from dreamer4_jax.types import Array

Step = TypeVar('Step', int, Array)


def long_clips_before(step: Step, config: Config, phase: str) -> Step:
  """Counts the steps before this one that take long clips.

  In a phase with two clip lengths, every `data.long_every`-th step does, and so
  do all of the last `data.long_only_share`.

  Args:
    step: number from 0 on, a Python integer or a traced one.
    config: of the run.
    phase: its name.
  """
  settings, data = getattr(config.phases, phase), config.data
  if len(settings.clip_lengths) == 1:
    return step * 0
  last = settings.steps - round(data.long_only_share * settings.steps)
  # Without min and max, so that it works for both kinds of integers.
  alternating = step - (step > last) * (step - last)
  return alternating // data.long_every + step - alternating


def is_long(step: Step, config: Config, phase: str) -> bool | Array:
  """Whether a step takes a long clip."""
  before = long_clips_before(step, config, phase)
  return long_clips_before(step + 1, config, phase) > before


def clip_length_at(step: int, config: Config, phase: str) -> int:
  """Returns the frames of a step's clips."""
  settings = getattr(config.phases, phase)
  if is_long(step, config, phase):
    return settings.longest_clip
  return settings.clip_length


def bootstraps(
  step: Step, config: Config, phase: str, every: int = 1
) -> bool | Array:
  """Whether a step trains coarse steps.

  From `phases.dynamics.bootstrap_start` on, every n-th step with short clips
  does, and every n-th with long ones, so that no combination with
  `data.long_every` leaves one kind out.

  Args:
    step: number from 0 on.
    config: of the run.
    phase: its name.
    every: n.
  """
  before = long_clips_before(step, config, phase)
  long = long_clips_before(step + 1, config, phase) - before
  # Long clips are numbered among themselves, and so are short ones.
  number = long * before + (1 - long) * (step - before)
  start = config.phases.dynamics.bootstrap_start if phase == 'dynamics' else 0
  return (step >= start) & (number % every == 0)
