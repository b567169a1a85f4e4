"""Seconds of a part, over interruptions and kills."""

import json
import subprocess
import sys
import time

import pytest

from dreamer4_jax.runtime.clock import Clock, seconds
from tests.training import toy

KILLED = """
import os, signal, sys, time
from dreamer4_jax.runtime.clock import Clock
with Clock(sys.argv[1], 'dynamics', every=0.05):
  time.sleep(0.6)
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_interruptions_are_added_up(tmp_path):
  for _ in range(2):
    with pytest.raises(KeyboardInterrupt), Clock(tmp_path, 'data'):
      time.sleep(0.2)
      raise KeyboardInterrupt
  with Clock(tmp_path, 'evaluation'):
    time.sleep(0.1)
  found = seconds(tmp_path)
  assert 0.4 <= found['data'] < 0.4 + 1 and found['evaluation'] >= 0.1
  with Clock(tmp_path, 'evaluation', again=True):
    pass
  again = seconds(tmp_path)
  assert again['evaluation'] < 0.1 and again['data'] == found['data']


def test_a_kill_costs_no_more_than_the_last_seconds(tmp_path):
  for number in (1, 2):
    child = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path)])
    assert child.returncode == -9
    spent = seconds(tmp_path)['dynamics']
    assert 0.3 * number <= spent < 0.6 * number + 1


def test_without_entering_it_nothing_is_written(tmp_path):
  Clock(tmp_path / 'run', 'dynamics')
  assert seconds(tmp_path / 'run') == {}
  assert not (tmp_path / 'run').exists()


def test_damage_counts_as_nothing(tmp_path):
  (tmp_path / 'seconds.json').write_text('{"data": 3')
  assert seconds(tmp_path) == {}


def test_a_phase_counts_until_it_is_finished(tmp_path):
  def run(**kwargs):
    clock = Clock(tmp_path, 'tokenizer')
    time.sleep(0.1)  # What comes before the loop counts, if it then trains.
    return toy.run(tmp_path, clock=clock, **kwargs)

  with pytest.raises(toy.Interrupted):
    run(iterators={2: toy.Clips(2, stop_at=7), 4: toy.Clips(4)})
  first = seconds(tmp_path)['tokenizer']
  assert first >= 0.1
  run()
  second = seconds(tmp_path)['tokenizer']
  assert second >= first + 0.1
  run()
  assert json.loads((tmp_path / 'seconds.json').read_text()) == {
    'tokenizer': second
  }
