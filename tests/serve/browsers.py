"""Two browsers behind one interface.

Chromium is driven by Playwright. Firefox as distributions build it has no
driver there, and speaks WebDriver BiDi itself.
"""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile

import pytest
from websockets.sync.client import connect

_CODES = {
  'ArrowLeft': '\ue012', 'ArrowUp': '\ue013', 'ArrowRight': '\ue014',
  'ArrowDown': '\ue015', 'Enter': '\ue006', 'Tab': '\ue004',
  'Backspace': '\ue003',
}  # fmt: skip


def program(*names):
  """Returns the path of the first program there is, or skips the test."""
  found = next(filter(None, map(shutil.which, names)), None)
  if not found:
    pytest.skip(f'{names[0]} is not installed: apt-get install {names[0]}')
  return found


class Chromium:
  """Chromium, with one page."""

  def __init__(self):
    path = program('chromium', 'chromium-browser', 'google-chrome')
    api = pytest.importorskip('playwright.sync_api')
    self._manager = api.sync_playwright().start()
    self._browser = self._manager.chromium.launch(
      executable_path=path, args=['--no-sandbox']
    )
    self.page = self._browser.new_page()
    self.errors = []
    self.page.on('pageerror', lambda error: self.errors.append(str(error)))

  def open(self, url, width=1280, height=860):
    self.resize(width, height)
    self.page.goto(url)

  def resize(self, width, height):
    self.page.set_viewport_size({'width': width, 'height': height})

  def js(self, code):
    return self.page.evaluate(code)

  def down(self, key):
    self.page.keyboard.down(key)

  def up(self, key):
    self.page.keyboard.up(key)

  def drag(self, *points):
    """Presses the mouse at the first point, and lets go at the last."""
    mouse = self.page.mouse
    mouse.move(*points[0])
    mouse.down()
    for point in points[1:]:
      mouse.move(*point)
    mouse.up()

  def download(self, path):
    """Presses Enter on the link that has the focus; saves the file."""
    with self.page.expect_download() as got:
      self.page.keyboard.press('Enter')
    got.value.save_as(path)

  def shoot(self, path):
    self.page.screenshot(path=path, full_page=True)

  def close(self):
    self._browser.close()
    self._manager.stop()


class Firefox:
  """Firefox, with one page."""

  def __init__(self):
    path = program('firefox-esr', 'firefox')
    self._folder = tempfile.mkdtemp()
    self._child = subprocess.Popen(
      [path, '--headless', '--no-remote', '--remote-debugging-port', '0',
       '--profile', self._folder],
      stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
      env=os.environ | {'HOME': self._folder},
    )  # fmt: skip
    for line in self._child.stderr:
      if found := re.search(r'BiDi listening on (ws://\S+)', line):
        break
    self._socket = connect(
      f'{found[1]}/session', max_size=None, ping_interval=None
    ).__enter__()
    self._ids, self.errors = itertools.count(1), []
    self._say('session.new', capabilities={})
    self._say('session.subscribe', events=['log.entryAdded'])
    # The first tab never gets the focus.
    tab = self._say('browsingContext.create', type='tab')
    self._context = tab['context']
    self._say('browsingContext.activate', context=self._context)

  def _say(self, method, **params):
    id = next(self._ids)
    self._socket.send(
      json.dumps({'id': id, 'method': method, 'params': params})
    )
    while True:
      answer = json.loads(self._socket.recv(60))
      if answer.get('method') == 'log.entryAdded':
        if answer['params']['level'] == 'error':
          self.errors.append(answer['params']['text'])
      if answer.get('id') == id:
        assert answer['type'] == 'success', answer
        return answer['result']

  def open(self, url, width=1280, height=860):
    self.resize(width, height)
    self._say(
      'browsingContext.navigate',
      context=self._context, url=url, wait='complete',
    )  # fmt: skip

  def resize(self, width, height):
    size = {'width': width, 'height': height}
    self._say(
      'browsingContext.setViewport', context=self._context, viewport=size
    )

  def js(self, code):
    answer = self._say(
      'script.evaluate',
      expression=f'Promise.resolve({code}).then(x => JSON.stringify(x))',
      target={'context': self._context},
      awaitPromise=True,
    )
    assert answer['type'] == 'success', answer
    value = answer['result'].get('value')
    return None if value is None else json.loads(value)

  def _key(self, kind, key):
    action = {'type': kind, 'value': _CODES.get(key, key)}
    keys = {'type': 'key', 'id': 'keys', 'actions': [action]}
    self._say('input.performActions', context=self._context, actions=[keys])

  def down(self, key):
    self._key('keyDown', key)

  def up(self, key):
    self._key('keyUp', key)

  def drag(self, *points):
    """Presses the mouse at the first point, and lets go at the last."""
    moves = [{'type': 'pointerMove', 'x': round(x), 'y': round(y)}
             for x, y in points]  # fmt: skip
    down, up = ({'type': f'pointer{way}', 'button': 0}
                for way in ('Down', 'Up'))  # fmt: skip
    mouse = {
      'type': 'pointer', 'id': 'mouse',
      'actions': [moves[0], down, *moves[1:], up],
    }  # fmt: skip
    self._say('input.performActions', context=self._context, actions=[mouse])

  def download(self, path):
    """Fetches what the link that has the focus points to; saves it."""
    text = self.js("""fetch(document.activeElement.href)
      .then(x => x.arrayBuffer())
      .then(x => btoa(String.fromCharCode(...new Uint8Array(x))))""")
    with open(path, 'wb') as file:
      file.write(base64.b64decode(text))

  def shoot(self, path):
    shot = self._say(
      'browsingContext.captureScreenshot',
      context=self._context, origin='document',
    )  # fmt: skip
    with open(path, 'wb') as file:
      file.write(base64.b64decode(shot['data']))

  def close(self):
    self._socket.close()
    self._child.terminate()
    self._child.wait(timeout=30)
    self._child.stderr.close()
    shutil.rmtree(self._folder, ignore_errors=True)


BROWSERS = {'chromium': Chromium, 'firefox': Firefox}
