"""Who may talk to the server: its own page, and whoever has the token."""

from __future__ import annotations

from collections.abc import Iterable
import http.cookies
import ipaddress
import secrets
import urllib.parse

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = 'dreamer4_token'
_HEADERS = {
  'content-security-policy': (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
  ),
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cache-control': 'no-store',
}


def is_loopback(host: str) -> bool:
  """Whether an address is of this machine only."""
  if host == 'localhost':
    return True
  try:
    return ipaddress.ip_address(host.strip('[]')).is_loopback
  except ValueError:
    return False


class Guard:
  """Refuses requests of other hosts and origins, and without the token."""

  def __init__(self, app: ASGIApp, token: str = ''):
    """Wraps an application.

    Args:
      app: what is guarded.
      token: needed by everybody; without one, only names of this machine are
        answered, lest a name that is made to point here let a stranger in.
    """
    self._app, self._token = app, token

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Passes a request on, or refuses it."""
    if scope['type'] not in ('http', 'websocket'):
      await self._app(scope, receive, send)
      return
    reason = self._refusal(scope)
    if scope['type'] == 'websocket':
      if reason:
        await receive()
        await _answer(send, reason, 'websocket.http.response')
        return
      await self._app(scope, receive, send)
      return
    if reason:
      await _answer(_with_headers(send), reason, 'http.response')
      return
    await self._app(scope, receive, _with_headers(send))

  def _refusal(self, scope: Scope) -> str:
    headers = Headers(scope=scope)
    host, origin = headers.get('host', ''), headers.get('origin')
    if len(headers.getlist('host')) != 1:
      return 'Host: one is needed'
    try:
      name = urllib.parse.urlsplit(f'//{host}').hostname or ''
    except ValueError:
      return f'Host: {host[:80]!r} is no name'
    if not self._token and not is_loopback(name):
      return f'Host: {name[:80]!r} is not this machine'
    if origin is None and scope['type'] == 'websocket':
      return 'Origin: missing; only the page of this server may connect'
    if origin is not None and origin not in (
      f'http://{host}',
      f'https://{host}',
    ):
      return f'Origin: {origin[:80]!r} is not this server'
    if self._token and not self._has_token(scope, headers):
      return 'token: open the address that the server printed, token included'
    return ''

  def _has_token(self, scope: Scope, headers: Headers) -> bool:
    query = urllib.parse.parse_qs(scope['query_string'].decode('latin-1'))
    cookies = http.cookies.SimpleCookie()
    try:
      cookies.load(headers.get('cookie', ''))
    except http.cookies.CookieError:
      pass
    given: Iterable[str] = query.get('token', [])
    if COOKIE in cookies:
      given = [*given, cookies[COOKIE].value]
    own = self._token.encode()
    return any([secrets.compare_digest(x.encode(), own) for x in given])


async def _answer(send: Send, reason: str, kind: str) -> None:
  headers = [(b'content-type', b'text/plain; charset=utf-8')]
  await send({'type': f'{kind}.start', 'status': 403, 'headers': headers})
  await send({'type': f'{kind}.body', 'body': reason.encode() + b'\n'})


def _with_headers(send: Send) -> Send:
  async def wrapped(message):
    if message['type'] == 'http.response.start':
      more = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
      message = {**message, 'headers': [*message['headers'], *more]}
    await send(message)

  return wrapped
