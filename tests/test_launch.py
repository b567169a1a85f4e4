"""The launch scripts, with stub cluster programs that only record calls."""

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / 'experiments/launch'
SCRIPTS = sorted(LAUNCH.glob('*.sh'))
SET_BY_SLURM = {'SLURM_JOB_ID', 'SLURM_RESTART_COUNT'}


@pytest.fixture
def bin_dir(tmp_path, monkeypatch):
  """A directory of programs that goes before all others."""
  path = tmp_path / 'bin'
  path.mkdir()
  monkeypatch.setenv('PATH', f'{path}:{os.environ["PATH"]}')
  monkeypatch.chdir(tmp_path)
  return path


def program(path, text):
  path.write_text('#!/usr/bin/env bash\n' + text)
  path.chmod(0o755)


def run(script, *args, **env):
  return subprocess.run(
    [LAUNCH / script, *args],
    env=os.environ | env,
    capture_output=True,
    text=True,
    timeout=60,
  )


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda p: p.name)
def test_help_names_every_variable_and_needs_none(path):
  result = run(path.name, '--help')
  assert result.returncode == 0 and 'usage:' in result.stdout
  text = path.read_text()
  used = set(re.findall(r'\$\{([A-Z_]+)[:}]', text)) - SET_BY_SLURM
  for names in re.findall(r'need ([A-Z_ ]+)|name in ([A-Z_ ]+)', text):
    used.update(' '.join(names).split())
  assert used
  for name in used:
    assert re.search(rf'^  .*\b{name}\b', result.stdout, re.MULTILINE), name
  result = run(path.name, 'x.py')
  assert result.returncode == 2 and f'{path.name}: ' in result.stderr


@pytest.mark.parametrize('code, queued', [(75, True), (0, False), (2, False)])
def test_slurm_queues_the_job_again_after_75_only(bin_dir, code, queued):
  program(bin_dir / 'srun', f'echo "$@" >srun.txt; exit {code}\n')
  program(bin_dir / 'scontrol', 'echo "$@" >scontrol.txt\n')
  program(bin_dir / 'dreamer4', '')
  env = {'SLURM_JOB_ID': '12', 'VENV': str(bin_dir.parent)}
  assert run('slurm.sh', 'x.py', '--set', 'a=b c', **env).returncode == code
  srun = pathlib.Path('srun.txt').read_text()
  assert srun.endswith('train x.py --set a=b c --distributed\n')
  assert pathlib.Path('scontrol.txt').exists() == queued
  if queued:
    assert pathlib.Path('scontrol.txt').read_text() == 'requeue 12\n'
    env['SLURM_RESTART_COUNT'] = '100'
    assert run('slurm.sh', 'x.py', **env).returncode == 2


def test_slurm_waits_for_the_tasks_when_the_job_is_asked_to_stop(bin_dir):
  program(bin_dir / 'srun', 'touch begun; sleep 1; exit 75\n')
  program(bin_dir / 'scontrol', 'echo "$@" >scontrol.txt\n')
  program(bin_dir / 'dreamer4', '')
  job = subprocess.Popen(
    [LAUNCH / 'slurm.sh', 'x.py'],
    env=os.environ | {'SLURM_JOB_ID': '12', 'VENV': str(bin_dir.parent)},
  )
  while not pathlib.Path('begun').exists():
    time.sleep(0.01)
  job.send_signal(signal.SIGTERM)
  assert job.wait(60) == 75
  assert pathlib.Path('scontrol.txt').exists()


def test_xpk_restarts_after_75(bin_dir):
  program(bin_dir / 'xpk', 'printf "%s\\n" "$@" >xpk.txt\n')
  names = ('PROJECT', 'ZONE', 'CLUSTER', 'TPU_TYPE', 'IMAGE', 'STORAGE')
  env = {name: name.lower() for name in names}
  result = run('gke_xpk.sh', 'x.py', '--set', 'name=a b', **env)
  assert result.returncode == 0, result.stderr
  words = pathlib.Path('xpk.txt').read_text().splitlines()
  assert (
    '--restart-on-exit-codes=75' in words and '--tpu-type=tpu_type' in words
  )
  command = next(w for w in words if w.startswith('--command='))
  assert command == (
    r'--command=exec dreamer4 train x.py --set name=a\ b --distributed'
  )


GCLOUD = """
echo "$@" >>gcloud.txt
case "$*" in
  *describe*) sed -n "$(grep -c describe gcloud.txt)p" states.txt ;;
  *exit_code*hostname*)
    sed -n "$(grep -c hostname gcloud.txt)p" codes.txt | tr ';' '\\n' ;;
esac
"""


def test_a_pod_starts_again_after_75_and_after_a_preemption(bin_dir):
  program(bin_dir / 'gcloud', GCLOUD)
  program(bin_dir / 'sleep', '')
  # Asked by watch; then by create, after the slice was taken away.
  states = 'ACTIVE ACTIVE SUSPENDED WAITING_FOR_RESOURCES ACTIVE ACTIVE ACTIVE'
  pathlib.Path('states.txt').write_text('\n'.join(states.split()) + '\n')
  codes = [
    'exit_code a 75;exit_code b running',
    'exit_code a 75;exit_code b 75',
    'exit_code a running;exit_code b running',
    'exit_code a 0;exit_code b 0',
  ]
  pathlib.Path('codes.txt').write_text('\n'.join(codes) + '\n')
  env = {'PROJECT': 'p', 'ZONE': 'z', 'TPU_NAME': 't', 'RUNTIME_VERSION': 'r'}
  env['ACCELERATOR_TYPE'] = 'v5p-16'
  result = run('tpu_pod.sh', 'watch', 'x.py', '--set', 'name=a b', **env)
  assert result.returncode == 0, result.stderr
  calls = pathlib.Path('gcloud.txt').read_text()
  assert calls.count(r'train x.py --set name=a\ b  --distributed') == 3
  assert calls.count('queued-resources create t --node-id=t') == 1
  assert calls.count('queued-resources delete t --force') == 1
  assert calls.count('tpu-vm scp') == 1


def test_a_pod_does_not_start_again_after_a_mistake(bin_dir):
  program(bin_dir / 'gcloud', GCLOUD)
  program(bin_dir / 'sleep', '')
  pathlib.Path('states.txt').write_text('ACTIVE\n')
  pathlib.Path('codes.txt').write_text('exit_code a 2;exit_code b 2\n')
  env = {'PROJECT': 'p', 'ZONE': 'z', 'TPU_NAME': 't'}
  result = run('tpu_pod.sh', 'watch', 'x.py', **env)
  assert result.returncode == 2 and 'exit codes: 2' in result.stderr
