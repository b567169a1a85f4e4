"""The server, as its pages and its enemies see it."""

import dataclasses
import http.client
import json
import random
import socket
import time

import pytest

pytest.importorskip('fastapi')
pytest.importorskip('uvicorn')
pytest.importorskip('websockets')

import av
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dreamer4_jax.play.serve.game import Game
from dreamer4_jax.play.serve.lobby import Lobby, Refusal
from dreamer4_jax.play.serve.protocol import parse
from dreamer4_jax.play.serve.server import Server, Serving
from tests.serve.games import tiny_game
from tests.serve.serving import QUICK, Player, serving, until

COMPILE_REST = Server._compile_rest


@pytest.fixture(autouse=True, scope='module')
def one_number_of_steps():
  """Other numbers of steps are not compiled, but for one test."""
  patch = pytest.MonkeyPatch()
  patch.setattr(Server, '_compile_rest', lambda self: None)
  yield
  patch.undo()


@pytest.fixture(scope='module')
def core(tmp_path_factory):
  with serving(tmp_path_factory.mktemp('films'), players=2) as core:
    yield core


@pytest.fixture
def hurried(core, monkeypatch):
  """Connections after those that are there have hardly any time."""
  hurried = dataclasses.replace(core.serving, limits=QUICK)
  return lambda: monkeypatch.setattr(core, 'serving', hurried)


@pytest.fixture
def player(core):
  player = Player(core.port)
  yield player
  player.close()
  until(lambda: not core.lobby.sessions)


@pytest.fixture(autouse=True)
def nobody(request):
  """Nobody's place is kept from one test to the next."""
  yield
  if 'core' in request.fixturenames:
    lobby = request.getfixturevalue('core').lobby
    until(lambda: not lobby.sessions)
    lobby._places.clear()


def last_steps(session):
  ask = session.timeline[session.timeline.last].ask
  return ask and ask.steps


def get(port, path, **headers):
  """Asks for a page; returns status, headers and body."""
  one = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
  one.request('GET', path, headers=headers)
  answer = one.getresponse()
  return answer.status, dict(answer.getheaders()), answer.read()


def test_it_is_played(core, player):
  world = player.welcome
  assert world['title'] == 'tiny' and not world['resumed']
  assert [p['kind'] for p in world['panels']] == ['keys', 'keys', 'pointer']
  first = player.frame(0)
  assert first[1].startswith(b'\x89PNG') and first[0]['reward'] == 0
  player.tap('move:1', seq=41)
  said, picture = player.frame(1)
  assert said['action'] == {'move': 1, 'keys': [0, 0], 'look': [0, 0]}
  assert (said['seq'], said['by']) == (41, 'you') and said['ms'] > 0
  assert picture != first[1] and said['value'] is not None
  player.say('set', mode='policy', rate=40)
  assert player.frame(5)[0]['by'] == 'policy'
  player.say('rewind', frame=1)
  assert player.wait('state', lambda s: s['paused'])['position'] == 1
  assert player.wait('frame', lambda what: what[0]['n'] == 1)[1] == picture
  player.say('ping', t=5)
  assert player.wait('pong')['t'] == 5


def test_the_page_and_its_parts_are_there(core):
  status, headers, body = get(core.port, '/')
  assert status == 200 and b'/page/play.js' in body
  assert "default-src 'self'" in headers['content-security-policy']
  for name in ('play.js', 'hands.js', 'view.js', 'link.js', 'play.css'):
    status, headers, _ = get(core.port, f'/page/{name}')
    assert status == 200 and 'charset' in headers['content-type']
  _, headers, body = get(core.port, '/starts/3')
  assert headers['content-type'] == 'image/png' and body[:4] == b'\x89PNG'
  for path in (
    '/starts/4', '/starts/x', '/starts/-1', '/page/../server.py', '/docs',
    '/page/%2e%2e%2fserver.py', '/recordings/../x', '/openapi.json',
    '/recordings/%2e%2e%2f%2e%2e%2fetc%2fpasswd', '/recordings/x.mp4',
  ):  # fmt: skip
    assert get(core.port, path)[0] in (404, 422), path


def test_a_recording_is_downloaded(core, player, tmp_path):
  player.frame(0)
  player.say('record', on=True)
  for n, control in enumerate(('move:1', 'move:2', 'keys:0'), start=1):
    player.say('press', control=control)
    player.say('release', control=control)
    if n < 3:
      player.frame(n)
  player.say('record', on=False)
  found = player.wait('recorded')
  name = found['id']
  status, headers, film = get(core.port, f'/recordings/{name}.mp4')
  assert status == 200 and 'attachment' in headers['content-disposition']
  (tmp_path / 'film.mp4').write_bytes(film)
  with av.open(str(tmp_path / 'film.mp4')) as container:
    frames = [f for f in container.decode(video=0)]
  assert len(frames) == found['frames'] == 3
  (tmp_path / 'a.npz').write_bytes(get(core.port, f'/recordings/{name}.npz')[2])
  assert np.load(tmp_path / 'a.npz')['action.move'].tolist() == [0, 1, 2]


def test_who_is_cut_off_comes_back(core):
  player = Player(core.port)
  player.frame(0)
  player.tap('move:1')
  player.frame(1)
  player.say('press', control='move:2')
  _, last = player.frame(2)
  id = player.welcome['session']
  session = core.lobby._places[id].session
  player.socket.socket.close()  # Without a word.
  until(lambda: not core.lobby.sessions)
  assert not session.hands.held  # Nothing goes on by itself.
  number = session.position
  again = Player(core.port, session=id)
  assert again.welcome['resumed'] and again.welcome['session'] == id
  assert again.frame(number)[0]['n'] >= 2
  assert session.timeline[2].picture == last
  # In another window: the first one has to go.
  other = Player(core.port, session=id)
  with pytest.raises(ConnectionClosed, match='opened in another window'):
    again.wait('never')
  other.tap('move:0')
  assert other.frame(number + 1)
  other.close()


def test_there_are_as_many_places_as_there_are(core):
  players = [Player(core.port), Player(core.port)]
  for own in players:
    own.frame(0)
  late = Player(core.port, hello=False)
  late.say('hello')
  assert 'all 2 places are taken' in late.wait('error')['reason']
  ids = [own.welcome['session'] for own in players]
  players[0].close()
  until(lambda: len(core.lobby.sessions) == 1)
  late.say('hello')  # The place of who is away goes to who is there.
  assert late.wait('welcome')['session'] not in ids
  gone = Player(core.port, hello=False)
  gone.say('hello', session=ids[0])
  assert 'session: unknown, or closed' in gone.wait('error')['reason']
  players[1].tap('move:1')
  assert players[1].frame(1)
  for own in (players[1], late, gone):
    own.close()


def test_the_silent_lose_their_place():
  rules = tiny_game().rules()
  lobby, said = Lobby(rules, 2, silent=60.0, away=10.0), []
  evict = said.append
  enter = lambda now, id=None: lobby.enter(id, None, evict, now)[0]
  quiet, busy = enter(0.0), enter(0.0)
  lobby.heard(busy, 50.0)
  assert lobby.sweep(61.0) == 1 and said == ['closed: silent for 1 minutes']
  assert lobby.sessions == [busy]
  with pytest.raises(Refusal, match='unknown, or closed'):
    enter(62.0, quiet.id)
  lobby.leave(busy, evict, 70.0)
  assert lobby.sweep(79.0) == 0 and lobby.taken == 1
  assert lobby.sweep(81.0) == 1 and lobby.taken == 0


def test_words_that_make_no_sense_are_refused_with_a_reason():
  deep = '[' * 900 + ']' * 900
  for text, reason in (
    ('{', 'must be JSON'),
    ('7', 'must be a JSON object'),
    ('[]', 'must be a JSON object'),
    (deep, 'must be a JSON object|must be JSON'),
    (b'\0\1', 'must be text'),
    ('"' + 'x' * 3000 + '"', 'at most 2048'),
    ('{"type": 1}', 'type: must be one of'),
    ('{"type": "drop table"}', 'type: must be one of'),
    ('{"type": "press"}', 'press: needs control'),
    ('{"type": "press", "control": 7}', r'press.control: must be a text'),
    ('{"type": "press", "control": "a", "x": 1}', "has no field 'x'"),
    ('{"type": "press", "control": "a", "seq": -1}', 'press.seq: must be a w'),
    ('{"type": "press", "control": "a", "seq": true}', 'press.seq'),
    ('{"type": "rewind", "frame": 1.5}', 'rewind.frame: must be a whole'),
    ('{"type": "rewind", "frame": 1e400}', 'rewind.frame: must be a whole'),
    ('{"type": "set", "rate": NaN}', 'set.rate: must be a number'),
    ('{"type": "set", "paused": 1}', 'set.paused: must be true or false'),
    ('{"type": "steer", "part": "a", "values": []}', 'steer.values'),
    ('{"type": "steer", "part": "a", "values": [NaN]}', 'steer.values'),
    ('{"type": "move", "part": "a", "x": 9, "y": 0}', 'move.x: must be a n'),
    ('{"type": "hello", "session": ""}', 'hello.session: must be a text'),
    ('{"type": "record"}', 'record: needs on'),
  ):
    with pytest.raises(Refusal, match=reason):
      parse(text)
  assert parse('{"type": "set"}') == {'type': 'set'}


def hostile(rng):
  """A message that nobody means well with, after hello."""
  junk = rng.choice([None, True, -1, 1e308, 'x' * 50, [], {}, [[1]], 2**70])
  kinds = ['hello', 'press', 'release', 'rewind', 'start', 'branch', 'record',
           'set', 'steer', 'move', 'ping', 'admin', '../etc', '']  # fmt: skip
  return rng.choice([
    lambda: json.dumps({'type': rng.choice(kinds), 'control': junk}),
    lambda: json.dumps({'type': 'press', 'control': f'move:{junk}'}),
    lambda: json.dumps({'type': 'rewind', 'frame': rng.choice([9999, -1])}),
    lambda: json.dumps({'type': 'start', 'index': 10**9}),
    lambda: json.dumps({'type': 'branch', 'index': 77}),
    lambda: json.dumps({'type': 'attempt', 'index': rng.choice([0, -1])}),
    lambda: json.dumps({'type': 'set', 'steps': 3, 'mode': 'root'}),
    lambda: json.dumps({'type': 'steer', 'part': 'move', 'values': [0.5]}),
    lambda: json.dumps({'type': 'move', 'part': 'keys', 'x': 0, 'y': 0}),
    lambda: json.dumps({'type': 'record', 'on': False}),
    lambda: json.dumps({'type': 'hello', 'session': 'someone else'}),
    lambda: json.dumps({'type': 'press', 'control': 'x', 'path': '../../x'}),
    lambda: rng.randbytes(40),
    lambda: '{' * rng.randint(1, 500),
    lambda: ''.join(chr(rng.randint(32, 0xD7FF)) for _ in range(60)),
    lambda: 'x' * 3000,
  ])()  # fmt: skip


def test_five_hundred_hostile_messages(core):
  good = Player(core.port)
  good.frame(0)
  good.say('set', mode='policy', rate=30)
  rng, refused = random.Random(0), 0
  enemy = None
  while refused < 500:
    if enemy is None:
      enemy = Player(core.port)
    try:
      enemy.socket.send(hostile(rng))
      assert enemy.wait('error')['reason']
      refused += 1
    except ConnectionClosed as closed:  # It had been told before.
      assert 'messages' in closed.rcvd.reason
      enemy.close()
      enemy = None
      until(lambda: len(core.lobby.sessions) == 1)
  if enemy:
    enemy.close()
  # Messages that are too long for any page end the connection.
  until(lambda: len(core.lobby.sessions) == 1)
  enemy = Player(core.port)
  enemy.socket.send('x' * 100_000)
  with pytest.raises(ConnectionClosed) as closed:
    enemy.wait('never')
  assert closed.value.rcvd.code == 1009
  # Nobody else has noticed.
  while True:
    try:
      good.receive(timeout=0.0)
    except TimeoutError:
      break
  numbers = [said['n'] for said, _ in good.frames]
  assert numbers == sorted(numbers) and numbers[-1] >= 3
  assert not [news for news in good.news if news['type'] == 'error']
  before = time.monotonic()
  good.wait('frame')
  good.wait('frame')
  assert time.monotonic() - before < 5
  good.close()


@pytest.mark.parametrize('count', [350, 5000])
def test_a_flood_is_stopped(core, player, count):
  player.frame(0)
  enemy = Player(core.port)
  with pytest.raises(ConnectionClosed) as closed:
    for _ in range(count):
      enemy.say('ping', t=1)
    while True:
      enemy.receive()
  if count < 1000:  # Who shouts louder does not hear why.
    assert closed.value.rcvd.reason == 'too many messages'
  until(lambda: len(core.lobby.sessions) == 1)
  player.tap('move:1')
  assert player.frame(1)


def test_a_slow_reader_is_left_out_and_then_closed(core, player, hurried):
  player.frame(0)
  hurried()
  raw = socket.create_connection(('127.0.0.1', core.port))
  raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
  enemy = Player(core.port, sock=raw)
  enemy.frame(0)
  session = next(
    s for s in core.lobby.sessions if s.id == enemy.welcome['session']
  )
  # What it should have read would fill any memory.
  big = session.timeline[0].picture + bytes(4 << 20)
  session.timeline._frames[0] = type(session.timeline[0])(big)
  enemy.socket.recv_events_paused = True
  enemy.socket.recv_messages.pause()
  for _ in range(200):
    with core.engine.lock:
      session.rewind(0)
  until(lambda: len(core.lobby.sessions) == 1, seconds=20)
  player.tap('move:1')
  assert player.frame(1)
  raw.close()


def test_half_open_sockets_time_out(core, player, hurried):
  player.frame(0)
  hurried()
  silent = Player(core.port, hello=False)  # Never says hello.
  with pytest.raises(ConnectionClosed, match='no message for 1 seconds'):
    silent.wait('never')
  gone = Player(core.port)  # Says hello, and no more.
  begin = time.monotonic()
  with pytest.raises(ConnectionClosed, match='no message for 2 seconds'):
    while True:
      gone.receive()
      player.say('ping', t=0)
  assert 1.5 < time.monotonic() - begin < 10
  player.tap('move:1')
  assert player.frame(1)


def test_connections_that_ask_for_nothing_are_closed(core, monkeypatch):
  monkeypatch.setattr('dreamer4_jax.play.serve.server._REQUEST', 0.3)
  with socket.create_connection(('127.0.0.1', core.port)) as raw:
    raw.sendall(b'GET / HT')
    raw.settimeout(10)
    assert raw.recv(100) == b''


@pytest.mark.parametrize(
  'headers, reason',
  [
    ({'Host': 'evil.example'}, "Host: 'evil.example' is not this machine"),
    ({'Host': '127.0.0.1.evil.example:80'}, 'is not this machine'),
    ({'Host': ''}, 'is not this machine'),
    ({'Host': '['}, "Host: '[' is no name"),
    ({'Origin': 'http://evil.example'}, 'is not this server'),
    ({'Origin': 'null'}, 'is not this server'),
  ],
)
def test_strangers_are_refused(core, headers, reason):
  status, _, body = get(core.port, '/', **headers)
  assert status == 403 and reason in body.decode()


def test_sockets_of_other_pages_are_refused(core):
  for origin, reason in (
    ('http://evil.example', 'is not this server'),
    (f'http://127.0.0.1:{core.port + 1}', 'is not this server'),
    (None, 'Origin: missing'),
  ):
    with pytest.raises(InvalidStatus) as refused:
      Player(core.port, origin=origin)
    assert refused.value.response.status_code == 403
    assert reason in refused.value.response.body.decode()


def test_a_token_is_asked_for(tmp_path):
  token = 'a good secret'
  with serving(tmp_path, players=1, token=token) as core:
    assert get(core.port, '/')[0] == 403
    status, _, body = get(core.port, '/?token=wrong')
    assert status == 403 and b'token' in body
    # Other names than this machine's are fine: who has the token is meant.
    name = {'Host': 'dreams.example'}
    status, headers, _ = get(core.port, '/?token=a%20good%20secret', **name)
    assert status == 200
    cookie = headers['set-cookie']
    assert 'HttpOnly' in cookie and 'samesite=strict' in cookie.lower()
    cookie = {'Cookie': cookie.partition(';')[0]}
    assert get(core.port, '/starts/0', **cookie)[0] == 200
    with pytest.raises(InvalidStatus):
      Player(core.port)
    player = Player(core.port, additional_headers=cookie)
    assert player.frame(0)
    player.close()


def test_other_numbers_of_steps_come_by_themselves(tmp_path, monkeypatch):
  monkeypatch.setattr(Server, '_compile_rest', COMPILE_REST)
  few = dataclasses.replace(tiny_game().rules(), steps=(2, 1))
  monkeypatch.setattr(Game, 'rules', lambda self, real: few)
  with serving(tmp_path, players=1) as core:
    player = Player(core.port)
    player.frame(0)
    player.say('set', steps=1, mode='policy', rate=60)
    session = core.lobby.sessions[0]
    until(lambda: last_steps(session) == 1, 60)
    assert player.welcome['ready'] == [2]
    assert player.wait('ready')['ready'] == [2, 1]
    player.close()


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'host': '0.0.0.0'}, "--host = '0.0.0.0': others can reach this address"),
    ({'host': '192.168.0.7'}, 'give it as --token'),
    ({'host': '0.0.0.0', 'token': 'short'}, 'must have at least 8'),
    ({'players': 0}, '--players = 0: must be in 1..64'),
    ({'port': 70000}, '--port = 70000'),
  ],
)
def test_what_cannot_be_served_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    Serving(**settings)
  assert Serving().host == '127.0.0.1' and Serving(host='::1')
