"""The examples of the README run as they are printed."""

import functools
import pathlib
import re
import subprocess
import sys

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import writer
import dreamer4_jax as d4
from dreamer4_jax.checkpoint import Checkpoints
from dreamer4_jax.config import (
  ActionComponent,
  AgentConfig,
  Config,
  DataConfig,
  SourceConfig,
  presets,
)
from dreamer4_jax.data.format import Description
from dreamer4_jax.models import World
from dreamer4_jax.training.imagination_step import init_imagination_state

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
RUNNING = (ROOT / 'docs/running.md').read_text()
STEP, DREAM, MODEL = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
TASKS, CLASSES, SIDE = ('near', 'far'), 3, 16


def run(code):
  space = {'__name__': 'readme'}
  exec(compile(code, 'README.md', 'exec'), space)
  return space


def episodes(count, rng):
  for _ in range(count):
    last = np.arange(12) == 11
    shape = (12, SIDE, SIDE, 3)
    yield writer.Episode(
      steps={
        'observation': rng.integers(0, 256, shape, np.uint8),
        'action': {'action': rng.integers(0, CLASSES, 12, np.int32)},
        'action_known': ~last,
        'reward': np.zeros(12, np.float32),
        'events': np.tile(last[::-1, None], (1, 2)).astype(np.uint8),
      },
      terminal=True,
    )


def last_state(config):
  """The state of the last phase, as the loop saves it."""
  world, key = World.from_config(config), jax.random.key(0)
  params = world.init(
    key, ('tokenizer', 'dynamics', 'task', 'policy', 'reward', 'continuation')
  )
  latents = config.tokenizer.latent_shape
  params['latents'] = {name: jnp.zeros(latents) for name in ('mean', 'std')}
  return nn.meta.unbox(init_imagination_state(world, key, params))


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
  """A dataset of noise, and `runs/quickstart` with random parameters."""
  monkeypatch.chdir(tmp_path)
  rng = np.random.default_rng(0)
  actions = (ActionComponent(name='action', kind='categorical', size=CLASSES),)
  writer.write_dataset(
    'noise',
    description=Description(
      actions=actions, tasks=TASKS, frame_shape=(SIDE, SIDE, 3)
    ),
    splits={'train': episodes(6, rng), 'test': episodes(2, rng)},
  )

  config = Config(
    actions=actions,
    tasks=TASKS,
    agent=AgentConfig(hidden=(16,)),
    data=DataConfig(sources=(SourceConfig(path='noise'),)),
  )
  config = presets.apply(config, 'tiny')
  config = config.edit({'tokenizer.frame_shape': (SIDE, SIDE, 3)})
  shapes = jax.eval_shape(functools.partial(last_state, config))
  state = jax.tree.map(
    lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), shapes
  )
  with Checkpoints('runs/quickstart/imagination') as checkpoints:
    checkpoints.save(1, state, {}, config)


@pytest.mark.parametrize('code', [STEP, DREAM, MODEL])
def test_an_example_is_short(code):
  assert len([line for line in code.splitlines() if line.strip()]) <= 15
  assert max(map(len, code.splitlines())) <= 80


def test_one_train_step_on_own_arrays():
  space = run(STEP)
  assert int(space['state'].step) == 1
  assert all(np.isfinite(x).all() for x in space['metrics'].values())
  # Unboxed, as the loop has them.
  leaves = jax.tree.leaves(space['state'].params)
  assert all(isinstance(x, jax.Array) for x in leaves)


def test_a_rollout_from_a_checkpoint(checkpoint):
  space = run(DREAM)
  images, actions = space['images'], space['actions']['action']
  assert images.shape == (16, 16, SIDE, SIDE, 3)
  assert np.isfinite(images).all()
  assert actions.shape == (16, 16)
  assert set(np.unique(actions).tolist()) <= set(range(CLASSES))


def test_the_table_of_presets_is_that_of_the_module():
  for name in presets.PRESETS:
    ours = re.search(rf'\| `{name}` \| (\S+) M \| (\S+) M', RUNNING)
    theirs = re.search(
      rf'\| {name} +\| +\S+ +\| +(\S+) +\| +(\S+)', presets.__doc__
    )
    assert [float(x) for x in ours.groups()] == pytest.approx(
      [float(x) for x in theirs.groups()], rel=1e-3
    )


PAGES = ['README.md', *sorted(f'docs/{p.name}' for p in ROOT.glob('docs/*.md'))]


@pytest.mark.parametrize('page', PAGES)
def test_what_a_page_points_to_is_there(page):
  text = (ROOT / page).read_text()
  folder = (ROOT / page).parent
  links = re.findall(r'\]\(([^):]+)\)', text)
  named = re.findall(r'`((?:dreamer4_jax|tests|data_pipelines)/\S+?\.py)', text)
  assert links or named or page.endswith('report.md')
  for path in links:
    assert (folder / path.partition('#')[0]).exists(), path
  for path in named:
    assert (ROOT / path).exists(), path


NAMES = sorted(
  {
    name
    for page in PAGES
    for name in re.findall(r'\bd4(?:\.\w+)+', (ROOT / page).read_text())
  }
)


def test_names_in_the_pages_are_there_from_the_start():
  parts = [name.split('.')[1:] for name in NAMES]
  assert {p[0] for p in parts} <= {*d4.__all__}
  folders = [p for p in parts if len(p) > 1 and p[0].islower()]
  assert folders
  for folder, name, *_ in folders:
    assert name in getattr(d4, folder).__all__, (folder, name)
  names = ['.'.join(['d4', *p]) for p in folders if len(p) > 2]
  assert names
  # Each in a process of its own: another may have imported what it needs.
  code = """
import os, sys
import dreamer4_jax as d4
bad = []
for name in sys.argv[1:]:
  child = os.fork()
  if not child:
    try:
      eval(name)
    except BaseException as error:
      print(error, file=sys.stderr)
      os._exit(1)
    os._exit(0)
  if os.waitpid(child, 0)[1]:
    bad.append(name)
print(bad)
"""
  run = subprocess.run(
    [sys.executable, '-c', code, *names], capture_output=True
  )
  assert run.stdout == b'[]\n', run.stderr.decode()


def test_the_transformer_in_a_foreign_model():
  model = run(MODEL)['VideoModel']()
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 7)), 'float32')
  params = model.init(jax.random.key(0), x)
  assert model.apply(params, x).shape == (2, 3, 5, 1)


def test_it_can_be_read_in_ten_minutes():
  assert len(README.split()) <= 900
