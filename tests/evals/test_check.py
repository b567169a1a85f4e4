"""`dreamer4 data check`: what is right passes, what is wrong is named."""

import json

import numpy as np
import pytest

from data_pipelines import writer
from dreamer4_jax.cli.main import main
from dreamer4_jax.config import ActionComponent
from dreamer4_jax.data import format as fmt
from dreamer4_jax.evals import check
from dreamer4_jax.evals.check import motion, timing
from tests.evals import small_worlds

TIMING = 'what a frame tells of the action at k'


def by_name(found):
  return {f.name: f for f in found}


@pytest.mark.parametrize('by', [-1, 0, 1])
@pytest.mark.parametrize('name', small_worlds.WORLDS)
def test_a_shift_by_one_row_is_found_in_worlds_of_every_kind(
  tmp_path, name, by
):
  small_worlds.write(tmp_path / 'd', name, by=by)
  found = check.examine(tmp_path / 'd')
  when = by_name(found)[TIMING]
  assert (when.value, when.verdict) == (by, 'wrong' if by else 'fine')
  others = [f.name for f in found if f.verdict == 'wrong' and f is not when]
  assert not others
  if by:
    assert f'1 row(s) {"late" if by > 0 else "early"}' in when.advice
