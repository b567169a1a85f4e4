"""Who plays: a fixed number of places, and who has one.

A place is a row of the compiled frame. Whoever says nothing for long loses it,
and a player who is cut off may come back to it for a while.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import secrets

from dreamer4_jax.play.serve.rules import Rules
from dreamer4_jax.play.serve.session import Listener, Session


class Refusal(ValueError):
  """Something that a player asks for and does not get, with the reason."""


@dataclasses.dataclass
class _Place:
  session: Session
  heard: float
  away: float | None = None
  evict: Callable[[str], None] | None = None


class Lobby:
  """Sessions by their ids; not safe for threads, hold the engine's lock."""

  def __init__(
    self,
    rules: Rules,
    places: int,
    *,
    silent: float = 600.0,
    away: float = 60.0,
  ):
    """Opens.

    Args:
      rules: of every session; they share the budget.
      places: sessions at once.
      silent: seconds without a word from the player until it is closed.
      away: seconds that a place is kept for a player who is cut off; less if
        another asks for it.
    """
    budget = rules.budget // places
    self._rules = dataclasses.replace(rules, budget=budget)
    self._places: dict[str, _Place] = {}
    self._count, self._silent, self._away = places, silent, away

  @property
  def sessions(self) -> list[Session]:
    """Those that are played now; of players who are away none goes on."""
    return [p.session for p in self._places.values() if p.away is None]

  @property
  def taken(self) -> int:
    """Places that are taken, those kept for players who are away included."""
    return len(self._places)

  def enter(
    self,
    id: str | None,
    listener: Listener,
    evict: Callable[[str], None],
    now: float,
  ) -> tuple[Session, bool]:
    """Gives a player a place.

    Args:
      id: of the session to go on with; None for a new one.
      listener: told what is to be shown.
      evict: told why the player has to go.
      now: seconds.

    Returns:
      The session, and whether it goes on.

    Raises:
      Refusal: there is no such session, or no place.
    """
    if id is not None:
      if id not in self._places:
        raise Refusal('session: unknown, or closed; begin a new one')
      place = self._places[id]
      if place.evict:
        place.evict('this dream was opened in another window')
    else:
      if len(self._places) >= self._count:
        self._make_room()
      id = secrets.token_urlsafe(16)
      session = Session(id, self._rules, secrets.randbits(32))
      place = self._places[id] = _Place(session, now)
    place.heard, place.away, place.evict = now, None, evict
    place.session.listener = listener
    return place.session, place.session.position >= 0

  def heard(self, session: Session, now: float) -> None:
    """Notes that a player does something."""
    if session.id in self._places:
      self._places[session.id].heard = now

  def leave(
    self, session: Session, evict: Callable[[str], None], now: float
  ) -> None:
    """Notes that a player is cut off: all keys are released, the dream waits.

    Args:
      session: which one.
      evict: as given to `enter`; a player who came back elsewhere stays.
      now: seconds.
    """
    place = self._places.get(session.id)
    if place is None or place.evict is not evict:
      return
    session.hands.release_all()
    session.listener = place.evict = None
    place.away = now

  def sweep(self, now: float) -> int:
    """Closes who is silent or away for too long; returns how many."""
    closed = 0
    for id, place in [*self._places.items()]:
      silent = now - place.heard > self._silent
      gone = place.away is not None and now - place.away > self._away
      if silent or gone:
        self._close(id, f'closed: silent for {self._silent / 60:.0f} minutes')
        closed += 1
    return closed

  def _make_room(self) -> None:
    gone = {p.away: id for id, p in self._places.items() if p.away is not None}
    if not gone:
      raise Refusal(
        f'all {self._count} places are taken; try again in a few minutes'
      )
    self._close(gone[min(gone)], '')

  def _close(self, id: str, reason: str) -> None:
    place = self._places.pop(id)
    place.session.listener = None
    if place.evict:
      place.evict(reason)
