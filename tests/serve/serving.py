"""A real server on a thread, and players who talk to it."""

import contextlib
import json
import pathlib
import threading
import time

from websockets.sync.client import connect

from dreamer4_jax.play.serve.conversation import Limits
from dreamer4_jax.play.serve.protocol import unpack_frame
from dreamer4_jax.play.serve.server import Server, Serving, make_uvicorn
from tests.serve.games import tiny_game


@contextlib.contextmanager
def serving(folder, game=None, **settings):
  """Serves the tiny world; yields the server, with `port`, and `core`."""
  core = Server(
    game or tiny_game(),
    Serving(port=0, recordings=pathlib.Path(folder), **settings),
  )
  web = make_uvicorn(core)
  socket = web.config.bind_socket()
  thread = threading.Thread(target=web.run, args=([socket],), daemon=True)
  thread.start()
  until(lambda: web.started)
  core.port = socket.getsockname()[1]
  try:
    yield core
  finally:
    web.should_exit = True
    thread.join(timeout=30)
    assert not thread.is_alive()


def until(happens, seconds=30.0):
  """Waits for something; fails if it takes too long."""
  end = time.monotonic() + seconds
  while not (found := happens()):
    assert time.monotonic() < end, 'it did not happen in time'
    time.sleep(0.01)
  return found


class Player:
  """A page without a browser."""

  def __init__(self, port, session=None, hello=True, **options):
    # A context manager in some versions, a connection in others.
    self.socket = connect(
      f'ws://127.0.0.1:{port}/play',
      **{'origin': f'http://127.0.0.1:{port}', 'max_size': None} | options,
    ).__enter__()
    self.frames, self.news = [], []
    if hello:
      self.say('hello', **({'session': session} if session else {}))
      self.welcome = self.wait('welcome')

  def say(self, kind, **fields):
    self.socket.send(json.dumps({'type': kind, **fields}))

  def receive(self, timeout=10.0):
    """Reads a message; returns its kind, and what it says."""
    got = self.socket.recv(timeout)
    if isinstance(got, bytes):
      self.frames.append(unpack_frame(got))
      return 'frame', self.frames[-1]
    news = json.loads(got)
    self.news.append(news)
    return news['type'], news

  def wait(self, kind, fits=lambda what: True, timeout=20.0):
    """Reads until something is said."""
    end = time.monotonic() + timeout
    while True:
      found, what = self.receive(max(0.01, end - time.monotonic()))
      if found == kind and fits(what):
        return what

  def frame(self, number):
    """Reads until a frame is shown, or a later one: some are left out."""
    return self.wait('frame', lambda what: what[0]['n'] >= number)

  def tap(self, control, seq=1):
    self.say('press', control=control, seq=seq)
    self.say('release', control=control)

  def close(self):
    self.socket.close()


QUICK = Limits(hello=1.0, quiet=2.0, send=1.0)
"""Limits that a test need not wait for."""
