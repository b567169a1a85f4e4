"""SIGTERM is noted, once."""

import os
import signal
import threading

import pytest

from dreamer4_jax.cli import main as cli
from dreamer4_jax.runtime.preemption import EXIT_CODE, PreemptedError, Sigterm


@pytest.fixture
def died():
  """Replaces what SIGTERM does outside; returns how often it came there."""
  count = []
  before = signal.signal(signal.SIGTERM, lambda *unused: count.append(1))
  yield count
  signal.signal(signal.SIGTERM, before)


def send():
  os.kill(os.getpid(), signal.SIGTERM)


def test_the_first_is_noted_and_the_second_has_its_usual_meaning(died):
  with Sigterm() as sigterm:
    assert not sigterm.received
    send()
    assert sigterm.received and not died
    send()
    assert len(died) == 1
  send()
  assert len(died) == 2


@pytest.mark.parametrize('active', [True, False])
def test_outside_and_where_it_is_off_nothing_is_changed(died, active):
  with Sigterm(active=active) as sigterm:
    pass
  send()
  assert len(died) == 1 and not sigterm.received
  with Sigterm(active=False) as sigterm:
    send()
  assert len(died) == 2 and not sigterm.received


def test_other_threads_leave_it_alone(died):
  def work():
    with Sigterm():
      held.set()
      done.wait(10)

  held, done = threading.Event(), threading.Event()
  thread = threading.Thread(target=work)
  thread.start()
  held.wait(10)
  send()
  done.set()
  thread.join()
  assert len(died) == 1


def test_the_command_line_says_try_again(monkeypatch, capsys, tmp_path):
  def train(args):
    raise PreemptedError('dynamics: asked to stop after step 3 of 9')

  monkeypatch.setattr(cli, '_train', train)
  assert cli.main(['train', str(tmp_path / 'x.py')]) == EXIT_CODE == 75
  assert 'asked to stop after step 3' in capsys.readouterr().err
