"""Two processes of four devices train as one process of eight does.

The suite trains the first two phases on one mesh. All phases, on two meshes:

    MESHES=all python -m pytest tests/test_distributed.py
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest

from data_pipelines import writer
from dreamer4_jax.checkpoint import load_arrays
from dreamer4_jax.config import PHASES, ActionComponent
from dreamer4_jax.data.format import Description
from dreamer4_jax.runtime.distributed import (
  Cluster,
  JoinError,
  join,
  joined,
  leave,
)
from dreamer4_jax.runtime.preemption import EXIT_CODE

STEPS, SIDE = 5, 16
STARTED = []
MESHES = ['data=8']
if os.environ.get('MESHES') == 'all':
  MESHES.append('data=2,fsdp=2,tensor=2')
TRAINED = PHASES if len(MESHES) > 1 else PHASES[:2]
ACTIONS = (ActionComponent(name='action', kind='categorical', size=3),)
EXPERIMENT = """
from dreamer4_jax.config import *

SMALL = dict(width=16, num_heads=4, depth=2, time_every=2, context_length=2)
STEP = dict(steps={steps}, batch_size=8, clip_lengths=(2,))
config = Config(
  actions=(ActionComponent(name='action', kind='categorical', size=3),),
  tasks=('near', 'far'),
  tokenizer=TokenizerConfig(
    frame_shape=(16, 16, 3), patch_size=8, num_latents=4, bottleneck_dim=4,
    **SMALL,
  ),
  dynamics=DynamicsConfig(
    num_spatial_tokens=4, num_registers=1, num_kv_heads=2, **SMALL
  ),
  # A small limit: the mean of an untrained value is a difference of the largest
  # bins, by default 5e8, and so is its rounding.
  agent=AgentConfig(hidden=(16, 16), bin_limit=5.0),
  phases=Phases(
    tokenizer=TokenizerPhase(**STEP),
    dynamics=DynamicsPhase(**STEP),
    finetune=FinetunePhase(**STEP),
    imagination=ImaginationPhase(**STEP, horizon=2),
  ),
  # Gradients so small that Adam's epsilon is above the rounding of one: else
  # where there is hardly any, its rounding is a share of the step.
  optimizer=OptimizerConfig(warmup_steps=1, decay_share=0.0, clip_norm=1e-5),
  saving=SavingConfig(log_every=1, checkpoint_every=3),
  data=DataConfig(sources=(SourceConfig(path='noise'),)),
)
"""


def episodes(count, rng):
  for _ in range(count):
    last = np.arange(12) == 11
    yield writer.Episode(
      steps={
        'observation': rng.integers(0, 256, (12, SIDE, SIDE, 3), np.uint8),
        'action': {'action': rng.integers(0, 3, 12, np.int32)},
        'action_known': ~last,
        'reward': np.zeros(12, np.float32),
        'events': np.tile(last[::-1, None], (1, 2)).astype(np.uint8),
      },
      terminal=True,
    )


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A directory with a dataset of noise and an experiment."""
  home = tmp_path_factory.mktemp('home')
  rng = np.random.default_rng(0)
  writer.write_dataset(
    str(home / 'noise'),
    description=Description(
      actions=ACTIONS, tasks=('near', 'far'), frame_shape=(SIDE, SIDE, 3)
    ),
    splits={'train': episodes(6, rng), 'test': episodes(2, rng)},
  )
  (home / 'toy.py').write_text(EXPERIMENT.format(steps=STEPS))
  return home


@pytest.fixture(autouse=True)
def nothing_left():
  yield
  for process in STARTED:
    process.kill()


def free_port():
  with socket.socket() as listener:
    listener.bind(('', 0))
    return listener.getsockname()[1]


def environment(devices):
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
    'PYTHONPATH': str(pathlib.Path(__file__).parents[1]),
  }


def start(home, name, mesh, *more, processes=1, devices=8):
  """Starts `dreamer4 train` in one or several processes, as a user does."""
  address = f'localhost:{free_port()}'
  running = []
  for process in range(processes):
    command = [sys.executable, '-m', 'dreamer4_jax.cli.main', 'train', 'toy.py']
    command += ['--run-dir', name, '--mesh', mesh, *more]
    if processes > 1:
      command += ['--coordinator', address, '--process-id', str(process)]
      command += ['--num-processes', str(processes), '--join-timeout', '60']
    running.append(
      subprocess.Popen(
        command,
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(devices // processes),
      )
    )
  STARTED.extend(running)
  return running


def end(running, timeout=500):
  """Waits for processes; returns their exit codes and what they printed."""
  outputs = [p.communicate(timeout=timeout)[0] for p in running]
  return [p.returncode for p in running], outputs


def train_together(home, name, mesh, *more):
  """Trains in two processes; again if one was 30 s behind the other.

  Gloo, which joins CPUs, does not wait longer. On a busy machine one process
  may compile for so much longer than the other; compiled programs are kept.
  """
  for _ in range(3):
    codes, outputs = end(start(home, name, mesh, *more, processes=2))
    if not any('Gloo context initialization failed' in x for x in outputs):
      break
  return codes, outputs


@pytest.fixture(scope='module')
def alone(home):
  codes, outputs = end(start(home, 'alone', 'data=8', '--phase', *TRAINED))
  assert codes == [0], outputs[0]
  return home / 'alone'


def lines(phase_dir):
  text = (phase_dir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize('mesh', MESHES)
@pytest.mark.parametrize('phase', TRAINED)
def test_they_learn_what_one_process_learns(home, alone, phase, mesh):
  # From the same phases before: rounding would grow from phase to phase, since
  # latents are divided by what they vary.
  directory = home / f'{mesh}-{phase}'
  for before in TRAINED[: TRAINED.index(phase)]:
    shutil.copytree(alone / before, directory / before)
  codes, outputs = train_together(home, directory.name, mesh, '--phase', phase)
  assert codes == [0, 0], outputs
  expected, _ = load_arrays(alone / phase)
  found, _ = load_arrays(directory / phase)
  for name in ('params', 'ema', 'frozen'):
    chex.assert_trees_all_close(found[name], expected[name], atol=1e-5)
  one, two = lines(alone / phase), lines(directory / phase)
  # Written once: a line for each step, one file of TensorBoard's.
  assert [line['step'] for line in two] == list(range(1, STEPS + 1))
  assert len(list((directory / phase / 'tensorboard').iterdir())) == 1
  losses = [name for name in one[0] if name.endswith('loss')]
  assert losses
  for name in losses:
    expected = [line[name] for line in one]
    assert [line[name] for line in two] == pytest.approx(expected, rel=1e-5)
  assert f'{phase}: starting fresh' in outputs[0] and '5/5' in outputs[0]
  # The other process has nothing to say.
  assert 'starting fresh' not in outputs[1] and '5/5' not in outputs[1]


def wait_for(process, text):
  """Reads what a process prints until `text` comes."""
  for line in process.stdout:
    if text in line:
      return
  raise AssertionError(f'{text!r} was not printed')


@pytest.mark.slow
def test_sigterm_to_one_stops_both_and_one_process_goes_on(home):
  phase_dir = home / 'stopped/tokenizer'
  more = ['--phase', 'tokenizer', '--set', 'phases.tokenizer.steps=100000']
  more += ['saving.checkpoint_every=100000']

  def steps():
    return sorted(int(p.name) for p in (phase_dir / 'checkpoints').iterdir())

  running = start(home, 'stopped', 'data=8', *more, processes=2)
  wait_for(running[0], 'starting fresh')
  metrics = phase_dir / 'metrics.jsonl'
  while not metrics.exists() or not metrics.stat().st_size:
    assert running[0].poll() is None
    time.sleep(0.05)
  running[1].send_signal(signal.SIGTERM)
  codes, outputs = end(running)
  assert codes == [EXIT_CODE] * 2, outputs
  (first,) = steps()
  for output in outputs:
    assert f'asked to stop after step {first:,} of 100,000' in output
    assert 'stack trace' not in output

  # Before the first step of a run that resumes.
  running = start(home, 'stopped', 'data=8', *more, processes=2)
  wait_for(running[0], f'resuming from step {first:,}')
  running[0].send_signal(signal.SIGTERM)
  codes, outputs = end(running)
  assert codes == [EXIT_CODE] * 2, outputs
  second = steps()[-1]
  assert second > first

  running = start(home, 'stopped', 'data=8', *more)
  wait_for(running[0], f'resuming from step {second:,}')
  running[0].send_signal(signal.SIGTERM)
  codes, outputs = end(running)
  assert codes == [EXIT_CODE], outputs
  assert [line['step'] for line in lines(phase_dir)] == [
    *range(1, steps()[-1] + 1)
  ]


def test_nobody_waits_for_a_process_that_does_not_come(home):
  late = ['--num-processes', '2', '--join-timeout', '1']
  port = free_port()
  running = [
    start(home, 'late', 'data=8', '--coordinator', f'localhost:{p}',
          '--process-id', str(i), *late)[0]
    for i, p in ((0, port), (1, free_port()))
  ]  # fmt: skip
  codes, outputs = end(running, timeout=100)
  assert codes == [1, 1], outputs
  assert 'dreamer4: process 0 of 2 waited 1 s at localhost:' in outputs[0]
  assert 'dreamer4: process 1 of 2 could not join at localhost:' in outputs[1]
  for output in outputs:
    assert 'raise --join-timeout' in output
    assert 'stack trace' not in output and 'Traceback' not in output
  assert not (home / 'late').exists()


ALONE = """
import sys, time
from dreamer4_jax.runtime.distributed import Cluster, join, leave
process = int(sys.argv[2])
join(Cluster(coordinator=sys.argv[1], processes=2, process=process))
if process == 0:
  time.sleep(100)  # As in a collective that waits for the other.
sys.exit(leave(7, together=False))
"""


def test_a_process_that_fails_alone_does_not_wait_for_the_others():
  address = f'localhost:{free_port()}'
  for process in range(2):
    command = [sys.executable, '-c', ALONE, address, str(process)]
    STARTED.append(subprocess.Popen(command, env=environment(4)))
  assert STARTED[-1].wait(60) == 7
  assert STARTED[-2].poll() is None


def test_a_mistake_of_all_is_one_sentence_of_each(home):
  wrong = ['--set', 'phases.tokenizer.batch_size=9']
  running = start(home, 'wrong', 'data=8', *wrong, processes=2)
  codes, outputs = end(running, timeout=100)
  assert codes == [2, 2], outputs
  for output in outputs:
    assert 'batch_size = 9: must be divisible by the number of proc' in output
    assert 'stack trace' not in output and 'Traceback' not in output


def test_a_port_that_is_taken_is_named():
  with socket.create_server(('', 0)) as other:
    address = f'localhost:{other.getsockname()[1]}'
    cluster = Cluster(coordinator=address, processes=2, process=0)
    with pytest.raises(JoinError, match='another program listens at port'):
      join(cluster)
  assert not joined() and leave(3, together=True) == 3


def test_alone_there_is_nothing_to_join():
  join(Cluster())
  assert not joined() and leave(0, together=True) == 0
