"""Mutual exclusion on a store without conditional writes: Lamport's bakery algorithm.

It requires that a listing contains all objects written before it. It is used for stores that ignore conditional writes
(some gateways, folders without locks). A process announces that it is choosing a ticket, takes a ticket with a number
above all tickets that it sees, waits until no process that announced earlier is still choosing, and enters the critical
section when its ticket is the lowest. This takes about eight requests. (L. Lamport, "A New Solution of Dijkstra's
Concurrent Programming Problem", 1974.)

Limitation: a process that is suspended for longer than :data:`STALE_SECONDS` in the critical section counts as dead,
and does not notice this when it continues.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from caption_extents.errors import StoreAccessError

if TYPE_CHECKING:
    from caption_extents.storage.store import Store

STALE_SECONDS = 10.0
"""The critical section takes a few requests: a process that is first in line for longer than this counts as dead, and
its ticket is removed."""

_WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, order=True)
class _Ticket:
    number: int
    token: str
    key: str


class Bakery:
    """The lock as seen by one process."""

    def __init__(self) -> None:
        self._left_behind = set[str]()
        """Tickets that could not be removed on release; they are removed later, or this process would wait for them."""

    @contextmanager
    def alone(self, store: Store, key: str) -> Iterator[Callable[[], None]]:
        """A critical section that only one process at a time can enter for a key.

        Yields:
            A function that raises StoreAccessError if another process has declared this one dead.

        Raises:
            StoreAccessError: the store does not answer, or others do not come out.
        """
        tenant, token = key.partition("/")[0], uuid.uuid4().hex
        room = f"{tenant}/temporary/conditions/{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        choosing, ticket = f"{room}/choosing-{token}", ""
        self._remove(store, list(self._left_behind))
        try:
            store.put(choosing, b"", "text/plain")
            number = max((ticket.number for ticket in _tickets(room, store.keys(f"{room}/"))), default=0) + 1
            ticket = f"{room}/ticket-{number:06d}-{token}"
            store.put(ticket, b"", "text/plain")
            store.delete([choosing])
            _wait_for_turn(store, room, token, key)

            def check() -> None:
                if not store.exists(ticket):
                    raise _lost_turn_error(key)

            yield check
        finally:
            self._remove(store, [choosing, *([ticket] if ticket else [])])

    def _remove(self, store: Store, keys: list[str]) -> None:
        if keys:
            self._left_behind.update(keys)
            store.delete(keys)
            self._left_behind.difference_update(keys)


def _wait_for_turn(store: Store, room: str, token: str, key: str) -> None:
    started = time.monotonic()
    choosing = {other for other in store.keys(f"{room}/") if "/choosing-" in other}
    ahead, since = "", started
    while True:
        there = store.keys(f"{room}/")
        tickets = _tickets(room, there)
        if token not in {ticket.token for ticket in tickets}:
            raise _lost_turn_error(key)
        if choosing:
            choosing &= set(there)
            if not choosing:
                # A listing need not be a snapshot: only the next one surely contains the tickets of those processes.
                continue
        elif tickets[0].token == token:
            return
        now, first = time.monotonic(), min(choosing, default=tickets[0].key)
        if first != ahead:
            ahead, since = first, now
        elif now - since > STALE_SECONDS:
            store.delete([first])
        if now - started > _WAIT_SECONDS:
            raise StoreAccessError(f"{key!r} is kept by other processes; end those that are stopped")
        time.sleep(_POLL_SECONDS)


def _lost_turn_error(key: str) -> StoreAccessError:
    return StoreAccessError(f"{key!r} could not be written alone: this process, or a request, stood still for too long")


def _tickets(room: str, there: list[str]) -> list[_Ticket]:
    """The tickets among some keys, the lowest first."""
    found = []
    for key in there:
        if key.startswith(f"{room}/ticket-"):
            number, _, token = key.removeprefix(f"{room}/ticket-").partition("-")
            found.append(_Ticket(int(number), token, key))
    return sorted(found)
