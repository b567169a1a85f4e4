"""Every quirk of the recorder, on lines written in its format."""

import json
import math

import numpy as np
import pytest

from data_pipelines import vpt_actions as lib
from dreamer4_jax.config import Config


def line(**changes):
  """A line in the recorder's format, on which nothing happens."""
  mouse = {
    'x': 640.0, 'y': 360.0, 'dx': 0.0, 'dy': 0.0, 'scaledX': 0.0,
    'scaledY': 0.0, 'dwheel': 0.0, 'buttons': [], 'newButtons': [],
  }  # fmt: skip
  mouse |= {k: changes.pop(k) for k in list(changes) if k in mouse}
  data = {
    'mouse': mouse,
    'keyboard': {'keys': changes.pop('keys', []), 'newKeys': [], 'chars': ''},
    'isGuiOpen': False,
    'isGuiInventory': False,
    'hotbar': 0,
    'yaw': 0.0,
    'pitch': 0.0,
    'xpos': 0.0,
    'ypos': 64.0,
    'zpos': 0.0,
    'tick': 1,
    'milli': 50.0,
    'inventory': [{'type': 'dirt', 'quantity': 3}],
    'stats': {},
  }
  return json.dumps({**data, **changes})


def down(recording, t):
  """Names of the buttons that are down on frame t."""
  return {lib.BUTTONS[i] for i in np.flatnonzero(recording.buttons[t])}


def test_the_buttons_are_the_published_ones():
  assert len(lib.BUTTONS) == 23 and sorted(lib.BUTTONS) == list(lib.BUTTONS)
  assert len(lib.TASKS) == 20


def oracle_bin(pixels):
  """The published formula in float64, written out."""
  x = min(max(pixels * 360 / 2400, -10), 10)
  v = math.copysign(1, x) * math.log(1 + 10 * abs(x) / 10) / math.log(11) * 10
  return round((v + 10) / 2)


def test_every_pixel_value_is_binned_as_published():
  values = np.arange(-200, 201)
  dx, dy = (a.ravel() for a in np.meshgrid(values, values))
  found = lib.camera_classes(np.stack([dx, dy], axis=-1))
  bins = {int(v): oracle_bin(float(v)) for v in values}
  expected = [
    bins[int(y)] * 11 + bins[int(x)] for x, y in zip(dx, dy, strict=True)
  ]
  np.testing.assert_array_equal(found, expected)
  assert set(found.tolist()) == set(range(121))


def test_the_centres_are_the_published_ones_and_come_back():
  degrees = lib.camera_degrees(np.arange(121))
  yaw = degrees[:11, 0]
  expected = [-10, -5.810, -3.215, -1.609, -0.615, 0, 0.615, 1.609, 3.215]
  np.testing.assert_allclose(yaw, [*expected, 5.810, 10], atol=1e-3)
  np.testing.assert_array_equal(degrees[::11, 1], yaw)
  pixels = degrees / (360 / 2400)
  np.testing.assert_array_equal(lib.camera_classes(pixels), np.arange(121))


def test_still_is_60_and_axes_are_not_swapped():
  r = lib.read_lines(
    [line(), line(dx=200.0), line(dy=200.0), line(dx=-200.0, dy=-200.0)]
  )
  assert r.camera.tolist() == [60, 65, 115, 0]


def test_small_motion_is_not_truncated_to_whole_degrees():
  # 3 pixels are 0.45 degrees: 0 as an integer, bin 6 as a float.
  assert oracle_bin(3.0) == 6
  assert lib.read_lines([line(dx=3.0)]).camera.tolist() == [5 * 11 + 6]


@pytest.mark.parametrize(
  ('key', 'name'),
  [
    ('key.keyboard.w', 'forward'),
    ('key.keyboard.a', 'left'),
    ('key.keyboard.s', 'back'),
    ('key.keyboard.d', 'right'),
    ('key.keyboard.space', 'jump'),
    ('key.keyboard.left.shift', 'sneak'),
    ('key.keyboard.left.control', 'sprint'),
    ('key.keyboard.q', 'drop'),
    ('key.keyboard.e', 'inventory'),
    ('key.keyboard.f', 'swapHands'),
    ('key.keyboard.escape', 'ESC'),
    *((f'key.keyboard.{i}', f'hotbar.{i}') for i in range(1, 10)),
  ],
)
def test_keys_are_named(key, name):
  assert down(lib.read_lines([line(keys=[key])]), 0) == {name}


def test_other_keys_are_no_action():
  r = lib.read_lines([line(keys=['key.keyboard.f3', 'key.keyboard.0'])])
  assert not down(r, 0) and r.known[0]


def test_mouse_buttons_are_named():
  r = lib.read_lines([line(buttons=[0, 2]), line(buttons=[1, 5])])
  assert down(r, 0) == {'attack', 'pickItem'} and down(r, 1) == {'use'}


def test_a_stuck_attack_is_ignored_until_it_is_pressed_anew():
  held = {'buttons': [0]}
  r = lib.read_lines(
    [
      line(**held, newButtons=[0]),
      line(**held),
      line(buttons=[0, 1]),
      line(**held, newButtons=[0]),
      line(**held),
    ]
  )
  attack = [('attack' in down(r, t)) for t in range(5)]
  assert attack == [False, False, False, True, True]
  assert down(r, 2) == {'use'}


def test_an_attack_that_begins_later_is_not_stuck():
  r = lib.read_lines([line(), line(buttons=[0], newButtons=[0])])
  assert down(r, 1) == {'attack'}
  # Two buttons at once on the first line are no stuck attack either.
  r = lib.read_lines([line(buttons=[0, 1], newButtons=[0, 1])])
  assert down(r, 0) == {'attack', 'use'}


def test_scrolling_is_a_press_of_the_slot_arrived_at():
  r = lib.read_lines([line(hotbar=n) for n in (3, 3, 8, 0, 0)])
  assert [down(r, t) for t in range(5)] == [
    set(), set(), {'hotbar.9'}, {'hotbar.1'}, set(),
  ]  # fmt: skip


def test_recordings_without_hotbar_have_no_such_press():
  lines = [json.loads(line(keys=['key.keyboard.2'])) for _ in range(2)]
  for data in lines:
    del data['hotbar']
  r = lib.read_lines([json.dumps(d) for d in lines])
  assert down(r, 0) == down(r, 1) == {'hotbar.2'}


def test_escape_with_a_gui_open_acts_as_inventory():
  keys = ['key.keyboard.escape']
  r = lib.read_lines([line(keys=keys), line(keys=keys, isGuiOpen=True)])
  assert down(r, 0) == {'ESC'} and down(r, 1) == {'inventory'}


@pytest.mark.parametrize(
  ('subset', 'scale'),
  [('5.7', 0.5), ('5.8', 0.5), ('6.7', 2), ('6.8', 2), ('6.9', 2), ('', 1),
   ('6.13', 1)],
)  # fmt: skip
def test_mouse_motion_in_a_gui_is_scaled_by_subset(subset, scale):
  lines = [line(dx=8.0), line(dx=8.0, isGuiOpen=True)]
  r = lib.read_lines(lines, subset=subset)
  # 8, 4 and 16 pixels fall into bins 7, 6 and 7 or 8: see the oracle.
  assert r.camera.tolist() == [
    5 * 11 + oracle_bin(8.0), 5 * 11 + oracle_bin(8.0 * scale),
  ]  # fmt: skip


def test_the_scales_make_a_difference():
  assert len({oracle_bin(8.0 * s) for s in (0.5, 1, 2)}) == 3


def test_the_pointer_is_there_while_a_gui_is_open():
  r = lib.read_lines([line(x=5.0, y=7.0), line(x=9.0, y=8.0, isGuiOpen=True)])
  assert np.isnan(r.cursor[0]).all() and r.cursor[1].tolist() == [9, 8]


COUNTERS = {
  'mine_log': 'mine_block:minecraft.dark_oak_log',
  'mine_cobblestone': 'mine_block:minecraft.stone',
  'mine_iron_ore': 'mine_block:minecraft.iron_ore',
  'mine_coal': 'mine_block:minecraft.coal_ore',
  'mine_diamond': 'mine_block:minecraft.diamond_ore',
  'craft_planks': 'craft_item:minecraft.birch_planks',
  'craft_iron_ingot': 'craft_item:minecraft.iron_ingot',
  'open_furnace': 'custom:minecraft.interact_with_furnace',
  'place_crafting_table': 'use_item:minecraft.crafting_table',
  'use_iron_pickaxe': 'use_item:minecraft.iron_pickaxe',
}


@pytest.mark.parametrize('task', COUNTERS)
def test_a_task_is_done_when_its_counter_grows(task):
  name = f'minecraft.{COUNTERS[task]}'
  other = {'minecraft.use_item:minecraft.dirt': 5}
  r = lib.read_lines(
    [
      line(stats={name: 2}),
      line(stats={name: 2, **other}),
      line(stats={name: 3}),
      line(stats={}),
      line(stats={name: 3}),
      line(stats={name: 5}),
    ]
  )
  expected = np.zeros((6, 20), bool)
  # Seen on lines 2 and 5: earned by the actions of the lines before.
  expected[[1, 4], lib.TASKS.index(task)] = True
  np.testing.assert_array_equal(r.events, expected)


def test_the_first_increment_of_a_counter_counts():
  r = lib.read_lines(
    [line(), line(stats={'minecraft.mine_block:minecraft.coal_ore': 1})]
  )
  assert r.events[0].sum() == 1 and not r.events[1].any()


def test_null_frames_stay():
  r = lib.read_lines([line()] * 5)
  assert r.known.all() and not r.buttons.any() and len(r.known) == 5


@pytest.mark.parametrize(
  'bad',
  [
    '{"mouse": ',
    '',
    '[]',
    'null',
    b'\xff\xfe\x00',
    line(dx='far'),
    line(dx=float('nan')),
    line(buttons=None),
    line(keys=7),
    line(hotbar=12),
    line(isGuiOpen='no'),
    line(stats={'a': 'many'}),
    json.dumps({'keyboard': {'keys': []}}),
  ],
)
def test_a_line_that_cannot_be_read_is_an_unknown_action(bad):
  good = line(keys=['key.keyboard.w'], hotbar=4)
  r = lib.read_lines([good, bad, good])
  assert r.known.tolist() == [True, False, True] and r.broken == 1
  assert not r.buttons[1].any() and r.camera[1] == 60
  assert down(r, 0) == down(r, 2) == {'forward'}


def test_the_prompt_ends_with_diamonds():
  prompt = lib.prompt()
  assert len(prompt) == 25
  stages = Config(tasks=lib.TASKS, prompt=prompt).stages()
  assert stages[0] == (lib.TASKS.index('mine_log'), 10)
  assert stages[-1][0] == lib.TASKS.index('mine_diamond')
