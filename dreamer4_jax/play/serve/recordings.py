"""What players keep: a film, and the actions that made it."""

from __future__ import annotations

import pathlib
import re
import secrets

import numpy as np

from dreamer4_jax.config import require
from dreamer4_jax.play.serve import pictures
from dreamer4_jax.play.serve.timeline import Film

MOST = 200
"""Recordings that a server makes."""
_NAME = re.compile(r'[0-9a-f]{16}\.(mp4|npz)')


class Recordings:
  """Files in one folder, under names that the server makes.

  Only what this object has written can be read by `find`.
  """

  def __init__(self, folder: str | pathlib.Path):
    """Names the folder, which the first recording makes."""
    self._folder = pathlib.Path(folder)
    self._ids: set[str] = set()

  def save(self, film: Film) -> str:
    """Writes `ID.mp4` and `ID.npz`; returns the id.

    The archive has a row for each frame of the film: `frame` its number,
    `action.NAME` the components that led to it, `known` whether they did (no
    action leads to the frame a dream begins with), `steps`, `level`, `task`,
    `by`, `reward`, `value`, `cont`; and `start`, `seed` and `rate`.

    Raises:
      ValueError: there are `MOST` already.
      OSError: they cannot be written.
    """
    require(
      len(self._ids) < MOST,
      'recordings',
      len(self._ids),
      'this server makes no more; start it anew',
    )
    self._folder.mkdir(parents=True, exist_ok=True)
    id = secrets.token_hex(8)
    shown = [own for _, own in film.frames]
    pictures.write_film(
      self._folder / f'{id}.mp4', [own.picture for own in shown], film.rate
    )
    np.savez_compressed(self._folder / f'{id}.npz', **_rows(film))
    self._ids.add(id)
    return id

  def find(self, name: str) -> pathlib.Path | None:
    """Returns the path of a file that was saved; None for any other name."""
    known = _NAME.fullmatch(name) and name.partition('.')[0] in self._ids
    return self._folder / name if known else None


def _rows(film: Film) -> dict[str, np.ndarray]:
  shown = [own for _, own in film.frames]
  asks = [own.ask for own in shown]
  acted = next((ask for ask in asks if ask), None)
  rows = {
    'frame': [number for number, _ in film.frames],
    'known': [ask is not None for ask in asks],
    'by': [own.by for own in shown],
    **{
      k: [getattr(own, k) for own in shown] for k in ('reward', 'value', 'cont')
    },
    **{
      k: [getattr(ask or acted, k, 0) for ask in asks]
      for k in ('steps', 'level', 'task')
    },
  }
  for name, x in (acted.action if acted else {}).items():
    none = np.zeros_like(x)
    rows[f'action.{name}'] = [ask.action[name] if ask else none for ask in asks]
  rows |= {'start': film.start, 'seed': film.seed, 'rate': film.rate}
  return {name: np.asarray(x) for name, x in rows.items()}
