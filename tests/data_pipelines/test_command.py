"""The commands that make datasets: help, mistakes, missing packages."""

import dataclasses
import os
import pathlib
import runpy
import subprocess
import sys

from flax.core.meta import unbox
import jax
import numpy as np
import pytest

from data_pipelines import command, writer
from dreamer4_jax.checkpoint import Checkpoints
from dreamer4_jax.models import World
from tests.data_pipelines.test_writer import DESCRIPTION, steps
from tests.models.tiny_world import CONFIG

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = (
  'collect',
  'minari_datasets',
  'pretokenise',
  'rlds',
  'video',
  'vpt',
  'lerobot',
)
"""All of them; what others import comes before them."""
OPTIONAL = (
  'ale_py',
  'av',
  'craftax',
  'dm_control',
  'gymnasium',
  'h5py',
  'minari',
  'mujoco',
  'navix',
  'pyarrow',
)
BARE = f"""
import runpy, sys
for name in {OPTIONAL}:
  sys.modules[name] = None
for line in sys.stdin.read().splitlines():
  sys.argv = line.split()
  code = None
  try:
    name = 'data_pipelines.' + sys.argv[0]
    runpy.run_module(name, run_name='__main__', alter_sys=True)
  except SystemExit as stop:
    code = stop.code
  print('rc', *sys.argv[:1], code, flush=True)
"""


def without_extras(*lines):
  """Runs commands in a process in which no extra is installed."""
  return subprocess.run(
    [sys.executable, '-c', BARE],
    input='\n'.join(lines),
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'COLUMNS': '80'},
    capture_output=True,
    text=True,
    check=False,
  )


def test_help_needs_no_extra():
  found = without_extras(*(f'{name} --help' for name in COMMANDS))
  assert not found.stderr
  mains = (ROOT / 'data_pipelines').glob('*.py')
  made = {p.stem for p in mains if '__main__' in p.read_text()}
  assert made == set(COMMANDS)
  for name in COMMANDS:
    assert f'rc {name} 0' in found.stdout
    assert f'usage: python -m data_pipelines.{name} ' in found.stdout
  # It also says how to go on.
  assert 'dreamer4 data show' in found.stdout


def test_the_missing_extra_is_named(tmp_path):
  (tmp_path / 'x.mp4').write_bytes(b'nothing')
  lines = {
    f'video --inputs {tmp_path}': ('av', 'video'),
    f'vpt --root {tmp_path}': ('av', 'video'),
    f'minari_datasets --dataset {tmp_path}': ('minari', 'minari'),
    f'lerobot --dataset {tmp_path}': ('pyarrow', 'lerobot'),
    'collect': ('navix', 'navix'),
    'collect --policy random --env craftax:Craftax-Classic-Pixels-v1': (
      'craftax',
      'craftax',
    ),
    'collect --policy random --env gymnasium:ALE/Pong-v5': (
      'gymnasium',
      'gymnasium',
    ),
    'collect --policy random --env dm_control:cartpole-swingup': (
      'dm_control',
      'dm_control',
    ),
  }
  out = tmp_path / 'out'
  found = without_extras(*(f'{line} --out {out}' for line in lines))
  said = found.stderr.splitlines()
  assert len(said) == len(lines), found.stderr
  for sentence, line, (package, extra) in zip(
    said, lines, lines.values(), strict=True
  ):
    assert sentence.startswith(f'{line.split()[0]}: ')
    assert f'the package {package}' in sentence
    assert f"`pip install 'dreamer4_jax[{extra}]'`" in sentence
  assert found.stdout.count(' 2\n') == len(lines)
  assert [p.name for p in tmp_path.iterdir()] == ['x.mp4']


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """What users have lying about, and what they name by mistake."""
  tmp_path = tmp_path_factory.mktemp('files')
  writer.write_dataset(
    tmp_path / 'data',
    description=DESCRIPTION,
    splits={'train': [writer.Episode(steps=steps(), terminal=True)]},
  )
  run = tmp_path / 'run'
  world = World.from_config(CONFIG)
  shapes = jax.eval_shape(
    lambda: unbox(world.init(jax.random.key(0), ('tokenizer',)))
  )
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  with Checkpoints(run / 'tokenizer') as checkpoints:
    state = {'params': params, 'ema': params, 'frozen': {}}
    checkpoints.save(1, state, {}, CONFIG)
  (run / 'config.json').write_text(CONFIG.to_json())
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full/notes.txt').write_text('mine')
  return tmp_path


DOORKEY = '--env navix:Navix-DoorKey-Random-5x5-v0'
RANDOM = f'{DOORKEY} --policy random --episodes 1 --test-episodes 1'


@pytest.mark.parametrize(
  ('line', 'sentence'),
  [
    ('collect --env nothing --out new', "collect: env = 'nothing': must be "),
    ('collect --env navix:Nothing --out new', "'navix:Nothing'"),
    ('collect --policy checkpoint --run no --out new', 'no checkpoints; train'),
    (
      'collect --env navix:Navix-Empty-5x5-v0 --out new',
      "'navix:Navix-Empty-5x5-v0'",
    ),
    (f'collect {RANDOM} --out data', 'there is a finished dataset; pass'),
    (
      f'collect {RANDOM} --image-size 64 64 --out new',
      'collect: image_size = ',
    ),
    (
      'collect --policy random --env gymnasium:Nothing-v0 --out new',
      "collect: env = 'gymnasium:Nothing-v0': ",
    ),
    (f'collect {RANDOM} --max-steps 0 --out new', 'collect: max_steps = 0: '),
    (f'collect {RANDOM} --out full', 'full: exists and is not a dataset'),
    ('pretokenise --run run --dataset data --out full', 'is not a dataset'),
    (f'collect {RANDOM} --out run', 'holds a run'),
    (f'collect {RANDOM} --out run/data', 'lies in the directory of a run'),
    (f'collect {RANDOM} --out run/deep/data', 'lies in the directory of a run'),
    (f'collect {RANDOM} --out . --overwrite', 'holds a run'),
    ('pretokenise --run no --dataset data --out new', 'no checkpoints; train'),
    (
      'pretokenise --run run --dataset no --out new',
      "dataset = 'no': no dataset there",
    ),
    ('pretokenise --run run --dataset data --out new', 'frame_shape'),
    ('pretokenise --run run --dataset data --out data', 'finished dataset'),
    ('pretokenise --run run --dataset data --out run', 'holds a run'),
    ('video --inputs no --out new', 'no such file or directory'),
    ('vpt --index no --out new', 'no such file'),
    ('vpt --out new', "root = ''"),
    ('vpt --root no --out new', "vpt: root = 'no': no such file or directory"),
    ('rlds --dataset no --out new', 'no dataset_info.json there'),
    ('rlds --dataset data --out new', 'no RLDS dataset'),
    ('minari_datasets --dataset no --out new', 'no Minari dataset there'),
    ('lerobot --dataset no --out new', 'no LeRobot dataset there'),
  ],
)
def test_a_mistake_is_a_sentence(files, line, sentence, monkeypatch, capsys):
  for package, commands in (
    ('navix', ('collect',)),
    ('gymnasium', ('collect',)),
    ('av', ('video', 'vpt', 'lerobot')),
    ('pyarrow', ('lerobot',)),
    ('minari', ('minari_datasets',)),
  ):
    if line.split()[0] in commands:
      pytest.importorskip(package)
  monkeypatch.chdir(files)
  before = sorted(files.rglob('*'))
  monkeypatch.setattr('sys.argv', line.split())
  name = sys.argv[0]
  with pytest.raises(SystemExit) as stop:
    runpy.run_module(
      f'data_pipelines.{name}', run_name='__main__', alter_sys=True
    )
  assert stop.value.code == 2
  said = capsys.readouterr()
  assert not said.out
  assert sentence in said.err and 'Traceback' not in said.err
  # These are fields of a training's config, and no options here.
  assert 'EnvConfig' not in said.err and 'SourceConfig' not in said.err
  if (
    'Value error' not in said.err
  ):  # Errors of the option parser are printed in a box.
    assert said.err.startswith(f'{name}: ')
    assert len(said.err.splitlines()) == 1
  # Nothing was begun, and nothing that was there is gone.
  assert sorted(files.rglob('*')) == before


def test_the_small_talk_of_libraries_is_left_out(files):
  code = """
import sys
from data_pipelines import command
from dreamer4_jax.checkpoint import load_params
command.quiet()
load_params(sys.argv[1], 'tokenizer')
"""
  found = subprocess.run(
    [sys.executable, '-c', code, files / 'run'],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  )
  said = found.stderr.splitlines()
  # One warning is of use: the run has one step of many.
  assert len(said) == 1 and 'stopped at step 1 of' in said[0]


def run_main(monkeypatch, work):
  @dataclasses.dataclass
  class Options:
    """None."""

  monkeypatch.setattr('sys.argv', ['/somewhere/work.py'])
  command.main_of(
    Options, work, lambda options, report: print(report), description='x'
  )


@pytest.mark.parametrize(
  ('error', 'code', 'said'),
  [
    (PermissionError(13, 'Permission denied', 'd'), 2, 'Permission denied'),
    (command.FailedError('lost a process'), 1, 'work: lost a process\n'),
    (KeyboardInterrupt(), 130, 'work: interrupted; the same command goes on'),
    (ImportError('needs the package x'), 2, 'work: needs the package x\n'),
  ],
)
def test_how_a_command_may_end(error, code, said, monkeypatch, capsys):
  def work(options):
    raise error

  with pytest.raises(SystemExit) as stop:
    run_main(monkeypatch, work)
  assert stop.value.code == code
  assert said in capsys.readouterr().err


@pytest.mark.parametrize(
  'error', [KeyError('x'), ImportError('no name x in y', name='y')]
)
def test_a_fault_of_ours_keeps_its_traceback(error, monkeypatch):
  def work(options):
    raise error

  with pytest.raises(type(error)):
    run_main(monkeypatch, work)
