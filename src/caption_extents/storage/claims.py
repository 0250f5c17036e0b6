"""The claim of a version: one object that holds the version's state, and that is changed only by compare and swap.

Every change is a conditional write that succeeds only if the claim still has the content that was read. A run whose
write is refused has lost the version and cannot change it any more. ``docs/storage.md`` describes the states and the
guarantees.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from caption_extents.errors import StoreError
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.objects import Tag
from caption_extents.storage.store import Store

log = logging.getLogger(__name__)

CONTENT_JSON = "application/json"

RUNNING, RELEASED, COMMITTING, COMPLETE, REMOVING, REMOVED = (
    "running",
    "released",
    "committing",
    "complete",
    "removing",
    "removed",
)
STATES = (RUNNING, RELEASED, COMMITTING, COMPLETE, REMOVING, REMOVED)
"""States of a version.

``running``: a run writes it. ``released``: its run has failed, and another with the same inputs may go on.
``committing``: all of it is stored, and any run may finish the commit. ``complete``: readers see it.
``removing``: it is being removed, and no run may have it again. ``removed``: it is gone, and its number with it.
"""

BEATS_IN_A_LEASE = 4
_CLOCK_STEP_SECONDS = 1.0
"""Modification times in S3 are whole seconds."""
_PATIENCE_SECONDS = 3.0
"""A warning is logged before waits that are longer than this."""
_READS_AT_ONCE = 8


@dataclass(frozen=True)
class Claim:
    """The content of a claim.

    Attributes:
        run_id: id of the run (or of the `prune`) that changed the claim last.
        inputs: digest of everything that the version's content depends on.
        lease_seconds: time after the last change for which the run counts as alive.
        state: one of :data:`STATES`.
        beat: counter that increases with each change, so that no two contents are equal.
        stored: whether objects of the version may have been stored.
    """

    run_id: str
    inputs: str
    lease_seconds: float
    state: str = RUNNING
    beat: int = 0
    stored: bool = False

    def to_json(self) -> bytes:
        """UTF-8 JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Claim:
        """Parse a claim. A damaged claim counts as released, with objects stored.

        Raises:
            StoreError: it was written by a newer version of this package.
        """
        try:
            fields = json.loads(data)
        except ValueError:
            return cls("", "", 0.0, RELEASED, stored=True)
        try:
            claim = cls(**fields)
        except TypeError as error:
            raise StoreError(f"a claim of a newer version of this package, update it: {error}") from error
        if claim.state not in STATES:
            raise StoreError(f"a claim in state {claim.state!r}, of a newer version of this package; update it")
        return claim


@dataclass(frozen=True)
class Held:
    """A claim as it was read or written, with the tag that a conditional write of it needs."""

    version: int
    claim: Claim
    tag: Tag

    @property
    def may_live(self) -> bool:
        """Whether a run may still be working on the version: its state is ``running`` or ``committing``."""
        return self.claim.state in {RUNNING, COMMITTING}


def create_claim(store: Store, keys: VideoKeys, version: int, claim: Claim) -> Held | None:
    """Create the claim of a version; returns None if it already exists."""
    tag = store.create(keys.claim(version), claim.to_json(), CONTENT_JSON)
    return None if tag is None else Held(version, claim, tag)


def change_claim(store: Store, keys: VideoKeys, held: Held, **changes: object) -> Held | None:
    """Change a claim by compare and swap; returns None if it has changed since ``held`` was read."""
    claim = replace(held.claim, beat=held.claim.beat + 1, **changes)  # type: ignore[arg-type]
    tag = store.replace(keys.claim(held.version), claim.to_json(), held.tag, CONTENT_JSON)
    return None if tag is None else Held(held.version, claim, tag)


def read_claim(store: Store, keys: VideoKeys, version: int) -> Held | None:
    """A version's claim; None if there is none."""
    found = store.read(keys.claim(version))
    return None if found is None else Held(version, Claim.from_json(found.data), found.tag)


def read_claims(store: Store, keys: VideoKeys) -> list[Held]:
    """The claims of all versions, ascending."""
    numbers = claimed_numbers(store, keys)
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return [held for held in pool.map(lambda number: read_claim(store, keys, number), numbers) if held is not None]


def claimed_numbers(store: Store, keys: VideoKeys) -> list[int]:
    """Numbers of which there is or was a claim, ascending."""
    parts = (key.removeprefix(f"{keys.claims}/v").partition("/")[0] for key in store.keys(f"{keys.claims}/"))
    return sorted({int(part) for part in parts if part.isdecimal()})


def new_run_id() -> str:
    """A random id for a run (or a `prune`) that changes claims."""
    return uuid.uuid4().hex


def ended(store: Store, keys: VideoKeys, held: Held, wait: bool = False) -> Held | None:
    """Return the claim if no run is working on the version: by its state, or because its lease has expired.

    The age of the claim is measured by the store's clock, as the difference of the modification times of two objects,
    so that the clocks of machines need not be synchronised.

    Args:
        store: the store.
        keys: keys of the video.
        held: the claim as it was read.
        wait: if the lease has not expired, wait until it expires or the claim changes; otherwise return None at once.

    Returns:
        The claim as it was read last; None if a run may be working on the version.
    """
    told = False
    while held.may_live:
        age = _age_seconds(store, keys, keys.claim(held.version))
        if age is None:
            return None
        left = held.claim.lease_seconds + _CLOCK_STEP_SECONDS - age
        if left <= 0:
            return held
        if not wait:
            return None
        if not told and left > _PATIENCE_SECONDS:
            log.warning("waiting up to %.0f s to see whether another run of this video still lives", left)
        told = True
        time.sleep(min(left, max(0.2, held.claim.lease_seconds / BEATS_IN_A_LEASE / 2)))
        now = read_claim(store, keys, held.version)
        if now is None or (now.claim.beat != held.claim.beat and now.may_live):
            return None
        held = now
    return held


def _age_seconds(store: Store, keys: VideoKeys, key: str) -> float | None:
    """Seconds since an object was written, by the store's own clock; None if it is gone."""
    store.put(keys.clock, b"", "text/plain")
    # Read the clock object first: if the claim is written in between, its age is underestimated, which is safe.
    now, written = store.head(keys.clock), store.head(key)
    return (now.modified - written.modified).total_seconds() if now and written else None
