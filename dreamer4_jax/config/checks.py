"""How a config refuses a value."""

from __future__ import annotations

from typing import Any


def require(ok: bool, field: str, value: Any, remedy: str) -> None:
  """Raises `ValueError` with a full sentence unless `ok`."""
  if not ok:
    raise ValueError(f'{field} = {value!r}: {remedy}')


def is_power_of_two(n: int) -> bool:
  """Whether n is 1, 2, 4, 8, ..."""
  return n > 0 and n & (n - 1) == 0
