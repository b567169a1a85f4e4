"""Which steps of a phase take long clips, and which of them bootstrap."""

from __future__ import annotations

from typing import TypeVar

from dreamer4_jax.config import DynamicsPhase, PhaseConfig
from dreamer4_jax.types import Array

Step = TypeVar('Step', int, Array)


def long_clips_before(step: Step, phase: PhaseConfig) -> Step:
  """Counts the steps before this one that take long clips.

  Every `long_every`-th step does, and all of the last `long_only_share`.

  Args:
    step: number from 0 on, a Python integer or a traced one.
    phase: of the phase.
  """
  if not phase.long_clip_length:
    return step * 0
  last = phase.steps - round(phase.long_only_share * phase.steps)
  # Without min and max, so that it works for both kinds of integers.
  alternating = step - (step > last) * (step - last)
  return alternating // phase.long_every + step - alternating


def is_long(step: Step, phase: PhaseConfig) -> bool | Array:
  """Whether a step takes a long clip."""
  return long_clips_before(step + 1, phase) > long_clips_before(step, phase)


def clip_length_at(step: int, phase: PhaseConfig) -> int:
  """Returns the frames of a step's clips."""
  return phase.long_clip_length if is_long(step, phase) else phase.clip_length


def bootstraps(step: Step, phase: DynamicsPhase) -> bool | Array:
  """Whether a step trains coarse steps.

  From `bootstrap_start` on, every `bootstrap_every`-th step with short clips
  does, and every `bootstrap_every`-th with long ones, so that no combination
  with `long_every` leaves one kind out.
  """
  before = long_clips_before(step, phase)
  long = long_clips_before(step + 1, phase) - before
  # Long clips are numbered among themselves, and so are short ones.
  number = long * before + (1 - long) * (step - before)
  return (step >= phase.bootstrap_start) & (number % phase.bootstrap_every == 0)
