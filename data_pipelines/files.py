"""Files in folders, also in those that are reached by a link."""

from __future__ import annotations

from collections.abc import Sequence
import os
import pathlib

VIDEO_ENDINGS = (
  *('.3gp', '.avi', '.flv', '.gif', '.m2ts', '.m4v', '.mkv', '.mov', '.mp4'),
  *('.mpeg', '.mpg', '.mts', '.ogv', '.ts', '.webm', '.wmv'),
)
"""Endings of files that are probably videos."""


def find(
  root: pathlib.Path, endings: Sequence[str]
) -> list[tuple[str, pathlib.Path]]:
  """Returns name and path of the files below a folder, in order of name.

  Links are followed, but no folder is entered twice. A link that leads nowhere
  is a file like others, so that whoever reads it can say so.

  Args:
    root: the folder.
    endings: of the files, in small letters.
  """
  found, entered = [], {os.path.realpath(root)}
  for folder, below, names in os.walk(root, followlinks=True):
    for name in list(below):
      real = os.path.realpath(os.path.join(folder, name))
      if real in entered:
        below.remove(name)
      entered.add(real)
    below.sort()
    for name in names:
      path = pathlib.Path(folder, name)
      is_file = path.is_file() or (path.is_symlink() and not path.exists())
      if is_file and name.lower().endswith(tuple(endings)):
        found.append((str(path.relative_to(root)), path))
  return sorted(found)


def stamp(path: str) -> tuple[int, int]:
  """Returns a file's time in nanoseconds and size; zeros if there is none."""
  try:
    status = os.stat(path)
  except OSError:
    return 0, 0
  return status.st_mtime_ns, status.st_size
