"""Several processes and meshes, as the command line takes them."""

import re

import jax
import pytest

from dreamer4_jax.cli.cluster import parse_mesh
from dreamer4_jax.cli.main import main
from dreamer4_jax.config import Config, MeshConfig, Phases, TokenizerPhase
from dreamer4_jax.training.clips import training_loader

EXPERIMENT = """
from dreamer4_jax.config import Config
config = Config()
"""


@pytest.fixture
def home(tmp_path):
  (tmp_path / 'toy.py').write_text(EXPERIMENT)
  return tmp_path


@pytest.mark.parametrize(
  'text, message',
  [
    ('--coordinator a:1', 'together with --num-processes and --process-id'),
    ('--num-processes 2', 'together with --num-processes and --process-id'),
    ('--coordinator a --num-processes 2 --process-id 0', 'must be HOST:PORT'),
    ('--coordinator a:0 --num-processes 2 --process-id 0', 'must be HOST:PORT'),
    (
      '--coordinator a:65536 --num-processes 2 --process-id 0',
      'must be HOST:PORT',
    ),
    ('--coordinator a:b --num-processes 2 --process-id 0', 'must be HOST:PORT'),
    (
      '--coordinator a:1 --num-processes 2 --process-id 2',
      r'lie in \[0, --num',
    ),
    ('--coordinator a:1 --num-processes 0 --process-id 0', 'at least 1'),
    ('--coordinator a:1 --distributed', 'left out with --distributed'),
    ('--process-id 1 --distributed', 'left out with --distributed'),
    ('--distributed --join-timeout 0', 'at least 1 second'),
    ('--mesh data=2,rows=4', "'rows' is no axis; must be among data, fsdp"),
    ('--mesh data=two', "data = 'two' must be a whole number, or -1"),
    ('--mesh data', "data = '' must be a whole number, or -1"),
    ('--mesh data=2,data=4', 'names data twice'),
    ('--mesh data=-1,fsdp=-1', 'at most one is -1'),
    ('--mesh fsdp=0', 'sizes must be positive'),
  ],
)
def test_arguments_that_cannot_be_meant(
  home, monkeypatch, capsys, text, message
):
  monkeypatch.chdir(home)
  assert main(['train', 'toy.py', '--help-config', *text.split()]) == 2
  assert re.search(message, capsys.readouterr().err)


def test_axes_that_are_not_named_have_size_1():
  assert parse_mesh('fsdp=-1') == {'data': 1, 'fsdp': -1, 'tensor': 1}
  assert parse_mesh('tensor=2, data=4') == {'data': 4, 'fsdp': 1, 'tensor': 2}


@pytest.mark.parametrize(
  'batch_size, tensor, message',
  [
    (6, 1, 'phases.tokenizer.batch_size = 6: must be divisible by .* 4'),
    (8, 4, 'mesh.tensor = 4: must divide the devices of a process, 2'),
    (8, -1, 'mesh.tensor = 4: must divide the devices of a process, 2'),
  ],
)
def test_each_process_needs_rows_of_its_own(
  monkeypatch, batch_size, tensor, message
):
  counts = {'process': 4, 'local_device': 2, 'device': 8}
  for name, count in counts.items():
    monkeypatch.setattr(jax, f'{name}_count', lambda count=count: count)
  config = Config(
    mesh=MeshConfig(data=2, fsdp=1, tensor=tensor),
    phases=Phases(tokenizer=TokenizerPhase(batch_size=batch_size)),
  )
  with pytest.raises(ValueError, match=message):
    training_loader(config, 'tokenizer', 2)
