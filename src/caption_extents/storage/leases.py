"""Who writes which version: claims with a heartbeat, a journal of what is done, and taking over from the dead.

A version number is claimed by creating ``claims/v{N}/0001.json``, which only one run can do. While the run lives it
writes the claim again and again, each time with a higher beat, and appends what it has stored to a journal. A run that
ends without finishing marks its claim as released; one that is killed stops beating. The next run with the same inputs
takes such a version over by creating the claim's next generation, checks what the journal names, and does the rest.

Time is always the store's: a claim's age is the difference of two objects' modification times, so that clocks of
different machines need not agree.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from caption_extents.errors import LeaseLostError, StoreAccessError, StoreError, UploadError
from caption_extents.storage.exclusive import create_exclusive, probe_key
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.manifest import ChunkRecord, Manifest
from caption_extents.storage.store import Store

log = logging.getLogger(__name__)

CONTENT_JSON = "application/json"

_BEATS_IN_A_LEASE = 4
_CLOCK_STEP_SECONDS = 1.0
"""Modification times in S3 are whole seconds."""
_MAX_CLAIM_ATTEMPTS = 1000
_CHECKS_AT_ONCE = 8

ChunkId = tuple[int, int]
"""Level and first sample."""


@dataclass(frozen=True)
class Claim:
    """The content of a claim.

    Attributes:
        run_id: who claims.
        inputs: digest of everything that the version's content depends on.
        lease_seconds: how long after its last beat the run counts as alive.
        beat: grows while the run lives.
        released: the run has ended without finishing.
    """

    run_id: str
    inputs: str
    lease_seconds: float
    beat: int = 0
    released: bool = False

    def to_json(self) -> bytes:
        """UTF-8 JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Claim:
        """Read a claim.

        Raises:
            StoreError: it is damaged.
        """
        try:
            return cls(**json.loads(data))
        except (TypeError, ValueError) as error:
            raise StoreError(f"damaged claim: {error}") from error


_PATIENCE_SECONDS = 3.0
"""Longer waits are spoken of."""


@dataclass(frozen=True)
class JournalEntry:
    """A chunk that was stored, and the tag that the store gave it."""

    record: ChunkRecord
    e_tag: str | None


def acquire_version(
    store: Store,
    keys: VideoKeys,
    inputs: str,
    *,
    fresh: bool = False,
    lease_seconds: float = 12.0,
) -> VersionLease:
    """Take over the unfinished version of a dead run with the same inputs, or claim a new number.

    Args:
        store: where.
        keys: of the video.
        inputs: digest of what the version's content depends on.
        fresh: claim a new number in any case.
        lease_seconds: how long this run counts as alive after its last heartbeat.

    Raises:
        StoreAccessError: the store does not answer, or cannot be written to.
    """
    run_id = uuid.uuid4().hex
    claim = Claim(run_id, inputs, lease_seconds)
    if not fresh:
        for version in claimed_versions(store, keys):
            lease = _take_over(store, keys, version, claim)
            if lease is not None:
                return lease
    first = max([*claimed_versions(store, keys), *complete_versions(store, keys)], default=0) + 1
    for version in range(first, first + _MAX_CLAIM_ATTEMPTS):
        if _create_claim(store, keys, version, 1, claim):
            if not store.exists(keys.manifest(version)):
                return VersionLease(store, keys, version, 1, claim)
            # The number was free when it was looked for, but its run has finished since and removed its claim.
            store.delete([keys.claim(version, 1)])
    raise UploadError(
        f"no version of {keys.video_id!r} could be claimed in {store.address}: {first} and on are all taken"
    )


def _create_claim(store: Store, keys: VideoKeys, version: int, generation: int, claim: Claim) -> bool:
    key = keys.claim(version, generation)
    return create_exclusive(store, key, claim.to_json(), doorway=keys.doorway, token=claim.run_id)


def shared_objects(keys: VideoKeys) -> list[str]:
    """What runs, also killed ones, leave for each other; anybody may remove it, for who misses it writes it again."""
    return [probe_key(keys.doorway), keys.clock]


def _take_over(store: Store, keys: VideoKeys, version: int, claim: Claim) -> VersionLease | None:
    found = latest_claim(store, keys, version)
    if found is None:
        return None
    generation, other = found
    if other.inputs != claim.inputs or not is_dead(store, keys, version, generation, other):
        return None
    if not _create_claim(store, keys, version, generation + 1, claim):
        return None
    if not store.exists(keys.claim(version, generation)):
        # It was finished, and its claims removed, since it was looked at.
        store.delete([keys.claim(version, generation + 1)])
        return None
    lease = VersionLease(store, keys, version, generation + 1, claim)
    lease.start_heartbeat()  # it can take a while to look at all that is there
    try:
        stored = [*_read_manifest(store, keys, version), *_read_journal(store, keys, version)]
        lease.done = _intact(store, stored)
        lease.is_complete = store.exists(keys.manifest(version))
    except BaseException:
        lease.__exit__()
        raise
    log.info("taking over version %d of run %s with %d chunks done", version, other.run_id, len(lease.done))
    return lease


def claimed_versions(store: Store, keys: VideoKeys) -> list[int]:
    """Version numbers with a claim, ascending."""
    parts = (key.removeprefix(f"{keys.claims}/v").partition("/")[0] for key in store.keys(f"{keys.claims}/"))
    return sorted({int(part) for part in parts if part.isdecimal()})


def complete_versions(store: Store, keys: VideoKeys) -> list[int]:
    """Version numbers that have a manifest, ascending."""
    begin = f"{keys.client_prefix}/cropped_frames_v"
    numbers = (prefix.removeprefix(begin) for prefix in store.prefixes(keys.client_prefix) if prefix.startswith(begin))
    found = sorted(int(number) for number in numbers if number.isdecimal())
    return [version for version in found if store.exists(keys.manifest(version))]


def latest_claim(store: Store, keys: VideoKeys, version: int) -> tuple[int, Claim] | None:
    """The last generation of a version's claim; None if it is gone, or damaged."""
    names = (key.rsplit("/", 1)[1] for key in store.keys(f"{keys.claims}/v{version}/"))
    generations = [int(name[:4]) for name in names if name[:4].isdecimal() and name[4:] == ".json"]
    if not generations:
        return None
    try:
        return max(generations), Claim.from_json(store.get(keys.claim(version, max(generations))))
    except StoreError:
        return None


def is_dead(store: Store, keys: VideoKeys, version: int, generation: int, claim: Claim, wait: bool = True) -> bool:
    """Whether the run behind a claim has ended: it says so, or its heartbeat has stopped for longer than its lease.

    With ``wait``, waits until the lease is over or a heartbeat is seen; without, a lease that is not over counts as
    alive.
    """
    key, told = keys.claim(version, generation), False
    while not claim.released:
        age = _age_seconds(store, keys, key)
        if age is None:
            return False
        left = claim.lease_seconds + _CLOCK_STEP_SECONDS - age
        if left <= 0:
            return True
        if not wait:
            return False
        if not told and left > _PATIENCE_SECONDS:
            log.warning("waiting up to %.0f s to see whether another run of this video still lives", left)
        told = True
        time.sleep(min(left, max(0.2, claim.lease_seconds / _BEATS_IN_A_LEASE / 2)))
        found = latest_claim(store, keys, version)
        if found is None or found[0] != generation or (found[1].beat != claim.beat and not found[1].released):
            return False
        claim = found[1]
    return True


def _age_seconds(store: Store, keys: VideoKeys, key: str) -> float | None:
    """Seconds since an object was written, by the store's own clock; None if it is gone."""
    now = None
    while now is None:
        store.put(keys.clock, b"", "text/plain")
        # Gone again only if another run has just read it, or finished and cleaned up.
        now = store.head(keys.clock)
    store.delete([keys.clock])
    written = store.head(key)
    return (now.last_modified - written.last_modified).total_seconds() if written else None


def _read_journal(store: Store, keys: VideoKeys, version: int) -> Iterator[JournalEntry]:
    for key in sorted(store.keys(f"{keys.claims}/v{version}/")):
        if "/journal_" in key:
            for entry in json.loads(store.get(key)):
                record = {**entry["record"], "samples": tuple(entry["record"]["samples"])}
                yield JournalEntry(ChunkRecord(**record), entry["e_tag"])


def _read_manifest(store: Store, keys: VideoKeys, version: int) -> Iterator[JournalEntry]:
    """What a run had stored that was killed after it was done, but before its claim was removed."""
    if store.exists(keys.manifest(version)):
        for record in Manifest.from_json(store.get(keys.manifest(version))).chunks:
            yield JournalEntry(record, None)


def _intact(store: Store, entries: Iterable[JournalEntry]) -> dict[ChunkId, ChunkRecord]:
    """Chunks that are in the store as the journal says, checked by size and checksum."""
    latest = {(entry.record.level, entry.record.samples[0]): entry for entry in entries}
    with ThreadPoolExecutor(_CHECKS_AT_ONCE) as pool:
        intact = pool.map(lambda entry: _is_intact(store, entry), latest.values())
        return {chunk: entry.record for (chunk, entry), good in zip(latest.items(), intact, strict=True) if good}


def _is_intact(store: Store, entry: JournalEntry) -> bool:
    record, facts = entry.record, store.head(entry.record.key)
    if facts is None or facts.size_bytes != record.size_bytes:
        return False
    if store.folder is None and entry.e_tag is not None and facts.e_tag == entry.e_tag:
        # A tag changes with the content, and this one was given to bytes that had been verified.
        return True
    return hashlib.sha256(store.get(record.key)).hexdigest() == record.sha256


@dataclass
class VersionLease:
    """A version number that belongs to this run, while it lives.

    Entering starts the heartbeat. Nothing is visible to readers before :meth:`commit`. Leaving without it releases the
    version for a next run to finish, or gives the number back if nothing was stored.

    Attributes:
        version: N.
        done: chunks that an earlier run has stored.
        is_complete: whether that run had made all of it visible, and died before it was over.
    """

    store: Store
    keys: VideoKeys
    version: int
    generation: int
    claim: Claim
    done: dict[ChunkId, ChunkRecord] = field(default_factory=dict)
    is_complete: bool = False
    _pending: list[JournalEntry] = field(default_factory=list)
    _journals: int = 0
    _beat: int = 0
    _stored: bool = False
    _finished: bool = False
    _lost: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def run_id(self) -> str:
        """The run that holds the lease."""
        return self.claim.run_id

    def __enter__(self) -> VersionLease:
        self.start_heartbeat()
        return self

    def start_heartbeat(self) -> None:
        """Start the heartbeat, if it has not started."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if not self._finished and not self._lost:
            try:
                self._release()
            except StoreAccessError as error:
                # The first error is the one to report; the lease runs out by itself.
                log.warning("could not release version %d: %s", self.version, error)

    def record(self, record: ChunkRecord, e_tag: str | None) -> None:
        """Remember that a chunk was stored; it is in the journal with the next heartbeat.

        Raises:
            LeaseLostError: another run has taken the version over.
        """
        if self._lost:
            raise self._lost_error()
        with self._lock:
            self._pending.append(JournalEntry(record, e_tag))
            self._stored = True

    def commit(self, manifest: Manifest, database: bytes) -> None:
        """Make the version visible: its database, then the manifest, then the newest database; then end the lease.

        What was visible before stays as it is: a person may have corrected it.

        Raises:
            LeaseLostError: another run has taken the version over.
            StoreAccessError: it could not be written.
        """
        keys, store = self.keys, self.store
        if not self.is_complete:
            self._check_held()
            store.put(keys.database(self.version), database, "application/gzip")
            self._check_held()
            store.put(keys.manifest(self.version), manifest.to_json(), CONTENT_JSON)
        publish_newest_database(store, keys)
        self._stop.set()
        self._finished = True
        if self._thread is not None:
            self._thread.join()
        try:
            self._clean_up()
        except StoreAccessError as error:
            log.warning("version %d is complete, but not cleaned up: %s", self.version, error)

    def _lost_error(self) -> LeaseLostError:
        return LeaseLostError(
            f"version {self.version} was taken over by another run, because this one gave no sign of life for "
            f"{self.claim.lease_seconds:g} s; start again, or raise the lease time"
        )

    def _check_held(self) -> None:
        """Raise a LeaseLostError if the version's newest claim is not this run's."""
        found = latest_claim(self.store, self.keys, self.version)
        if found is None or found[0] != self.generation or found[1].run_id != self.run_id:
            self._lost = True
            raise self._lost_error()

    def _clean_up(self) -> None:
        """Remove what only an unfinished version needs.

        Claims go last, the newest last of all: a run killed in the midst of this leaves its claim, so that the next one
        takes the version over, finds all of it done, and cleans up again.
        """
        keys, store = self.keys, self.store
        # Packed samples, of this run or of one before it that died.
        store.delete_below(f"{keys.segments(self.version)}/")
        if self.generation > 1:
            for prefix in (keys.cropped_frames(self.version), keys.server_prefix, keys.segments(self.version)):
                store.remove_leftovers(prefix)
        left = sorted(key for key in store.keys(f"{keys.claims}/v{self.version}/") if self._is_old(key))
        journals = [key for key in left if "/journal_" in key]
        store.delete([*shared_objects(keys), *journals, *(key for key in left if key not in journals)])

    def _is_old(self, key: str) -> bool:
        """Whether a key below the version's claims is of this run, or of one before it."""
        generation = key.rsplit("/", 1)[1].removeprefix("journal_")[:4]
        return not generation.isdecimal() or int(generation) <= self.generation

    def _keep_alive(self) -> None:
        while not self._stop.wait(self.claim.lease_seconds / _BEATS_IN_A_LEASE):
            try:
                self._check_held()
                self._write_journal()
                self._beat += 1
                self._write_claim(released=False)
            except LeaseLostError:
                return
            except StoreAccessError as error:
                # Uploads meet the same store, and report it.
                log.warning("heartbeat of version %d failed: %s", self.version, error)

    def _write_claim(self, released: bool) -> None:
        claim = Claim(self.claim.run_id, self.claim.inputs, self.claim.lease_seconds, self._beat, released)
        self.store.put(self.keys.claim(self.version, self.generation), claim.to_json(), CONTENT_JSON)

    def _write_journal(self) -> None:
        with self._lock:
            entries, self._pending = self._pending, []
        if entries:
            self._journals += 1
            key = f"{self.keys.claims}/v{self.version}/journal_{self.generation:04d}_{self._journals:06d}.json"
            try:
                self.store.put(key, json.dumps([asdict(entry) for entry in entries]).encode(), CONTENT_JSON)
            except StoreAccessError:
                with self._lock:
                    self._pending = entries + self._pending
                raise

    def _release(self) -> None:
        if self._stored or self.done or self.generation > 1:
            self._write_journal()
            self._write_claim(released=True)
        else:
            self.store.delete([*shared_objects(self.keys), self.keys.claim(self.version, self.generation)])


def publish_newest_database(store: Store, keys: VideoKeys) -> None:
    """Let the newest complete version's database be the newest database, whoever else does the same at once."""
    published = 0
    while published != (newest := complete_versions(store, keys)[-1]):
        store.put(keys.database(), store.get(keys.database(newest)), "application/gzip")
        published = newest
