"""Atari Pong as docs/atari.md has it: the commands, in short form."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from dreamer4_jax.cli import startup
from dreamer4_jax.cli.main import main

pytest.importorskip('ale_py', reason='ale-py has no wheel for this Python')
pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
# The smallest models and the fewest steps that go the whole way.
TINY = """
tokenizer.patch_size=16 tokenizer.num_latents=4 tokenizer.width=16
tokenizer.depth=2 tokenizer.time_every=2 tokenizer.context_length=2
dynamics.width=16 dynamics.num_spatial_tokens=4 dynamics.context_length=4
dynamics.depth=2 dynamics.time_every=2 agent.hidden=16
phases.tokenizer.steps=2 phases.dynamics.steps=2
phases.finetune.steps=2 phases.imagination.steps=2
phases.tokenizer.batch_size=4 phases.tokenizer.clip_lengths=2
phases.dynamics.batch_size=4 phases.dynamics.clip_lengths=4
phases.dynamics.bootstrap_start=0
phases.finetune.batch_size=4 phases.finetune.clip_lengths=4
phases.imagination.batch_size=4 phases.imagination.clip_lengths=4
phases.imagination.horizon=2 phases.imagination.sampling_steps=2
env.max_steps=8 eval.episodes=4 eval.clips=4 eval.context_frames=4
eval.horizons=2,4
""".split()


def dreamer4(*command):
  """Runs a command in a process of its own; returns what it said."""
  found = subprocess.run(
    [sys.executable, '-m', 'dreamer4_jax.cli.main', *command],
    env={
      **os.environ,
      'PYTHONPATH': str(ROOT),
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
  )
  assert found.returncode == 0, found.stdout
  assert 'Traceback' not in found.stdout
  return found.stdout


def test_from_nothing_to_exported_weights(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(startup, 'enable_compilation_cache', lambda: None)
  said = dreamer4(
    'data', 'collect', *'--env gymnasium:ALE/Pong-v5'.split(),
    *'--policy random --episodes 2 --test-episodes 2 --max-steps 30'.split(),
    *'--image-size 64 64 --out data'.split(),
  )  # fmt: skip
  # A progress bar and the report, nothing else.
  bar, brace, report = said.partition('{')
  lines = bar.replace('\r', '\n').splitlines()
  assert brace and all('episodes' in line for line in lines if line), bar
  assert '"frames": 62' in report and '"mean_return": 0.0' in report

  assert main('data info data'.split()) == 0
  said = capsys.readouterr().out
  assert 'train: 2 episodes, 62 frames' in said and 'noise' not in said
  assert main('data show data --out looks'.split()) == 0
  for name in ('train.png', 'train.mp4'):
    assert (tmp_path / 'looks' / name).stat().st_size > 0

  dreamer4(
    'quickstart', str(ROOT / 'experiments/pong.py'), '--run-dir', 'run',
    '--data', 'data', '--set', *TINY,
  )  # fmt: skip
  for name in (
    'results.json', 'report.md', 'dreams.mp4', 'dreams.png', 'agent.mp4',
    'latents-0/dataset_info.json',
  ):  # fmt: skip
    assert (tmp_path / 'run' / name).stat().st_size > 0, name

  assert main('export run --out weights'.split()) == 0
  for name in ('model.safetensors', 'config.json'):
    assert (tmp_path / 'weights' / name).stat().st_size > 0
