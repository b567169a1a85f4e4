# ruff: noqa: B023
"""SIGKILL at any moment costs some steps and changes nothing.

The suite kills five times. More often, and with real models in any phases:

    KILLS=20 python -m pytest -s tests/test_kill.py
    KILLS=20 PHASES=tokenizer,dynamics python -m pytest -s tests/test_kill.py
"""

import os
import pathlib
import time

import chex
import numpy as np

from dreamer4_jax.checkpoint import load_arrays
from tests.killed_run import Run, make_config, write_noise

KILLS = int(os.environ.get('KILLS', '5'))
PHASES = tuple(filter(None, os.environ.get('PHASES', '').split(',')))
STEPS = max(30, 4 * KILLS // max(1, len(PHASES)))


def result(run):
  """Returns all of the state and all metrics, without the time."""
  lines = [{**line, 'time': 0} for line in run.lines()]
  states = {
    path.parent.name: load_arrays(path.parent)[0]
    for path in run.directory.glob('*/checkpoints')
  }
  return states, lines


def test_kills_change_nothing(tmp_path, monkeypatch):
  root = str(pathlib.Path(__file__).parents[1])
  monkeypatch.setenv('PYTHONPATH', root)
  config = make_config(write_noise(tmp_path / 'noise'), STEPS)
  whole, killed = (
    Run(config, tmp_path / name, PHASES, str(tmp_path / 'cache'))
    for name in ('whole', 'killed')
  )
  whole.start()
  whole.finish()
  expected = result(whole)
  total = len(expected[1])
  assert total == STEPS * max(1, len(PHASES))

  rng, while_saving = np.random.default_rng(0), 0
  for number in range(KILLS):
    killed.start()
    if number % 5 == 4:  # While it starts.
      limit = time.time() + rng.uniform(0, 2)
      killed.wait_for(lambda: time.time() > limit or killed.steps())
    else:
      # Further than the one before; steps are left for the last.
      steps = rng.uniform(number, number + 1) / KILLS * 0.7 * total
      killed.wait_for(lambda: killed.steps() and len(killed.lines()) >= steps)
      if number % 2:  # Amid steps.
        time.sleep(rng.uniform(0, 0.02))
      else:  # While it saves, early or late in it.
        killed.wait_for(killed.saving)
        time.sleep(rng.uniform(0, 0.02) if number else 0)
    killed.kill()
    incomplete = bool(killed.saving())
    while_saving += incomplete
    print(
      f'kill {number + 1} after {len(killed.lines())} of {total} steps'
      f'{", saving" * incomplete}',
      flush=True,
    )
  killed.start()
  killed.finish()
  found = result(killed)
  assert while_saving
  assert found[1] == expected[1]
  chex.assert_trees_all_equal(found[0], expected[0])
