"""Creating an object that only one of several writers may create, in any store.

Stores that honour conditional writes do it in one request. For those that ignore them there is Lamport's bakery
algorithm (Lamport, 1974), which needs no more than that a listing shows what was written before it: a writer announces
that it is choosing, takes a ticket with a number above all that it sees, waits until nobody who announced before is
still choosing, and has won if no ticket is lower and the object is not there yet. It costs about eight requests.
"""

from __future__ import annotations

import hashlib
import time

from caption_extents.errors import StoreAccessError
from caption_extents.storage.store import Store

_POLL_SECONDS = 0.05
_CHOOSING_LIMIT_SECONDS = 120.0
"""Choosing is two requests; whoever has announced it for longer than this has died, and is passed over."""


def create_exclusive(store: Store, key: str, data: bytes, *, doorway: str, token: str) -> bool:
    """Create ``key`` if nobody else does.

    Args:
        store: any store.
        key: of the object.
        data: must differ from that of all other writers.
        doorway: a prefix for tickets, and for the object that shows what the store honours.
        token: identifies this writer.

    Returns:
        False if the object is there already, or another writer was first.

    Raises:
        StoreAccessError: the store does not answer.
    """
    if store.honours_conditions(probe_key(doorway)):
        return store.create(key, data, "application/json")
    return _by_bakery(store, key, data, doorway, token)


def probe_key(doorway: str) -> str:
    """Of the object that shows whether the store honours conditional writes; it stays until somebody removes it."""
    return f"{doorway}/probe"


def _by_bakery(store: Store, key: str, data: bytes, doorway: str, token: str) -> bool:
    room = f"{doorway}/{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    choosing = f"{room}/choosing-{token}"
    ticket = ""
    try:
        store.put(choosing, b"", "text/plain")
        number = max((number for number, _ in _tickets(store, room)), default=0) + 1
        ticket = f"{room}/ticket-{number:06d}-{token}"
        store.put(ticket, b"", "text/plain")
        store.delete([choosing])
        _wait_for_choosers(store, room)
        if min(_tickets(store, room)) != (number, token) or store.exists(key):
            return False
        store.put(key, data, "application/json")
        return True
    finally:
        # The ticket goes last: who comes later sees either it or the object.
        store.delete([choosing, *([ticket] if ticket else [])])


def _tickets(store: Store, room: str) -> list[tuple[int, str]]:
    names = (key.removeprefix(f"{room}/ticket-") for key in store.keys(f"{room}/") if "/ticket-" in key)
    return [(int(number), token) for number, _, token in (name.partition("-") for name in names)]


def _wait_for_choosers(store: Store, room: str) -> None:
    choosing = {key for key in store.keys(f"{room}/") if "/choosing-" in key}
    deadline = time.monotonic() + _CHOOSING_LIMIT_SECONDS
    while choosing:
        if time.monotonic() > deadline:
            store.delete(sorted(choosing))
            return
        time.sleep(_POLL_SECONDS)
        try:
            choosing &= set(store.keys(f"{room}/"))
        except StoreAccessError:
            if time.monotonic() > deadline:
                raise
