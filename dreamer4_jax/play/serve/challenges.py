"""What to try in a dream, and how the picture shows that it is done.

A challenge begins where a recording was, and has stages that are passed in
order: "the table is in front of me", then "it is out of sight", then "there it
is again". A stage says what is seen on tiles of the picture, so that anybody
can check it by eye; nothing else is asked, least of all a head of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import fnmatch
import json
import pathlib
from typing import Any

import numpy as np

from dreamer4_jax.config import require
from dreamer4_jax.envs import Palette, Tiles

FILE, TILES = 'challenges.json', 'tiles.npz'
ANY, NONE = 'any', 'none'
"""Places of a stage: some tile is so, or no tile is."""
MOST_KEYS = 10_000
Place = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Challenge:
  """Something to try.

  Attributes:
    name: what to do, for people.
    stages: by row and column, `'3,4'`, or by `any` or `none`, the name of what
      is seen there, a pattern as of `fnmatch`; `a|b` for either. All of a stage
      has to be seen in one picture.
    start: number of the clip that it begins with.
    clip: of the held-out split, the episode and the frame that the clip ends
      with.
    keys: played to show that it can be done: for each frame the labels of what
      is held, joined by `+`; empty for nothing. One of them may be repeated by
      `label*3`.
    seed: that they were found with.
  """

  name: str
  stages: tuple[Mapping[str, str], ...]
  start: int = 0
  clip: Place | None = None
  keys: tuple[str, ...] = ()
  seed: int = 0

  def __post_init__(self):
    require(bool(self.name), 'challenge.name', self.name, 'must not be empty')
    require(
      bool(self.stages) and all(self.stages),
      f'{self.name}: stages',
      self.stages,
      'must be at least one, with something to be seen in each',
    )
    for stage in self.stages:
      for place in stage:
        numbers = place.split(',')
        require(
          place in (ANY, NONE)
          or (len(numbers) == 2 and all(n.isdigit() for n in numbers)),
          f'{self.name}: stages',
          place,
          f'must be ROW,COLUMN of a tile, {ANY} or {NONE}',
        )
    require(
      self.clip is None
      or (len(self.clip) == 2 and all(type(n) is int for n in self.clip)),
      f'{self.name}: clip',
      self.clip,
      'must be the number of an episode, and of a frame of it',
    )
    require(
      len(self.held) <= MOST_KEYS,
      f'{self.name}: keys',
      len(self.held),
      f'must be at most {MOST_KEYS}',
    )

  @property
  def held(self) -> list[list[str]]:
    """Labels of what is held, for each frame."""
    frames: list[list[str]] = []
    for key in self.keys:
      labels, _, times = key.partition('*')
      require(
        not times or times.isdigit(),
        f'{self.name}: keys',
        key,
        'must be LABEL, or LABEL*TIMES',
      )
      one = [label for label in labels.split('+') if label]
      frames += [one] * int(times or 1)
    return frames


@dataclasses.dataclass(frozen=True, eq=False)
class Challenges:
  """The challenges of a world, and its tiles."""

  all: tuple[Challenge, ...]
  palette: Palette

  def __post_init__(self):
    for own in self.all:
      for stage in own.stages:
        for seen in stage.values():
          known = all(self._named(part).any() for part in seen.split('|'))
          require(
            known, f'{own.name}: stages', seen, f'must be of {[*self.names]}'
          )

  @property
  def names(self) -> tuple[str, ...]:
    """Names of tiles."""
    return self.palette.tiles.names

  def advance(self, index: int, stage: int, frame: np.ndarray) -> int:
    """Looks whether a picture passes the stage that is next.

    Args:
      index: of the challenge.
      stage: how many are passed already.
      frame: `[H, W, C]` uint8.

    Returns:
      How many are passed now: at most one more.
    """
    stages = self.all[index].stages
    if stage >= len(stages):
      return stage
    return stage + self.shows(frame, stages[stage])

  def shows(self, frame: np.ndarray, stage: Mapping[str, str]) -> bool:
    """Returns whether all that a stage says is seen in `[H, W, C]` uint8.

    Raises:
      ValueError: the picture has no such tile.
    """
    numbers = self.palette.read(frame)
    for place, seen in stage.items():
      parts = [self._named(part)[numbers] for part in seen.split('|')]
      there = np.any(parts, axis=0)
      if place in (ANY, NONE):
        holds = there.any() == (place == ANY)
      else:
        row, column = map(int, place.split(','))
        rows, columns = there.shape
        require(
          row < rows and column < columns,
          'stages',
          place,
          f'the picture has {rows} rows and {columns} columns of tiles',
        )
        holds = there[row, column]
      if not holds:
        return False
    return True

  def read(self, frame: np.ndarray) -> list[list[str]]:
    """Returns the names of all tiles of `[H, W, C]` uint8, row by row."""
    return [[self.names[i] for i in row] for row in self.palette.read(frame)]

  def _named(self, pattern: str) -> np.ndarray:
    """`[n]` bool, the tiles of a name."""
    fits = [fnmatch.fnmatchcase(name, pattern) for name in self.names]
    return np.asarray(fits, bool)


def read_challenges(path: pathlib.Path, tiles: Tiles) -> Challenges:
  """Reads challenges from a JSON file, a list of objects as `Challenge` has it.

  Args:
    path: of the file.
    tiles: of the world, with pictures.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not such a list; the message names what is wrong.
  """
  try:
    plain = json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: is not JSON ({error})') from error
  require(isinstance(plain, list), str(path), type(plain), 'must be a list')
  made = tuple(_challenge(path, own) for own in plain)
  return Challenges(made, Palette(tiles, tiles.pictures))


def _challenge(path: pathlib.Path, plain: Any) -> Challenge:
  names = [field.name for field in dataclasses.fields(Challenge)]
  known = isinstance(plain, dict) and {*plain} <= {*names}
  require(known, str(path), plain, f'must be an object of {names}')
  tuples = ('stages', 'clip', 'keys')
  given = {k: tuple(v) if k in tuples and v is not None else v
           for k, v in plain.items()}  # fmt: skip
  try:
    return Challenge(**given)
  except (TypeError, AttributeError) as error:
    raise ValueError(f'{path}: {plain}: {error}') from error


def load_packaged(where: pathlib.Path) -> Challenges | None:
  """Reads the challenges of a package; None if it has none."""
  if not (where / FILE).exists():
    return None
  with np.load(where / TILES) as file:
    tiles = Tiles(
      side=int(file['side']),
      pictures=file['pictures'],
      names=tuple(map(str, file['names'])),
    )
  return read_challenges(where / FILE, tiles)


def save_packaged(where: pathlib.Path, challenges: Challenges) -> None:
  """Writes challenges into the directory of a package."""
  plain = [dataclasses.asdict(own) for own in challenges.all]
  (where / FILE).write_text(json.dumps(plain, indent=1) + '\n')
  tiles = challenges.palette.tiles
  np.savez_compressed(
    where / TILES,
    side=tiles.side,
    pictures=tiles.pictures,
    names=np.asarray(tiles.names),
  )
