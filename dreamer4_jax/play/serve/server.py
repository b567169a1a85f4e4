"""The page, its pictures, and the sockets: all that is I/O.

Needs the extra play.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
import contextlib
import dataclasses
import functools
import os
import pathlib
import threading
from typing import Any
import urllib.parse

from dreamer4_jax.config import require
from dreamer4_jax.play.serve import pictures
from dreamer4_jax.play.serve.engine import Engine
from dreamer4_jax.play.serve.game import Game
from dreamer4_jax.play.serve.lobby import Lobby
from dreamer4_jax.play.serve.programs import Programs
from dreamer4_jax.play.serve.recordings import Recordings
from dreamer4_jax.play.serve.rules import RATES

try:
  from fastapi import FastAPI
  from fastapi.responses import FileResponse, PlainTextResponse, Response
  from starlette.requests import Request
  from starlette.types import ASGIApp
  from starlette.websockets import WebSocket
  import uvicorn
  from uvicorn.protocols.http.h11_impl import H11Protocol
except ModuleNotFoundError as error:
  raise ImportError(
    f'play needs the package {error.name}, which is not installed: run `pip '
    "install 'dreamer4_jax[play]'`; dreamer4_jax.play.Dream does without"
  ) from error

from dreamer4_jax.play.serve.conversation import Conversation, Limits
from dreamer4_jax.play.serve.guard import COOKIE, Guard, is_loopback

_PAGE = pathlib.Path(__file__).parent / 'page'
_TYPES = {'.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css',
          '.svg': 'image/svg+xml'}  # fmt: skip
_SWEEP = 2.0
_LOOK = 0.2
_REQUEST = 10.0
"""Seconds until a connection has asked for something."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
  """How a game is served.

  Attributes:
    host: address to listen on.
    port: 0 for any that is free.
    token: needed by players; a must where others can reach the address.
    players: at once.
    recordings: folder for films.
    limits: of each connection.
    silent: seconds until a silent session is closed.
    away: seconds that a place is kept for a player who is cut off.
    real: offers the real game beside the dream.
  """

  host: str = '127.0.0.1'
  port: int = 8000
  token: str = ''
  players: int = 4
  recordings: pathlib.Path = pathlib.Path('recordings')
  limits: Limits = dataclasses.field(default_factory=Limits)
  silent: float = 600.0
  away: float = 60.0
  real: bool = False

  def __post_init__(self):
    require(
      bool(self.token) or is_loopback(self.host),
      '--host',
      self.host,
      'others can reach this address; choose a secret and give it as --token, '
      'or leave --host out',
    )
    require(
      not self.token or len(self.token) >= 8,
      '--token',
      '*' * len(self.token),
      'must have at least 8 characters',
    )
    require(
      1 <= self.players <= 64, '--players', self.players, 'must be in 1..64'
    )
    require(0 <= self.port < 65536, '--port', self.port, 'must be in 0..65535')


class Server:
  """A game that can be played; compiled, and not yet listening."""

  def __init__(self, game: Game, serving: Serving):
    """Compiles the frames of the first K.

    Args:
      game: what is played.
      serving: how.
    """
    self._game, self.serving = game, serving
    self._rules = game.rules(real=serving.real)
    self.programs = Programs(*game.loaded, serving.players)
    self.programs.compile(self._rules.steps[0])
    self.lobby = Lobby(
      self._rules, serving.players, silent=serving.silent, away=serving.away
    )
    reality = game.reality() if serving.real else None
    if reality:  # Compiles what begins a dream beside it.
      self.programs.begin_clip(reality.clip(reality.begin(0), 0), 0)
    self.engine = Engine(
      self.programs,
      lambda: self.lobby.sessions,
      reality=reality,
      challenges=game.challenges,
    )
    self._recordings = Recordings(serving.recordings)
    self._stopped = threading.Event()
    self._thumbnail = functools.cache(self._draw)

  def app(self) -> ASGIApp:
    """Returns the application; its lifespan starts and stops the engine."""
    app = FastAPI(
      docs_url=None, redoc_url=None, openapi_url=None, lifespan=self._lifespan
    )
    files = {path.name: path.read_bytes() for path in _PAGE.iterdir()}

    @app.get('/')
    def page(request: Request) -> Response:
      answer = Response(files['index.html'], media_type='text/html')
      if self.serving.token:
        answer.set_cookie(
          COOKIE, self.serving.token, httponly=True, samesite='strict'
        )
      return answer

    @app.get('/page/{name}')
    def part(name: str) -> Response:
      if name not in files:
        return PlainTextResponse('no such file', 404)
      return Response(
        files[name], media_type=_TYPES.get(pathlib.Path(name).suffix)
      )

    @app.get('/starts/{index}')
    def start(index: int) -> Response:
      if not 0 <= index < self.programs.starts:
        return PlainTextResponse('no such start', 404)
      picture = self._thumbnail(index)
      return Response(picture, media_type=pictures.media_type(picture))

    @app.get('/recordings/{name}')
    def recording(name: str) -> Response:
      path = self._recordings.find(name)
      if path is None:
        return PlainTextResponse('no such recording', 404)
      return FileResponse(path, filename=f'dream-{name}')

    @app.websocket('/play')
    async def play(socket: WebSocket) -> None:
      await Conversation(
        socket,
        self.engine,
        self.lobby,
        self._recordings,
        self._world(),
        self.serving.limits,
      ).run()

    return Guard(app, self.serving.token)

  def _draw(self, index: int) -> bytes:
    _, frames = self.programs.begin(index, 0)
    return pictures.encode(frames.frame[0])

  def _world(self) -> dict[str, Any]:
    """What the page is told at the beginning."""
    rules, dream = self._rules, self._game.loaded.dream
    height, width, _ = dream.world.config.tokenizer.frame_shape
    return {
      'title': self._game.title,
      'panels': [panel.plain() for panel in rules.panels],
      'steps': sorted(rules.steps),
      **self._ready(),
      'levels': rules.levels,
      'tasks': rules.tasks,
      'policy': rules.policy,
      'heads': dream.heads,
      'value': dream.heads and 'value' in self._game.loaded.params,
      'starts': self.programs.starts - len(rules.challenges),
      'challenges': [
        {'name': c.name, 'start': c.start, 'stages': len(c.stages)}
        for c in rules.challenges
      ],
      'rates': RATES,
      'real': rules.real,
      'height': height,
      'width': width,
      'players': self.serving.players,
    }

  @contextlib.asynccontextmanager
  async def _lifespan(self, app: Any):
    self.engine.start()
    rest = threading.Thread(target=self._compile_rest, daemon=True)
    rest.start()
    sweeper = asyncio.create_task(self._sweep())
    try:
      yield
    finally:
      sweeper.cancel()
      self._stopped.set()
      await asyncio.to_thread(self.engine.stop)
      await asyncio.to_thread(rest.join, 60)

  def _compile_rest(self) -> None:
    """Compiles what is wanted, one after another, until the server ends."""
    _give_way()
    first, most = self._rules.steps[0], self.programs.rows
    missing = [(first, most)] if most > 1 else []
    while not self._stopped.wait(0 if missing else _LOOK):
      for steps, rows in missing:
        self.programs.compile(steps, rows)
        self._tell_ready()
      missing = self._missing()[:1]

  def _missing(self) -> list[tuple[int, int]]:
    """What sessions want and is not compiled: K alone first, then together."""
    with self.engine.lock:
      sessions = self.lobby.sessions
    wanted = {s.settings.steps for s in sessions}
    sizes = [1, self.programs.rows] if len(sessions) > 1 else [1]
    return [
      (steps, rows)
      for rows in sizes
      for steps in sorted(wanted)
      if not self.programs.ready(steps, rows)
    ]

  def _tell_ready(self) -> None:
    with self.engine.lock:
      for session in self.lobby.sessions:
        if session.listener:
          session.listener('ready', self._ready())

  def _ready(self) -> dict[str, Any]:
    """Numbers of steps that are compiled, and whether for several players."""
    first, most = self._rules.steps[0], self.programs.rows
    return {
      'ready': [k for k in self._rules.steps if self.programs.ready(k)],
      'together': self.programs.ready(first, most),
    }

  async def _sweep(self) -> None:
    while True:
      await asyncio.sleep(_SWEEP)
      with self.engine.lock:
        self.lobby.sweep(self.engine.clock())


def _give_way() -> None:
  """Lets all other threads go first, where the system can do that."""
  if hasattr(os, 'setpriority'):
    with contextlib.suppress(OSError):
      os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class _Impatient(H11Protocol):
  """Closes connections that ask for nothing."""

  def connection_made(self, transport):
    super().connection_made(transport)
    self._waiting = self.loop.call_later(_REQUEST, self._give_up)

  def data_received(self, data: bytes) -> None:
    super().data_received(data)
    if self.cycle is not None:
      self._waiting.cancel()

  def connection_lost(self, exc):
    self._waiting.cancel()
    super().connection_lost(exc)

  def _give_up(self) -> None:
    # A socket has taken the transport over.
    if self.cycle is None and self.transport.get_protocol() is self:
      self.transport.close()


def make_uvicorn(server: Server) -> uvicorn.Server:
  """Returns a web server that is not running yet."""
  s = server.serving
  return uvicorn.Server(
    uvicorn.Config(
      server.app(),
      host=s.host,
      port=s.port,
      http=_Impatient,
      ws='websockets-sansio',
      ws_max_size=4096,
      ws_per_message_deflate=False,
      limit_concurrency=64 + 4 * s.players,
      h11_max_incomplete_event_size=16_384,
      timeout_graceful_shutdown=2,
      log_level='warning',
      server_header=False,
    )
  )


def serve(
  game: Game, serving: Serving, tell: Callable[[str], None] = print
) -> None:
  """Serves a game until it is interrupted.

  Args:
    game: what is played.
    serving: how.
    tell: is told where to go.
  """
  tell('Compiling; it takes a minute the first time.')
  web = make_uvicorn(Server(game, serving))
  socket = web.config.bind_socket()
  socket.listen()  # Whoever is told comes in, if after a moment.
  port = socket.getsockname()[1]
  token = urllib.parse.quote(serving.token, safe='')
  query = f'/?token={token}' if token else '/'
  host = f'[{serving.host}]' if ':' in serving.host else serving.host
  tell(f'Play at http://{host}:{port}{query} (Ctrl+C ends it)')
  web.run([socket])
