"""How a config refuses a value."""

from __future__ import annotations

from typing import Any


def require(ok: bool, field: str, value: Any, remedy: str) -> None:
  """Raises `ValueError` with a full sentence unless `ok`."""
  if not ok:
    raise ValueError(f'{field} = {value!r}: {remedy}')


def at_least(least: int, config: Any, *names: str) -> None:
  """Requires these fields of a config to be `least` or more."""
  for name in names:
    value = getattr(config, name)
    field = f'{type(config).__name__}.{name}'
    require(value >= least, field, value, f'must be at least {least}')


def shares(config: Any, *names: str) -> None:
  """Requires these fields of a config to lie between 0 and 1."""
  for name in names:
    value = getattr(config, name)
    field = f'{type(config).__name__}.{name}'
    require(0 <= value <= 1, field, value, 'must lie in [0, 1]')


def is_power_of_two(n: int) -> bool:
  """Whether n is 1, 2, 4, 8, ..."""
  return n > 0 and n & (n - 1) == 0
