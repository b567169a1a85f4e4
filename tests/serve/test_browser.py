"""The page in real browsers, by keyboard alone."""

import re

import pytest

pytest.importorskip('fastapi')
pytest.importorskip('uvicorn')
pytest.importorskip('websockets')

import av
import numpy as np

from dreamer4_jax.play.serve import controls
from dreamer4_jax.play.serve.server import Server
from tests.serve.browsers import BROWSERS
from tests.serve.games import challenged_game
from tests.serve.serving import serving, until

NUMBER = 'window.dream?.view.number ?? -1'
PIXELS = """Array.from(document.getElementById('dream').getContext('2d')
  .getImageData(0, 0, 12, 20).data)"""
FOCUS = 'document.activeElement.id || document.activeElement.tagName'


@pytest.fixture(scope='module')
def core(tmp_path_factory):
  patch = pytest.MonkeyPatch()
  patch.setattr(Server, '_compile_rest', lambda self: None)
  folder = tmp_path_factory.mktemp('films')
  with serving(folder, challenged_game(stages=1), players=2) as core:
    yield core
  patch.undo()


@pytest.fixture(scope='module', params=BROWSERS)
def browser(request):
  browser = BROWSERS[request.param]()
  yield browser
  browser.close()


@pytest.fixture
def page(browser, core):
  """A dream of its own, at frame 0."""
  if browser.js("location.protocol === 'http:'"):
    browser.js('sessionStorage.clear()')
  with core.engine.lock:
    core.lobby._places.clear()
  browser.open(f'http://127.0.0.1:{core.port}/')
  until(lambda: browser.js(NUMBER) == 0)
  yield browser
  assert not browser.errors


def press(page, key):
  page.down(key)
  page.up(key)


def act(page, key):
  """Presses a key, and waits for the frame; returns its pixels."""
  before = page.js(NUMBER)
  press(page, key)
  until(lambda: page.js(NUMBER) > before)
  return page.js(PIXELS)


def tab_to(page, fits):
  """Presses Tab until something fits."""
  for _ in range(60):
    press(page, 'Tab')
    if re.search(fits, page.js(FOCUS)):
      return
  raise AssertionError(f'Tab does not lead to {fits}')


def test_a_key_changes_the_dream_and_rewinding_restores_it(page, core):
  assert page.js("document.getElementById('link').textContent") == 'Connected'
  seen = [page.js(PIXELS)]
  for key in ('ArrowLeft', 'ArrowRight', ' ', 'ArrowLeft'):
    before = page.js(NUMBER)
    seen.append(act(page, key))
    assert page.js(NUMBER) <= before + 2
    assert seen[-1] != seen[-2]
  figures = page.js('window.dream.view.figures()')
  assert figures['count'] == 4 and 0 < figures['p50'] < 5000
  for n in (3, 2, 1):
    press(page, ',')
    until(lambda n=n: page.js(NUMBER) == n)
    assert page.js(PIXELS) == seen[n]  # The exact frame.
  tab_to(page, '^frame$')
  press(page, 'ArrowRight')
  until(lambda: page.js(NUMBER) == 2)
  assert page.js(PIXELS) == seen[2]
  # Resumed, and done again: the same dream. Its old future is a branch.
  assert page.js("document.getElementById('pause').textContent") == 'Resume'
  page.js("document.getElementById('screen').focus()")
  press(page, 'Enter')
  until(lambda: not page.js('window.dream.state().paused'))
  assert act(page, ' ') == seen[3]
  until(lambda: page.js('window.dream.state().branches.length') == 1)
  press(page, 'Backspace')
  until(lambda: page.js(NUMBER) == 0)
  assert page.js(PIXELS) == seen[0]


def test_the_agent_moves_by_itself(page):
  press(page, '/')
  press(page, '/')
  until(lambda: page.js('window.dream.state().mode') == 'policy')
  before = page.js(PIXELS)
  until(lambda: page.js(NUMBER) >= 4)
  assert page.js(PIXELS) != before
  until(lambda: page.js("document.querySelectorAll('.key.lit').length") > 0)
  press(page, 'Enter')
  until(lambda: page.js('window.dream.state().paused'))
  number = page.js(NUMBER)
  press(page, '.')
  until(lambda: page.js(NUMBER) > number)
  assert page.js('window.dream.state().paused')


def test_what_is_tried_is_done_when_it_is_seen(page, core):
  trying = "document.getElementById('trying')"
  assert page.js(f'{trying}.hidden')
  tab_to(page, '^BUTTON$')
  while page.js('document.activeElement.textContent') != 'Change the corner':
    press(page, 'Tab')
  press(page, 'Enter')
  until(lambda: page.js('window.dream.state().challenge') == 0)
  until(lambda: page.js(NUMBER) == 0)
  assert page.js(f'{trying}.textContent') == 'Try: Change the corner'
  session = core.lobby.sessions[0]
  for _ in range(40):
    act(page, 'ArrowLeft')
    if session.timeline[session.position].stage:
      break
  until(lambda: page.js(f'{trying}.textContent').startswith('✓ Done'))
  assert page.js("document.querySelectorAll('#tries .done').length") == 1
  press(page, ',')  # Before that it was not.
  until(lambda: page.js(f'{trying}.textContent').startswith('Try'))


def test_a_recording_downloads_and_plays(page, tmp_path):
  tab_to(page, '^record$')
  press(page, 'Enter')
  until(lambda: page.js('window.dream.state().recording'))
  for key in ('ArrowLeft', 'ArrowRight', ' '):
    act(page, key)
  press(page, 'Enter')  # The button still has the focus.
  until(lambda: page.js("document.querySelectorAll('#films a').length") == 2)
  tab_to(page, '^A$')
  page.download(tmp_path / 'film.mp4')
  with av.open(str(tmp_path / 'film.mp4')) as film:
    frames = [f.to_ndarray(format='rgb24') for f in film.decode(video=0)]
  assert len(frames) == 4 and np.abs(np.diff(frames, axis=0)).max() > 50
  press(page, 'Tab')
  page.download(tmp_path / 'actions.npz')
  rows = np.load(tmp_path / 'actions.npz')
  assert rows['action.move'].tolist() == [0, 0, 1, 2]


def test_keys_that_are_held_are_released(page, core):
  session = core.lobby.sessions[0]
  page.down('ArrowRight')
  until(lambda: session.position >= 2)  # It repeats.
  assert session.hands.held == ['move:1']
  page.js("window.dispatchEvent(new Event('blur'))")
  until(lambda: not session.hands.held)
  page.up('ArrowRight')
  # Keys that are for a slider or a list do not reach the game.
  tab_to(page, '^task$')
  number = session.position
  press(page, 'ArrowDown')
  until(lambda: page.js('window.dream.state().task') == 1)
  assert session.position == number


def middle(page, selector):
  """The middle of an element that is scrolled into view."""
  return page.js(f"""(() => {{
    const it = document.querySelector('{selector}');
    it.scrollIntoView({{block: 'center'}});
    const box = it.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  }})()""")


def last_action(core):
  session = core.lobby.sessions[0]
  return session.timeline[session.position].ask.action


def test_a_mouse_looks_around_and_presses_buttons(page, core):
  session = core.lobby.sessions[0]
  x, y = middle(page, '.pad')
  page.drag((x, y), (x + 20, y), (x + 50, y - 15))
  until(lambda: session.hands.tapped)
  act(page, 'ArrowLeft')
  across, down = last_action(core)['look']
  assert across > 0.1 and down < 0
  number = session.position
  at = middle(page, '[data-control="move:2"]')
  page.drag(at, at)
  until(lambda: session.position > number)
  assert last_action(core)['move'] == 2 and not session.hands.held


PADS = """(() => {
  window.pad = {buttons: Array.from({length: 16}, () => ({pressed: false})),
    axes: [0, 0, 0, 0]};
  navigator.getGamepads = () => [null, window.pad];
})()"""


def test_a_gamepad_plays(page, core):
  session = core.lobby.sessions[0]
  page.js(PADS)
  number = session.position
  page.js('(() => { window.pad.axes = [0.9, 0.05, 0, 0]; })()')
  page.js('(() => { window.pad.buttons[15].pressed = true; })()')  # Right.
  until(lambda: session.position > number + 1)
  page.js('(() => { window.pad.buttons[15].pressed = false; })()')
  page.js('(() => { window.pad.axes = [0, 0, 0, 0]; })()')
  until(lambda: not session.hands.held)
  action = last_action(core)
  # The cross is for the arrows; the stick looks, and one at rest does not.
  assert action['move'] == 1 and action['look'][0] > 0.1
  assert action['look'][1] == 0


def test_sliders_stay_where_they_are(browser, tmp_path, monkeypatch):
  monkeypatch.setattr(controls, '_POINTED', ())
  monkeypatch.setattr(Server, '_compile_rest', lambda self: None)
  with serving(tmp_path, players=1) as core:
    browser.js('sessionStorage.clear()')
    browser.open(f'http://127.0.0.1:{core.port}/')
    until(lambda: browser.js(NUMBER) == 0)
    assert browser.js("document.querySelectorAll('.slide').length") == 2
    box = browser.js("""(() => {
      const it = document.querySelector('.slide input');
      it.scrollIntoView({block: 'center'});
      const {x, y, width, height} = it.getBoundingClientRect();
      return [x, y + height / 2, width];
    })()""")
    x, y, width = box
    browser.drag((x + width / 2, y), (x + 0.75 * width, y))
    session = core.lobby.sessions[0]
    until(lambda: session.hands._axes)
    browser.js("document.getElementById('screen').focus()")
    for key in ('ArrowLeft', 'ArrowRight'):
      act(browser, key)
      look = last_action(core)['look']
      assert look[0] > 0.2 and look[1] == 0
    browser.js("window.dispatchEvent(new Event('blur'))")
    until(lambda: not session.hands._axes)
    assert not browser.errors


def test_a_connection_that_is_lost_comes_back(page, core):
  pixels = act(page, 'ArrowLeft')
  session = core.lobby.sessions[0]
  page.js('window.dream.link.socket.close()')
  chip = "document.getElementById('link').textContent"
  until(lambda: page.js(chip).startswith('Connection lost'))
  until(lambda: page.js(chip) == 'Connected')
  assert core.lobby.sessions == [session]
  until(lambda: page.js(NUMBER) == 1)
  assert page.js(PIXELS) == pixels
  act(page, ' ')


def test_it_has_names_and_fits(page):
  nameless = page.js("""[...document.querySelectorAll(
    'button, input, select, a, [tabindex]')].filter(x => !x.hidden
      && !(x.getAttribute('aria-label') || x.textContent.trim()
        || [...(x.labels || [])].some(y => y.textContent.trim())))
    .map(x => x.outerHTML)""")
  assert nameless == []
  for width, height in ((1280, 860), (360, 740)):
    page.resize(width, height)
    until(lambda w=width: page.js('window.innerWidth') == w)
    assert page.js('document.documentElement.scrollWidth') <= width
    # Every pixel of the dream is as large as all others.
    side = "document.getElementById('dream').getBoundingClientRect().width"
    scale = page.js(f'{side} * devicePixelRatio / 12')
    assert scale >= 1 and abs(scale - round(scale)) < 0.01
