"""Plays a run in real pages, and times what its players see.

python -m benchmarks.play --run runs/quickstart

Serves the run by `dreamer4 play`, opens a page of Chromium for each player, and
prints one JSON object. For each number of players: `frames_per_second` that the
pages draw while the agent plays as fast as it can, of each player, and
`latency`, in milliseconds from a key press to the changed frame on the screen,
while all of them tap keys. Needs the extras play and test, and Chromium.

python -m benchmarks.play --run runs/quickstart --soak 3600

plays at random instead, with reconnects, and compares the memory of the server
and its time for a frame between the first and the last tenth.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any

from playwright.sync_api import Page, sync_playwright
import tyro
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from benchmarks import harness
from dreamer4_jax.config import require
from dreamer4_jax.play.serve.protocol import unpack_frame

_READY = 600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayBenchmark:
  """What to measure."""

  run: str
  """Directory of a run, or one that `dreamer4 export --play` has written."""
  players: tuple[int, ...] = (1, 4)
  """Numbers of players, one measurement each."""
  rows: int = 0
  """Places of the server; 0 for as many as play."""
  seconds: float = 10.0
  """Of each measurement of frames per second."""
  taps: int = 60
  """Key presses of each player."""
  soak: float = 0.0
  """Seconds of random play instead of all this."""

  def __post_init__(self):
    require(min(self.players) >= 1, 'players', self.players, 'at least 1')
    require(
      self.rows == 0 or self.rows >= max(self.players),
      'rows',
      self.rows,
      'must be 0 or at least the players',
    )
    require(self.taps >= 20, 'taps', self.taps, 'must be at least 20')


@contextlib.contextmanager
def served(run: str, rows: int) -> Iterator[tuple[int, int]]:
  """Serves a run; yields the port and the process id."""
  command = [
    sys.executable, '-u', '-m', 'dreamer4_jax.cli.main', 'play', run,
    '--port', '0', '--players', str(rows),
  ]  # fmt: skip
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    try:
      end = time.monotonic() + _READY
      for line in server.stdout:
        if found := re.search(r'http://\S+?:(\d+)/', line):
          yield int(found[1]), server.pid
          break
        if time.monotonic() > end:
          raise TimeoutError('the server is not ready')
      else:
        raise RuntimeError('the server has ended; its message is above')
    finally:
      server.terminate()


def measure(config: PlayBenchmark, players: int) -> dict[str, Any]:
  """Plays in that many pages; returns frame rates and latencies."""
  with (
    served(config.run, config.rows or players) as (port, _),
    sync_playwright() as api,
  ):
    browser = api.chromium.launch(
      executable_path=shutil.which('chromium'), args=['--no-sandbox']
    )
    pages = [_open(browser, port) for _ in range(players)]
    while not pages[0].evaluate('window.dream.world().together'):
      time.sleep(0.5)  # The frame of several players is being compiled.
    rates = _frame_rates(pages, config.seconds)
    latency = _latencies(pages, config.taps)
    model = [page.text_content('#ms') for page in pages]
    browser.close()
  return {
    'frames_per_second': [round(x, 1) for x in rates],
    'latency': latency,
    'model': model,
  }


def _open(browser: Any, port: int) -> Page:
  page = browser.new_context().new_page()
  page.goto(f'http://127.0.0.1:{port}/')
  while page.evaluate('window.dream?.view.number ?? -1') < 0:
    time.sleep(0.05)
  return page


def _frame_rates(pages: list[Page], seconds: float) -> list[float]:
  count = 'window.dream.view.shown'
  for page in pages:
    _say(page, type='set', mode='policy', rate=60)
  time.sleep(1.0)
  begin = [(page.evaluate(count), time.perf_counter()) for page in pages]
  time.sleep(seconds)
  rates = []
  for page, (drawn, since) in zip(pages, begin, strict=True):
    now = page.evaluate(count)
    rates.append((now - drawn) / (time.perf_counter() - since))
    _say(page, type='set', mode='human', rate=30)
  return rates


def _latencies(pages: list[Page], taps: int) -> dict[str, float]:
  """Taps keys of the legend, everybody in turn."""
  rng = random.Random(0)
  keys = pages[0].evaluate("""[...window.dream.hands().byKey.keys()]""")
  for _ in range(taps):
    for page in pages:
      key = rng.choice(keys)
      page.keyboard.down(key)
      page.keyboard.up(key)
      time.sleep(rng.uniform(0.1, 0.3) / len(pages))
  time.sleep(1.0)
  found = sorted(
    x for page in pages for x in page.evaluate('window.dream.view.latencies')
  )
  return {
    'presses': len(found),
    'median': round(statistics.median(found), 1),
    'p95': round(found[int(0.95 * len(found))], 1),
    'worst': round(found[-1], 1),
  }


def _say(page: Page, **message: Any) -> None:
  page.evaluate(f'window.dream.link.send({json.dumps(message)})')


class Stranger:
  """Plays at random over a socket, and is cut off now and then."""

  def __init__(self, port: int, seed: int):
    self._port, self._rng = port, random.Random(seed)
    self._session: str | None = None
    self._last: int | None = None
    self.frames, self.reconnects, self.errors = 0, 0, 0
    self.seconds: list[float] = []
    self._connect()

  def _connect(self) -> None:
    where = f'127.0.0.1:{self._port}'
    self._socket = connect(
      f'ws://{where}/play', origin=f'http://{where}'
    ).__enter__()
    hello = {'session': self._session} if self._session else {}
    self._say('hello', **hello)

  def _say(self, kind: str, **fields: Any) -> None:
    self._socket.send(json.dumps({'type': kind, **fields}))

  def turn(self) -> None:
    """Reads what there is, and does something."""
    try:
      self._read()
      self._do()
    except ConnectionClosed:
      self.reconnects += 1
      self._connect()

  def _read(self) -> None:
    while True:
      try:
        got = self._socket.recv(0.0)
      except TimeoutError:
        return
      if isinstance(got, bytes):
        said, _ = unpack_frame(got)
        self.frames += 1
        self.seconds.append(said['ms'] / 1000)
        self._last = said['n']
        continue
      news = json.loads(got)
      self.errors += news['type'] == 'error'
      if news['type'] == 'welcome':
        self._session, self._world = news['session'], news
        self._say('set', mode='policy' if news['policy'] else 'human', rate=20)

  def _do(self) -> None:
    if self._session is None or not self.frames:
      return
    controls = [c['id'] for p in self._world['panels'] for c in p['controls']]
    act = self._rng.choices(
      ('tap', 'ping', 'start', 'rewind', 'cut'), (60, 30, 1, 4, 1)
    )[0]
    if act == 'tap':
      control = self._rng.choice(controls)
      self._say('press', control=control)
      self._say('release', control=control)
    elif act == 'ping':
      self._say('ping', t=0)
    elif act == 'start':
      self._say('start', index=self._rng.randrange(self._world['starts']))
      self._last = None
    elif act == 'rewind' and self._last is not None:
      self._say('rewind', frame=self._last)
      self._say('set', paused=False)
    elif act == 'cut':
      self._socket.close()


def soak(config: PlayBenchmark) -> dict[str, Any]:
  """Plays at random; returns how memory and frames change."""
  players = max(config.players)
  with served(config.run, config.rows or players) as (port, pid):
    strangers = [Stranger(port, seed) for seed in range(players)]
    begin, memory, counted = time.monotonic(), [], []
    while (now := time.monotonic() - begin) < config.soak:
      for stranger in strangers:
        stranger.turn()
      memory.append((now, _resident(pid)))
      counted.append((now, sum(s.frames for s in strangers)))
      time.sleep(0.05)
  share = max(1, len(memory) // 10)
  seconds = [x for s in strangers for x in s.seconds]
  tenth = max(1, len(strangers[0].seconds) // 10)
  ends = [
    statistics.median(x for s in strangers for x in part(s.seconds))
    for part in (lambda x: x[tenth : 2 * tenth], lambda x: x[-tenth:])
  ]
  early = statistics.mean(x for _, x in memory[share : 2 * share])
  late = statistics.mean(x for _, x in memory[-share:])
  return {
    'frames': counted[-1][1],
    'reconnects': sum(s.reconnects for s in strangers),
    'errors': sum(s.errors for s in strangers),
    'memory_mb': [round(early / 2**20, 1), round(late / 2**20, 1)],
    'memory_growth': round(late / early - 1, 4),
    'frame_ms': [round(1000 * x, 2) for x in ends],
    'median_ms': round(1000 * statistics.median(seconds), 2),
  }


def _resident(pid: int) -> int:
  """Bytes of memory that a process has."""
  text = pathlib.Path(f'/proc/{pid}/status').read_text()
  return 1024 * int(re.search(r'VmRSS:\s+(\d+)', text)[1])


def main(config: PlayBenchmark) -> dict[str, Any]:
  """Measures, and returns what is printed."""
  found: dict[str, Any] = {'config': dataclasses.asdict(config)}
  if config.soak:
    found['soak'] = soak(config)
  else:
    for players in config.players:
      found[f'{players} players'] = measure(config, players)
  about = {'command': harness.command(), 'commit': harness.commit()}
  return found | about | {'machine': harness.machine()}


if __name__ == '__main__':
  print(json.dumps(main(tyro.cli(PlayBenchmark)), indent=2))
