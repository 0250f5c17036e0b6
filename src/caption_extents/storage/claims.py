"""The claim of a version: one object that says what becomes of it, and that changes only from a known content.

Every change is a conditional write over the content that was read (compare and swap). A run whose write is refused has
lost the version; nothing that it does afterwards can change it. ``docs/storage.md`` has the states and what each
promises.
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
"""What becomes of a version.

``running``: a run writes it. ``released``: its run has failed, and another with the same inputs may go on.
``committing``: all of it is stored, and any run may finish the commit. ``complete``: readers see it.
``removing``: it is being removed, and no run may have it again. ``removed``: it is gone, and its number with it.
"""

BEATS_IN_A_LEASE = 4
_CLOCK_STEP_SECONDS = 1.0
"""Modification times in S3 are whole seconds."""
_PATIENCE_SECONDS = 3.0
"""Longer waits are spoken of."""
_READS_AT_ONCE = 8


@dataclass(frozen=True)
class Claim:
    """The content of a claim.

    Attributes:
        run_id: who has changed it last.
        inputs: digest of everything that the version's content depends on.
        lease_seconds: how long after its last change a run counts as alive.
        state: one of :data:`STATES`.
        beat: grows with each change, so that no two contents are equal.
        stored: whether anything of the version may be stored.
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
        """Read a claim. A damaged one counts as released, with things stored.

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
    """A claim as it was read or written, and what is needed to change just that."""

    version: int
    claim: Claim
    tag: Tag

    @property
    def may_live(self) -> bool:
        """Whether a run may be at work on it."""
        return self.claim.state in {RUNNING, COMMITTING}


def create_claim(store: Store, keys: VideoKeys, version: int, claim: Claim) -> Held | None:
    """The first claim of a version; None if there is one."""
    tag = store.create(keys.claim(version), claim.to_json(), CONTENT_JSON)
    return None if tag is None else Held(version, claim, tag)


def change_claim(store: Store, keys: VideoKeys, held: Held, **changes: object) -> Held | None:
    """The claim with changes; None if it is not any more what ``held`` says."""
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
    """Who changes claims."""
    return uuid.uuid4().hex


def ended(store: Store, keys: VideoKeys, held: Held, wait: bool = False) -> Held | None:
    """The claim if no run is at work on it any more: it says so, or has not changed for longer than its lease.

    Time is the store's: the difference of two objects' modification times, so that clocks need not agree.

    Args:
        store: where.
        keys: of the video.
        held: the claim as it was read.
        wait: wait until the lease is over, or until the claim changes; without, a lease that is not over counts.
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
    # In this order: what is written between the two is younger than it seems.
    now, written = store.head(keys.clock), store.head(key)
    return (now.modified - written.modified).total_seconds() if now and written else None
