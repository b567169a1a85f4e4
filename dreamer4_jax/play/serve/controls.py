"""What a person plays with: keys, a pointer and sliders for an action space.

Controls follow from the components and the names of their classes. What is held
becomes an action; which components a person has hold of decides what is left to
the policy when both play.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
import string
from typing import Any, Literal

import numpy as np

from dreamer4_jax.config import ActionComponent, require
from dreamer4_jax.models.actions import ActionSpace

Kind = Literal['keys', 'pointer', 'sliders']
_IDLE = ('noop', 'no-op', 'no_op', 'none', 'nothing', 'idle', 'stay')
_USUAL = {
  'ArrowLeft': ('left', 'west'),
  'ArrowRight': ('right', 'east'),
  'ArrowUp': ('up', 'forward', 'north'),
  'ArrowDown': ('down', 'back', 'backward', 'south'),
  ' ': ('jump', 'do', 'fire', 'attack', 'interact', 'use', 'toggle'),
}
_LOOK = {'left': 'j', 'right': 'l', 'up': 'i', 'down': 'k'}
_POINTED = ('camera', 'look', 'mouse')
_KEYS = string.ascii_lowercase + string.digits


@dataclasses.dataclass(frozen=True)
class Control:
  """A key or button: a class, a bit, or a direction of a pointer.

  Attributes:
    id: what the page calls it, `component:index`.
    part: name of the component.
    index: class or bit; 0..3 for left, right, up, down of a pointer.
    label: for people.
    key: `KeyboardEvent.key` of the page, empty for a button only.
  """

  id: str
  part: str
  index: int
  label: str
  key: str


@dataclasses.dataclass(frozen=True)
class Panel:
  """How one component is played.

  Attributes:
    part: the component.
    kind: `keys`, `pointer` or `sliders`.
    controls: keys and buttons; none with sliders.
    idle: class that does nothing; None if a categorical component has none.
    labels: of classes, bits or dimensions.
  """

  part: ActionComponent
  kind: Kind
  controls: tuple[Control, ...]
  idle: int | None
  labels: tuple[str, ...]

  def plain(self) -> dict[str, Any]:
    """Returns what the page needs, as JSON."""
    return {
      'part': self.part.name,
      'kind': self.kind,
      'type': self.part.kind,
      'low': self.part.low,
      'high': self.part.high,
      'size': self.part.size,
      'labels': self.labels,
      'controls': [dataclasses.asdict(c) for c in self.controls],
    }


def make_panels(
  space: ActionSpace, labels: Mapping[str, Sequence[str]]
) -> tuple[Panel, ...]:
  """Lays out controls for an action space.

  Args:
    space: the components.
    labels: names of classes, bits or dimensions by component; missing ones are
      numbered.

  Raises:
    ValueError: a component has another number of names than it has classes.
  """
  free = [*_KEYS]
  taken: set[str] = set()
  panels = []
  for part in space:
    names = tuple(labels.get(part.name) or map(str, range(part.size)))
    require(
      len(names) == part.size,
      f'labels[{part.name}]',
      len(names),
      f'must name each of {part.size}',
    )
    panels.append(_panel(part, names, taken, free))
  return tuple(panels)


def _panel(
  part: ActionComponent, names: tuple[str, ...], taken: set, free: list
) -> Panel:
  pointed = any(word in part.name.lower() for word in _POINTED)
  if pointed and _is_plane(part):
    controls = tuple(
      Control(f'{part.name}:{i}', part.name, i, f'look {where}', key)
      for i, (where, key) in enumerate(_LOOK.items())
    )
    taken.update(c.key for c in controls)
    idle = part.size // 2 if part.kind == 'categorical' else None
    return Panel(part, 'pointer', controls, idle, names)
  if part.kind == 'continuous':
    return Panel(part, 'sliders', (), None, names)
  idle = None
  if part.kind == 'categorical':
    known = (i for i, name in enumerate(names) if name.lower() in _IDLE)
    idle = next(known, None)
  chosen = {i: '' for i in range(part.size) if i != idle}
  for i in chosen:  # What everybody expects comes first.
    words = names[i].lower().replace('_', ' ').replace('.', ' ').split()
    usual = (k for k, known in _USUAL.items() if {*words} & {*known})
    chosen[i] = next((k for k in usual if k not in taken), '')
    taken.add(chosen[i])
  for i in chosen:
    letters = names[i].lower().replace('_', '')
    last = letters[-1:] if letters[-1:].isdigit() else ''
    wanted = (k for k in (*last, *letters, *free) if k in _KEYS)
    chosen[i] = chosen[i] or next((k for k in wanted if k not in taken), '')
    taken.add(chosen[i])
  controls = tuple(
    Control(f'{part.name}:{i}', part.name, i, names[i].replace('_', ' '), key)
    for i, key in chosen.items()
  )
  return Panel(part, 'keys', controls, idle, names)


def _is_plane(part: ActionComponent) -> bool:
  """Whether it has two directions, as numbers or as classes of a grid."""
  if part.kind == 'continuous':
    return part.size == 2
  side = math.isqrt(part.size)
  return part.kind == 'categorical' and side**2 == part.size and side % 2 == 1


class Hands:
  """What a person holds."""

  def __init__(self, panels: Sequence[Panel]):
    self.panels = {panel.part.name: panel for panel in panels}
    self.controls = {c.id: c for panel in panels for c in panel.controls}
    self._held: dict[str, None] = {}  # In the order of pressing.
    self._tapped: dict[str, None] = {}
    self._axes: dict[str, list[float]] = {}
    self._moved: dict[str, list[float]] = {}

  @property
  def tapped(self) -> bool:
    """Whether something was pressed that no frame has seen yet."""
    return bool(self._tapped) or any(map(any, self._moved.values()))

  @property
  def held(self) -> list[str]:
    """Ids of the controls that are held."""
    return [*self._held]

  def press(self, control: str) -> None:
    """Holds a control. However short, the next frame sees it."""
    if control in self._held:  # The page's key repeats.
      return
    self._held[control] = self._tapped[control] = None

  def release(self, control: str) -> None:
    """Lets go of a control."""
    self._held.pop(control, None)

  def release_all(self) -> None:
    """Lets go of everything, sliders included; what was tapped is void."""
    for held in (self._held, self._tapped, self._axes, self._moved):
      held.clear()

  def steer(self, part: str, values: Sequence[float]) -> None:
    """Sets sliders, which stay."""
    self._axes[part] = [float(x) for x in values]

  def move(self, part: str, x: float, y: float) -> None:
    """Moves a pointer, in shares of what a frame can turn, -1..1."""
    now = self._moved.get(part, [0.0, 0.0])
    self._moved[part] = [
      max(-1.0, min(1.0, a + b)) for a, b in zip(now, (x, y), strict=True)
    ]

  def waits(self) -> bool:
    """Whether there is no action: some component has no class for nothing."""
    return any(
      panel.idle is None
      and panel.part.kind == 'categorical'
      and not self._active(name)
      for name, panel in self.panels.items()
    )

  def action(self) -> tuple[dict[str, np.ndarray], dict[str, bool]]:
    """Returns components `[...]`, and which of them a person has hold of."""
    values, touched = {}, {}
    for name, panel in self.panels.items():
      active = self._active(name)
      pointed = panel.kind == 'pointer'
      make = self._pointed if pointed else self._of_keys
      if panel.kind == 'sliders':
        middle = min(max(0.0, panel.part.low), panel.part.high)
        rest = [middle] * panel.part.size
        values[name] = np.asarray(self._axes.get(name, rest), np.float32)
        touched[name] = name in self._axes
      else:
        values[name], touched[name] = make(panel, active), bool(active)
      if pointed and any(self._moved.get(name, ())):
        touched[name] = True
    return values, touched

  def consume(self) -> None:
    """A frame has seen it: taps and movements are over."""
    self._tapped.clear()
    self._moved.clear()

  def _active(self, part: str) -> list[int]:
    """Indices held or tapped, the latest last."""
    ids = {**self._held, **self._tapped}
    return [c.index for c in map(self.controls.get, ids) if c.part == part]

  def _of_keys(self, panel: Panel, active: list[int]) -> np.ndarray:
    if panel.part.kind == 'categorical':
      return np.int32(active[-1] if active else panel.idle or 0)
    bits = np.zeros(panel.part.size, np.int32)
    bits[active] = 1
    return bits

  def _pointed(self, panel: Panel, active: list[int]) -> np.ndarray:
    x, y = self._moved.get(panel.part.name, (0.0, 0.0))
    x += 0.5 * ((1 in active) - (0 in active))
    y += 0.5 * ((3 in active) - (2 in active))
    share = np.clip(np.asarray([x, y]), -1, 1)
    if panel.part.kind == 'continuous':
      low, high = panel.part.low, panel.part.high
      middle = min(max(0.0, low), high)
      ends = np.where(share < 0, middle - low, high - middle)
      return (middle + share * ends).astype(np.float32)
    half = math.isqrt(panel.part.size) // 2
    column, row = np.round(share * half).astype(int) + half
    return np.int32(row * (2 * half + 1) + column)
