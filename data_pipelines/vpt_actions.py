"""Actions of the Minecraft contractor recordings (VPT), line by line.

Source: the recordings of Baker et al., "Video PreTraining" (arXiv 2206.11795),
and the loader published with them, whose quirks are followed except for one: it
truncates camera angles to whole degrees; here they stay float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
import json
import math
import re
from typing import Any

import numpy as np

from dreamer4_jax.config import ActionComponent

BUTTONS = (
  'ESC', 'attack', 'back', 'drop', 'forward',
  *(f'hotbar.{i}' for i in range(1, 10)),
  'inventory', 'jump', 'left', 'pickItem', 'right', 'sneak', 'sprint',
  'swapHands', 'use',
)  # fmt: skip
"""The 23 binary actions, in the order of the component `buttons`."""
CAMERA_BINS = 11
"""Bins of pitch and of yaw; a class is `pitch * 11 + yaw`, stillness is 60."""
ACTIONS = (
  ActionComponent(name='buttons', kind='binary', size=len(BUTTONS)),
  ActionComponent(name='camera', kind='categorical', size=CAMERA_BINS**2),
)
DEGREES_PER_PIXEL = 360.0 / 2400.0
MAX_DEGREES = 10.0
MU = 10.0
GUI_SCALE = {'5.7': 0.5, '5.8': 0.5, '6.7': 2.0, '6.8': 2.0, '6.9': 2.0}
"""Factor of mouse motion while a GUI is open, by subset; 1 elsewhere."""

_MOUSE = {0: 'attack', 1: 'use', 2: 'pickItem'}
_KEYS = {
  'escape': 'ESC', 's': 'back', 'q': 'drop', 'w': 'forward',
  'e': 'inventory', 'space': 'jump', 'a': 'left', 'd': 'right',
  'left.shift': 'sneak', 'left.control': 'sprint', 'f': 'swapHands',
  **{str(i): f'hotbar.{i}' for i in range(1, 10)},
}  # fmt: skip
_KEY_PREFIX = 'key.keyboard.'
_BIT = {name: i for i, name in enumerate(BUTTONS)}

_LOGS = r'mine_block:minecraft\.\w+_log'
_EVENTS = {
  'mine_log': _LOGS,
  'mine_cobblestone': r'mine_block:minecraft\.(stone|cobblestone)',
  'mine_iron_ore': r'mine_block:minecraft\.iron_ore',
  'mine_coal': r'mine_block:minecraft\.coal_ore',
  'mine_diamond': r'mine_block:minecraft\.diamond_ore',
  'craft_planks': r'craft_item:minecraft\.\w+_planks',
  **{
    f'craft_{item}': rf'craft_item:minecraft\.{item}'
    for item in (
      'stick', 'crafting_table', 'furnace', 'iron_ingot', 'wooden_pickaxe',
      'stone_pickaxe', 'iron_pickaxe',
    )
  },
  'open_crafting_table': r'custom:minecraft\.interact_with_crafting_table',
  'open_furnace': r'custom:minecraft\.interact_with_furnace',
  'place_crafting_table': r'use_item:minecraft\.crafting_table',
  'place_furnace': r'use_item:minecraft\.furnace',
  'use_wooden_pickaxe': r'use_item:minecraft\.wooden_pickaxe',
  'use_stone_pickaxe': r'use_item:minecraft\.stone_pickaxe',
  'use_iron_pickaxe': r'use_item:minecraft\.iron_pickaxe',
}  # fmt: skip
TASKS = tuple(_EVENTS)
"""The 20 tasks; the event of one is an increment of a counter in `stats`."""
PROMPT = (
  ('mine_log', 10), ('craft_planks', 20), ('craft_crafting_table', 1),
  ('place_crafting_table', 1), ('craft_stick', 4),
  ('craft_wooden_pickaxe', 1), ('use_wooden_pickaxe', 1),
  ('mine_cobblestone', 3), ('craft_planks', 4), ('craft_crafting_table', 1),
  ('place_crafting_table', 1), ('craft_stick', 4), ('craft_stone_pickaxe', 1),
  ('use_stone_pickaxe', 1), ('mine_iron_ore', 3), ('mine_cobblestone', 8),
  ('craft_planks', 4), ('craft_crafting_table', 1),
  ('place_crafting_table', 1), ('craft_furnace', 1), ('craft_iron_ingot', 3),
  ('craft_stick', 2), ('craft_iron_pickaxe', 1), ('use_iron_pickaxe', 1),
  ('mine_diamond', 1),
)  # fmt: skip
"""Tasks and counts with which an agent is sent for diamonds; the last stage
lasts to the end."""
_PATTERNS = [re.compile(rf'minecraft\.{p}') for p in _EVENTS.values()]


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a recording.

  Attributes:
    buttons: mouse buttons held.
    new_buttons: mouse buttons pressed on this line.
    keys: keys held, as they are called in the file.
    pixels: `(dx, dy)` of the mouse.
    cursor: `(x, y)` of the pointer, on a screen 720 pixels high.
    gui: whether a GUI is open.
    hotbar: slot that is selected, 0 to 8; None in old subsets.
    stats: counters.
  """

  buttons: frozenset[int]
  new_buttons: tuple[int, ...]
  keys: frozenset[str]
  pixels: tuple[float, float]
  cursor: tuple[float, float]
  gui: bool
  hotbar: int | None
  stats: Mapping[str, float]

  @classmethod
  def parse(cls, text: str | bytes) -> Line | None:
    """Reads a line; None if it is not JSON or lacks a field."""
    try:
      data = json.loads(text)
      mouse = data['mouse']
      hotbar = data.get('hotbar')
      line = cls(
        buttons=frozenset(map(int, mouse['buttons'])),
        new_buttons=tuple(map(int, mouse['newButtons'])),
        keys=frozenset(map(str, data['keyboard']['keys'])),
        pixels=(float(mouse['dx']), float(mouse['dy'])),
        cursor=(float(mouse['x']), float(mouse['y'])),
        gui=_flag(data['isGuiOpen']),
        hotbar=None if hotbar is None else int(hotbar),
        stats={str(k): float(v) for k, v in (data.get('stats') or {}).items()},
      )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
      return None
    numbers = (*line.pixels, *line.cursor, *line.stats.values())
    in_range = line.hotbar is None or 0 <= line.hotbar <= 8
    return line if in_range and all(map(math.isfinite, numbers)) else None


def _flag(value: Any) -> bool:
  if not isinstance(value, bool):
    raise TypeError(f'{value!r} is no flag')
  return value


def camera_classes(pixels: np.ndarray) -> np.ndarray:
  """Bins camera motion.

  Degrees, 0.15 a pixel, are clipped to +-10 and foveated by a mu-law:
  `v = sign(x) ln(1 + 10 |x| / 10) / ln(11) * 10`, `bin = round((v + 10) / 2)`.

  Args:
    pixels: `[T, 2]` `(dx, dy)` of the mouse: yaw and pitch, right and down
      positive.

  Returns:
    `[T]` int32 classes `pitch_bin * 11 + yaw_bin`.
  """
  degrees = np.asarray(pixels, np.float32) * np.float32(DEGREES_PER_PIXEL)
  x = np.clip(degrees, -MAX_DEGREES, MAX_DEGREES)
  squeezed = np.log1p(MU * np.abs(x) / MAX_DEGREES) / np.log1p(np.float32(MU))
  v = np.sign(x) * squeezed * MAX_DEGREES
  bins = np.round((v + MAX_DEGREES) / 2).astype(np.int32)
  return bins[..., 1] * CAMERA_BINS + bins[..., 0]


def camera_degrees(classes: np.ndarray) -> np.ndarray:
  """Returns the centre of each class, `[..., 2]` float32 yaw and pitch."""
  classes = np.asarray(classes)
  bins = np.stack([classes % CAMERA_BINS, classes // CAMERA_BINS], axis=-1)
  v = (2.0 * bins - MAX_DEGREES) / MAX_DEGREES
  x = np.sign(v) * np.expm1(np.abs(v) * np.log1p(MU)) / MU * MAX_DEGREES
  return x.astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
  """What the lines of one file say, an entry for each frame.

  Attributes:
    buttons: `[T, 23]` int32.
    camera: `[T]` int32 classes.
    known: `[T]` bool, false where a line could not be read.
    events: `[T, 20]` bool, the task's counter is higher on the *next* line:
      what the action of this line has earned. The last row is false.
    cursor: `[T, 2]` float32 x, y of the pointer on a screen 720 pixels high;
      NaN while no GUI is open.
    broken: how many lines could not be read.
  """

  buttons: np.ndarray
  camera: np.ndarray
  known: np.ndarray
  events: np.ndarray
  cursor: np.ndarray
  broken: int


def read_lines(lines: Iterable[str | bytes], *, subset: str = '') -> Recording:
  """Interprets the lines of a file.

  Args:
    lines: of the file, without empty ones at the end.
    subset: the recorder's version, such as '6.9'; it decides the scale of the
      mouse while a GUI is open.

  Returns:
    The recording; a line that cannot be read has an unknown action, no motion
    and changes nothing.
  """
  parsed = [Line.parse(text) for text in lines]
  count = len(parsed)
  buttons = np.zeros((count, len(BUTTONS)), np.int32)
  pixels = np.zeros((count, 2), np.float32)
  cursor = np.full((count, 2), np.nan, np.float32)
  events = np.zeros((count, len(TASKS)), bool)
  scale = GUI_SCALE.get(subset, 1.0)
  stuck = bool(parsed) and parsed[0] is not None
  stuck = stuck and parsed[0].new_buttons == (0,)
  hotbar: int | None = None
  stats: Mapping[str, float] | None = None
  for t, line in enumerate(parsed):
    if line is None:
      continue
    stuck = stuck and (t == 0 or 0 not in line.new_buttons)
    for name in _pressed(line, stuck):
      buttons[t, _BIT[name]] = 1
    if None not in (hotbar, line.hotbar) and hotbar != line.hotbar:
      buttons[t, _BIT[f'hotbar.{line.hotbar + 1}']] = 1
    hotbar = line.hotbar
    pixels[t] = np.float32(line.pixels) * np.float32(scale if line.gui else 1)
    if line.gui:
      cursor[t] = line.cursor
    if stats is not None:
      events[t - 1] = _grown(stats, line.stats)
    # A counter that a line leaves out keeps its value.
    stats = {**(stats or {}), **line.stats}
  known = np.array([line is not None for line in parsed], bool)
  return Recording(
    buttons=buttons,
    camera=camera_classes(pixels),
    known=known,
    events=events,
    cursor=cursor,
    broken=int((~known).sum()),
  )


def _pressed(line: Line, stuck: bool) -> Iterable[str]:
  """Yields the names of the buttons that are down."""
  for button in line.buttons:
    if button in _MOUSE and not (button == 0 and stuck):
      yield _MOUSE[button]
  for key in line.keys:
    name = _KEYS.get(key.removeprefix(_KEY_PREFIX))
    if name == 'ESC' and line.gui:
      yield 'inventory'  # It closes the GUI, as the inventory key does.
    elif name is not None:
      yield name


def _grown(before: Mapping[str, float], now: Mapping[str, float]) -> np.ndarray:
  """Returns `[20]` bool, which tasks' counters have grown."""
  grown = [k for k, v in now.items() if v > before.get(k, 0)]
  if not grown:
    return np.zeros(len(TASKS), bool)
  return np.array([any(p.fullmatch(k) for k in grown) for p in _PATTERNS])


def prompt() -> tuple[str, ...]:
  """Returns `PROMPT` as TASK:COUNT, for the field `prompt` of a config."""
  return tuple(f'{task}:{count}' for task, count in PROMPT)
