"""Weights of a phase as safetensors, for other programs.

A directory holds `model.safetensors`, with one tensor for each parameter, named
`module/.../parameter`, and `config.json`, which is enough to rebuild the
modules. Arrays are stored as they are, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import os
import pathlib
import stat
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dreamer4_jax.config import Config

WEIGHTS, CONFIG = 'model.safetensors', 'config.json'


def save(
  out: str | pathlib.Path,
  params: Mapping[str, Any],
  config: Config,
  *,
  overwrite: bool = False,
) -> pathlib.Path:
  """Writes parameters and config to a directory.

  Args:
    out: the directory, created if needed.
    params: nested dictionaries of arrays by module, as `load_params` returns
      them.
    config: of the run.
    overwrite: replace existing weights.

  Returns:
    The path of the weights.

  Raises:
    FileExistsError: there are weights or a config, and `overwrite` is false.
  """
  out = pathlib.Path(out)
  path = out / WEIGHTS
  found = [p for p in (path, out / CONFIG) if p.exists()]
  if found and not overwrite:
    raise FileExistsError(
      f'{found[0]}: exists; pass overwrite=True (--overwrite) to replace it, '
      'or choose another directory'
    )
  out.mkdir(parents=True, exist_ok=True)
  flat = {k: np.asarray(v, order='C') for k, v in _flatten(params)}
  new = [out / f'{name}.tmp' for name in (WEIGHTS, CONFIG)]
  save_file(flat, new[0], metadata={'format': 'dreamer4_jax'})
  new[1].write_text(config.to_json())
  # safetensors may write a private file; others may read weights as well.
  new[0].chmod(stat.S_IMODE(new[1].stat().st_mode))
  for part, name in zip(new, (WEIGHTS, CONFIG), strict=True):
    os.replace(part, out / name)
  return path


def load(directory: str | pathlib.Path) -> tuple[dict[str, Any], Config]:
  """Reads what `save` wrote.

  Returns:
    The parameters as nested dictionaries of numpy arrays, and the config.

  Raises:
    FileNotFoundError: there are no exported weights.
    ValueError: a file is damaged.
  """
  directory = pathlib.Path(directory)
  for name in (WEIGHTS, CONFIG):
    if not (directory / name).exists():
      raise FileNotFoundError(
        f'{directory}: no {name} there; make it with `dreamer4 export`'
      )
  try:
    flat = load_file(directory / WEIGHTS)
  except (SafetensorError, OSError, ValueError) as error:
    raise ValueError(
      f'{directory / WEIGHTS}: damaged ({str(error)[:200]}); export it again'
    ) from error
  params: dict[str, Any] = {}
  for name, value in flat.items():
    *groups, last = name.split('/')
    node = params
    for group in groups:
      node = node.setdefault(group, {})
    node[last] = value
  path = directory / CONFIG
  try:
    return params, Config.from_json(path.read_text())
  except (ValueError, msgspec.MsgspecError) as error:
    raise ValueError(f'{path}: {error}') from error


def _flatten(
  tree: Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f'{prefix}{name}/')
    else:
      yield prefix + name, value
