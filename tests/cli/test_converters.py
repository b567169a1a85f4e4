"""Every converter is a command of `dreamer4`, and still its own program."""

import os
import pathlib
import subprocess
import sys

import pytest

from dreamer4_jax.cli import data
from dreamer4_jax.cli.main import main


def test_every_converter_is_a_command(capsys):
  modules = pathlib.Path(__file__).parents[2] / 'data_pipelines'
  programs = {
    p.stem for p in modules.glob('*.py') if '__main__' in p.read_text()
  }
  assert {module for module, _ in data.CONVERTERS.values()} == programs
  with pytest.raises(SystemExit):
    main(['data', '--help'])
  said = capsys.readouterr().out
  assert all(
    f'make one from {how}' in said for _, how in data.CONVERTERS.values()
  )
  root = str(pathlib.Path(__file__).parents[2])
  code = 'from dreamer4_jax.cli.main import main; main()'
  child = subprocess.run(
    [sys.executable, '-c', code, 'data', 'video', '--help'],
    env=os.environ | {'PYTHONPATH': root},
    capture_output=True,
    text=True,
  )
  assert child.returncode == 0, child.stderr
  assert 'usage: python -m data_pipelines.video' in child.stdout
