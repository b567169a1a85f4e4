"""One page and the server: messages in, frames and news out."""

from __future__ import annotations

import asyncio
from collections import deque
import contextlib
import dataclasses
import json
import logging
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from dreamer4_jax.play.serve.engine import Engine
from dreamer4_jax.play.serve.lobby import Lobby, Refusal
from dreamer4_jax.play.serve.protocol import pack_frame, parse
from dreamer4_jax.play.serve.recordings import Recordings
from dreamer4_jax.play.serve.session import Session
from dreamer4_jax.play.serve.timeline import Seen

_LOG = logging.getLogger(__name__)
_MOST_NEWS = 512
_LAST_WORDS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What a connection may do.

  Attributes:
    hello: seconds until the first message.
    quiet: seconds between two messages; the page sends one every five.
    send: seconds that a page takes to receive one.
    rate: messages a second, over a while.
    burst: messages at once.
    mistakes: refused messages until it is closed.
  """

  hello: float = 10.0
  quiet: float = 30.0
  send: float = 10.0
  rate: float = 120.0
  burst: float = 240.0
  mistakes: int = 40


class Outbox:
  """What is to be sent: news in order, and of frames the latest only."""

  def __init__(self):
    self._news: deque[str] = deque()
    self._frame: Seen | None = None
    self._some = asyncio.Event()
    self._loop = asyncio.get_running_loop()
    self.reason: str | None = None

  def put(self, kind: str, what: Any) -> None:
    """Takes a frame or news, from any thread."""
    with contextlib.suppress(RuntimeError):  # The server has ended.
      self._loop.call_soon_threadsafe(self._put, kind, what)

  def close(self, reason: str) -> None:
    """Ends the conversation, from any thread."""
    with contextlib.suppress(RuntimeError):
      self._loop.call_soon_threadsafe(self._close, reason)

  def _put(self, kind: str, what: Any) -> None:
    if kind == 'frame':
      self._frame = what
    elif len(self._news) >= _MOST_NEWS:
      self._close('too slow: news are not received')
    else:
      self._news.append(json.dumps({'type': kind, **what}))
    self._some.set()

  def _close(self, reason: str) -> None:
    self.reason = self.reason or reason
    self._some.set()

  async def next(self) -> str | bytes | None:
    """Waits for what to send next; None if the conversation is to end."""
    while True:
      if self._news:
        return self._news.popleft()
      if self.reason is not None:
        return None
      if self._frame:
        seen, self._frame = self._frame, None
        return pack_frame(seen)
      self._some.clear()
      await self._some.wait()


class Conversation:
  """What is said on one socket."""

  def __init__(
    self,
    socket: WebSocket,
    engine: Engine,
    lobby: Lobby,
    recordings: Recordings,
    world: dict[str, Any],
    limits: Limits,
  ):
    """Prepares; `run` talks.

    Args:
      socket: not accepted yet.
      engine: that computes frames.
      lobby: gives places.
      recordings: where films go.
      world: told to the page at the beginning.
      limits: of the connection.
    """
    self._socket, self._engine, self._lobby = socket, engine, lobby
    self._recordings, self._world, self._limits = recordings, world, limits
    self._session: Session | None = None
    self._mistakes = 0
    self._saving: set[asyncio.Task] = set()

  async def run(self) -> None:
    """Talks until either side ends it."""
    await self._socket.accept()
    self._out = Outbox()
    self._tokens, self._filled = self._limits.burst, self._engine.clock()
    reader = asyncio.create_task(self._read())
    writer = asyncio.create_task(self._write())
    try:
      await asyncio.wait({reader, writer}, return_when='FIRST_COMPLETED')
      if reader.done() and not writer.done():  # The last words.
        await asyncio.wait({writer}, timeout=2)
    finally:
      for task in (reader, writer):
        task.cancel()
      await asyncio.gather(reader, writer, return_exceptions=True)
      self._leave()
      with contextlib.suppress(RuntimeError, WebSocketDisconnect, OSError):
        reason = self._out.reason or 'goodbye'
        code = 1000 if self._out.reason is None else 1008
        if self._tokens < 0:
          await self._drain()
        await asyncio.wait_for(self._socket.close(code, reason[:120]), 2)

  async def _drain(self) -> None:
    """Hears who still talks out, for a moment.

    With something unread a connection is reset, and the reason is lost.
    """
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(_LAST_WORDS):
        got = {'type': ''}
        while got['type'] != 'websocket.disconnect':
          got = await asyncio.wait_for(self._socket.receive(), 0.2)

  async def _write(self) -> None:
    while (what := await self._out.next()) is not None:
      send = self._socket.send_text
      if isinstance(what, bytes):
        send = self._socket.send_bytes
      try:
        await asyncio.wait_for(send(what), self._limits.send)
      except TimeoutError:
        self._out.reason = 'too slow: frames are not received'
        return
      except (RuntimeError, WebSocketDisconnect, OSError):
        return

  async def _read(self) -> None:
    wait = self._limits.hello
    while self._out.reason is None:
      try:
        got = await asyncio.wait_for(self._socket.receive(), wait)
      except TimeoutError:
        self._out._close(f'silent: no message for {wait:g} seconds')
        return
      if got['type'] == 'websocket.disconnect':
        self._out._close('gone')
        return
      if not self._may_speak():
        self._out._put('error', {'reason': 'too many messages'})
        self._out._close('too many messages')
        return
      text = got.get('text')
      self._answer(got.get('bytes') if text is None else text)
      if self._session is not None:
        wait = self._limits.quiet

  def _may_speak(self) -> bool:
    now, limits = self._engine.clock(), self._limits
    gained = (now - self._filled) * limits.rate
    self._tokens = min(limits.burst, self._tokens + gained) - 1
    self._filled = now
    return self._tokens >= 0

  def _answer(self, text: str | bytes) -> None:
    try:
      message = parse(text)
      kind = message.pop('type')
      if (self._session is None) != (kind == 'hello'):
        known = 'was said already' if kind == 'hello' else 'say hello first'
        raise Refusal(f'{kind}: {known}')
      if kind == 'hello':
        self._hello(message.get('session'))
      elif kind == 'ping':
        self._out._put('pong', message)
      else:
        with self._engine.lock:
          self._lobby.heard(self._session, self._engine.clock())
          self._act(kind, message)
        self._engine.wake()
    except ValueError as error:  # Also of the session.
      self._mistakes += 1
      self._out._put('error', {'reason': str(error)[:400]})
      if self._mistakes >= self._limits.mistakes:
        self._out._close('too many messages that were refused')

  def _hello(self, id: str | None) -> None:
    self._evict = self._out.close
    with self._engine.lock:
      session, goes_on = self._lobby.enter(
        id, self._out.put, self._evict, self._engine.clock()
      )
      self._session = session
      self._out._put(
        'welcome', {'session': session.id, 'resumed': goes_on, **self._world}
      )
      session.show_again()
    self._engine.wake()

  def _leave(self) -> None:
    if self._session is not None:
      with self._engine.lock:
        now = self._engine.clock()
        self._lobby.leave(self._session, self._evict, now)

  def _act(self, kind: str, message: dict[str, Any]) -> None:
    session = self._session
    calls = {
      'press': session.press,
      'release': session.release,
      'steer': session.steer,
      'move': session.move,
      'blur': session.hands.release_all,
      'set': session.choose,
      'step': session.step_once,
      'reset': session.reset,
      'rewind': lambda frame: session.rewind(frame),
      'start': lambda index: session.start(index),
      'attempt': lambda index: session.attempt(index),
      'branch': lambda index: session.branch(index),
      'record': self._record,
    }
    calls[kind](**message)

  def _record(self, on: bool) -> None:
    if on and self._saving:
      raise Refusal('record: the last one is still being written')
    film = self._session.record(on)
    if film is None:
      return

    async def save() -> None:
      try:
        id = await asyncio.to_thread(self._recordings.save, film)
      except (OSError, ValueError) as error:
        _LOG.warning('a recording is lost: %s', error)
        self._out._put('error', {'reason': f'record: {error}'[:400]})
        return
      self._out._put('recorded', {'id': id, 'frames': len(film.frames)})

    task = asyncio.get_running_loop().create_task(save())
    self._saving.add(task)
    task.add_done_callback(self._saving.discard)
