"""Which steps are long and which bootstrap, against counting by hand."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest

from dreamer4_jax.config import DynamicsPhase
from dreamer4_jax.training.schedule import bootstraps, clip_length_at, is_long

PHASE = DynamicsPhase(steps=60, clip_length=4, long_clip_length=9)


def phase_of(**changes):
  return dataclasses.replace(PHASE, **changes)


def lengths(phase):
  return [clip_length_at(step, phase) for step in range(phase.steps)]


def test_every_nth_step_is_long_and_the_last_all():
  phase = phase_of(steps=10, long_every=4)
  assert lengths(phase) == [4, 4, 4, 9, 4, 4, 4, 9, 4, 4]
  phase = phase_of(steps=10, long_every=4, long_only_share=0.3)
  assert lengths(phase) == [4, 4, 4, 9, 4, 4, 4, 9, 9, 9]
  phase = phase_of(steps=10, long_every=3, long_only_share=1.0)
  assert lengths(phase) == [9] * 10
  assert lengths(phase_of(steps=3, long_every=1)) == [9] * 3
  assert lengths(phase_of(steps=3, long_clip_length=0)) == [4] * 3


@pytest.mark.parametrize('every', itertools.product([1, 2, 3, 4, 6], [1, 2, 4]))
@pytest.mark.parametrize('last', [0.0, 0.25])
@pytest.mark.parametrize('start', [0, 7])
def test_long_and_short_clips_bootstrap_equally_often(every, last, start):
  bootstrap, long = every
  phase = phase_of(
    bootstrap_every=bootstrap,
    long_every=long,
    long_only_share=last,
    bootstrap_start=start,
  )
  counts = {4: 0, 9: 0}
  for step, length in enumerate(lengths(phase)):
    # Those of a kind are counted among themselves.
    expected = step >= start and counts[length] % bootstrap == 0
    assert bool(bootstraps(step, phase)) == expected
    counts[length] += 1


def test_a_traced_step_gives_the_same():
  phase = phase_of(bootstrap_every=3, long_only_share=0.2, bootstrap_start=5)
  steps = jnp.arange(phase.steps)
  traced = jax.jit(lambda s: (is_long(s, phase), bootstraps(s, phase)))(steps)
  plain = [(is_long(s, phase), bootstraps(s, phase)) for s in range(60)]
  assert traced[0].tolist() == [bool(a) for a, _ in plain]
  assert traced[1].tolist() == [bool(b) for _, b in plain]
  assert 0 < sum(traced[1].tolist()) < 30


def test_without_long_clips_steps_count_alone():
  phase = phase_of(long_clip_length=0, bootstrap_every=2)
  assert [bool(bootstraps(s, phase)) for s in range(4)] == [True, False] * 2
