"""The config of a run, as `config.json` in its directory."""

from __future__ import annotations

import os
import pathlib

import msgspec

from dreamer4_jax.config.run import Config

FILE = 'config.json'


def save(config: Config, run_dir: pathlib.Path) -> None:
  """Writes `config.json` of a run, whole or not at all."""
  run_dir.mkdir(parents=True, exist_ok=True)
  new = run_dir / 'config.json.tmp'
  new.write_text(config.to_json())
  os.replace(new, run_dir / FILE)


def load_run(run_dir: pathlib.Path) -> Config:
  """Reads `config.json` of a run.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is not a config.
  """
  path = run_dir / FILE
  if not path.is_file():
    raise FileNotFoundError(
      f'{path}: no such file; name a directory that `dreamer4 train` or '
      '`dreamer4 quickstart` has written'
    )
  try:
    return Config.from_json(path.read_text())
  except (ValueError, msgspec.MsgspecError) as error:
    raise ValueError(f'{path}: {error}') from error
