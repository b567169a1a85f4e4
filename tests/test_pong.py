"""Atari Pong as docs/atari.md has it: the commands, in short form."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

pytest.importorskip('ale_py', reason='ale-py has no wheel for this Python')

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


@pytest.fixture(scope='module')
def user(tmp_path_factory):
  """Runs a command in an empty directory, as a user would."""
  directory = tmp_path_factory.mktemp('pong')

  def run(*command):
    found = subprocess.run(
      [sys.executable, '-m', *command],
      cwd=directory,
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
    return directory, found.stdout

  return run


def test_from_nothing_to_exported_weights(user):
  _, said = user(
    'data_pipelines.collect', *'--env gymnasium:ALE/Pong-v5'.split(),
    *'--policy random --episodes 2 --test-episodes 2 --max-steps 30'.split(),
    *'--image-size 64 64 --out data'.split(),
  )  # fmt: skip
  # A progress bar and the report, nothing else.
  bar, brace, report = said.partition('{')
  lines = bar.replace('\r', '\n').splitlines()
  assert brace and all('episodes' in line for line in lines if line), bar
  assert '"frames": 62' in report and '"mean_return": 0.0' in report

  dreamer4 = 'dreamer4_jax.cli.main'
  _, said = user(dreamer4, *'data info data'.split())
  assert 'train: 2 episodes, 62 frames' in said and 'noise' not in said
  here, _ = user(dreamer4, *'data show data --out looks'.split())
  for name in ('train.png', 'train.mp4'):
    assert (here / 'looks' / name).stat().st_size > 0

  _, said = user(
    dreamer4, 'quickstart', str(ROOT / 'experiments/pong.py'),
    '--run-dir', 'run', '--data', 'data', '--set', *TINY,
  )  # fmt: skip
  for name in (
    'results.json', 'report.md', 'dreams.mp4', 'dreams.png', 'agent.mp4',
    'latents-0/dataset_info.json',
  ):  # fmt: skip
    assert (here / 'run' / name).stat().st_size > 0, name

  user(dreamer4, *'export run --out weights'.split())
  for name in ('model.safetensors', 'config.json'):
    assert (here / 'weights' / name).stat().st_size > 0
