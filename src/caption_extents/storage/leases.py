"""Writing a version: claiming or taking over a version number, heartbeat, storing objects, and the commit.

While a run is alive, it changes its claim periodically (the heartbeat), and lists the stored chunks in a journal. A run
that fails releases its claim; a run that is killed stops changing it. The next run with the same inputs takes the
version over by changing the claim, after which the first run cannot change it any more, and stores the missing objects.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from caption_extents.errors import LeaseLostError, ProcessingError, StoreAccessError, UploadError
from caption_extents.storage.claims import (
    BEATS_IN_A_LEASE,
    COMMITTING,
    COMPLETE,
    CONTENT_JSON,
    RELEASED,
    RUNNING,
    Claim,
    Held,
    change_claim,
    claimed_numbers,
    create_claim,
    ended,
    new_run_id,
    read_claim,
    read_claims,
)
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.manifest import ChunkRecord, Manifest
from caption_extents.storage.objects import Tag
from caption_extents.storage.store import RetryPolicy, Store

log = logging.getLogger(__name__)

CONTENT_DATABASE = "application/gzip"
_MAX_CLAIM_ATTEMPTS = 1000
_COPY_SECONDS, _COPY_POLL_SECONDS = 5.0, 0.5
_CHECKS_AT_ONCE = 8

ChunkId = tuple[int, int]
"""Level and first sample."""


@dataclass(frozen=True)
class JournalEntry:
    """A chunk that was stored, and the entity tag that the store gave it."""

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
    claim = Claim(new_run_id(), inputs, lease_seconds)
    try:
        return _acquire(store, keys, claim, fresh)
    except KeyboardInterrupt:
        # It may have come when the claim was written and nobody held it yet.
        _give_back(store, keys, claim.run_id)
        raise


def _acquire(store: Store, keys: VideoKeys, claim: Claim, fresh: bool) -> VersionLease:
    if not fresh:
        for held in read_claims(store, keys):
            lease = _take_over(store, keys, held, claim)
            if lease is not None:
                return lease
    first = max([*claimed_numbers(store, keys), *_stored_numbers(store, keys)], default=0) + 1
    for version in range(first, first + _MAX_CLAIM_ATTEMPTS):
        mine = create_claim(store, keys, version, claim)
        if mine is not None:
            return VersionLease(store, keys, mine)
    raise UploadError(
        f"no version of {keys.video_id!r} could be claimed in {store.address}: {first} and on are all taken"
    )


def _give_back(store: Store, keys: VideoKeys, run_id: str) -> None:
    """Release what a run may have claimed, so that the next need not wait for its lease to run out."""
    for held in read_claims(store, keys):
        if (held.claim.run_id, held.claim.state) == (run_id, RUNNING):
            change_claim(store, keys, held, state=RELEASED)


def _take_over(store: Store, keys: VideoKeys, held: Held, claim: Claim) -> VersionLease | None:
    same = held.claim.inputs == claim.inputs
    unused = held.claim.state == RELEASED and not held.claim.stored
    if held.claim.state not in {RUNNING, RELEASED, COMMITTING}:
        return None
    if not same and not unused and held.claim.state != COMMITTING:
        return None
    dead = ended(store, keys, held, wait=same)
    if dead is None:
        return None
    if dead.claim.state == COMMITTING:
        whole = finish_commit(store, keys, dead) and same
        return VersionLease(store, keys, dead, _manifest_chunks(store, keys, dead.version)) if whole else None
    if dead.claim.state not in {RUNNING, RELEASED}:
        return None
    mine = change_claim(
        store,
        keys,
        dead,
        run_id=claim.run_id,
        inputs=claim.inputs,
        lease_seconds=claim.lease_seconds,
        state=RUNNING,
    )
    if mine is None:
        return None
    lease = VersionLease(store, keys, mine)
    lease.start_heartbeat()  # it can take a while to look at all that is there
    try:
        lease.done = _intact(store, _read_journal(store, keys, mine.version))
    except BaseException:
        lease.__exit__()
        raise
    if lease.done:
        log.warning(
            "going on with version %d, of which an earlier run has stored %d chunks", mine.version, len(lease.done)
        )
    return lease


def _stored_numbers(store: Store, keys: VideoKeys) -> list[int]:
    """Version numbers under which anything is stored, ascending."""
    begin = f"{keys.client_prefix}/cropped_frames_v"
    numbers = (prefix.removeprefix(begin) for prefix in store.prefixes(keys.client_prefix) if prefix.startswith(begin))
    return sorted(int(number) for number in numbers if number.isdecimal())


def complete_versions(store: Store, keys: VideoKeys) -> list[int]:
    """Version numbers that have a manifest, ascending."""
    return [version for version in _stored_numbers(store, keys) if store.exists(keys.manifest(version))]


def _read_journal(store: Store, keys: VideoKeys, version: int) -> list[JournalEntry]:
    entries = []
    for key in sorted(store.keys(f"{keys.claims}/v{version}/")):
        if "/journal_" in key:
            for entry in json.loads(store.get(key)):
                record = {**entry["record"], "samples": tuple(entry["record"]["samples"])}
                entries.append(JournalEntry(ChunkRecord(**record), entry["e_tag"]))
    return entries


def _manifest_chunks(store: Store, keys: VideoKeys, version: int) -> dict[ChunkId, ChunkRecord]:
    chunks = Manifest.from_json(store.get(keys.manifest(version))).chunks
    return {(record.level, record.samples[0]): record for record in chunks}


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
    there = store.read(record.key)
    return there is not None and hashlib.sha256(there.data).hexdigest() == record.sha256


def store_for_run(
    store: Store, keys: VideoKeys, version: int, run_id: str, key: str, data: bytes, content_type: str
) -> Tag:
    """Write an object of a version for the run that holds the version; returns the object's tag.

    An object that another run has stored under the key is replaced only while this run holds the version: first the
    object is read, then the claim is checked, then the object is replaced if it has not changed. If another run takes
    the version over after the check and rewrites the object, the conditional write fails.

    Raises:
        LeaseLostError: another run holds the version.
        UploadError: the object could not be written.
    """
    if not store.honours_conditions(key):
        # The bakery lock would cost eight requests per chunk, and would not exclude a suspended run either.
        _check_held(store, keys, version, run_id)
        return store.put(key, data, content_type)
    while True:
        tag = store.create(key, data, content_type)
        if tag is not None:
            return tag
        there = store.read(key)
        _check_held(store, keys, version, run_id)
        if there is not None:
            tag = store.replace(key, data, there.tag, content_type)
            if tag is not None:
                return tag


def _check_held(store: Store, keys: VideoKeys, version: int, run_id: str) -> None:
    found = read_claim(store, keys, version)
    if found is None or found.claim.run_id != run_id or found.claim.state != RUNNING:
        raise _lost_error(version)


def _lost_error(version: int, lease_seconds: float | None = None) -> LeaseLostError:
    silence = "too long" if lease_seconds is None else f"{lease_seconds:g} s"
    return LeaseLostError(
        f"version {version} was taken over by another run, or removed, because this one gave no sign of life for "
        f"{silence}. The run that has it finishes it; if it was removed, begin again"
    )


class VersionLease:
    """The lease of a version number, held by this run as long as its heartbeat continues. A context manager.

    Entering it starts the heartbeat. Readers see nothing of the version before :meth:`commit`. Leaving it without a
    commit releases the version, so that the next run can finish it.

    Args:
        store: the store.
        keys: keys of the video.
        held: the claim that this run has just written, or the claim of a version that is already complete.
        complete: all chunks of the version, if its run died after the commit was decided and this run has finished the
            commit; None for a version that is still to be written.

    Attributes:
        version: version number N.
        run_id: id of the run that holds the lease.
        done: records of chunks that an earlier run has stored, by level and first sample.
        is_complete: whether the version is already visible to readers.
    """

    def __init__(
        self, store: Store, keys: VideoKeys, held: Held, complete: dict[ChunkId, ChunkRecord] | None = None
    ) -> None:
        self.store, self.keys, self.version = store, keys, held.version
        self.run_id = held.claim.run_id
        self.done: dict[ChunkId, ChunkRecord] = complete or {}
        self.is_complete = complete is not None
        self._lease_seconds = held.claim.lease_seconds
        self._held = held
        self._claim_lock = threading.Lock()
        """Serialises changes of the claim, because each change needs the tag of the previous one."""
        self._pending: list[JournalEntry] = []
        self._pending_lock = threading.Lock()
        self._journals: list[str] = []
        self._stored = held.claim.stored
        self._lost = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> VersionLease:
        self.start_heartbeat()
        return self

    def start_heartbeat(self) -> None:
        """Start the heartbeat, if it has not started."""
        if self._thread is None and not self.is_complete:
            self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end_heartbeat()
        if self.is_complete or self._held.claim.state != RUNNING:
            return  # the commit is decided, even if the answer to the request was lost
        try:
            self._write_journal(self.store)
            self._change(self.store, state=RELEASED)
        except LeaseLostError:
            self._remove_journals(self.store)
        except StoreAccessError as error:
            # The first error is the one to report; the lease runs out by itself.
            log.warning("could not release version %d: %s", self.version, error)

    def store_chunk(self, key: str, data: bytes, content_type: str) -> str | None:
        """Write a chunk; its entity tag.

        Raises:
            LeaseLostError: another run has taken the version over.
            UploadError: it could not be written.
        """
        self._stored = True
        tag = store_for_run(self.store, self.keys, self.version, self.run_id, key, data, content_type)
        return tag.get("e_tag")

    def record(self, record: ChunkRecord, e_tag: str | None) -> None:
        """Record that a chunk was stored; the next heartbeat writes it to the journal.

        Raises:
            LeaseLostError: another run has taken the version over.
        """
        if self._lost:
            raise self._lost_error()
        with self._pending_lock:
            self._pending.append(JournalEntry(record, e_tag))
            self._stored = True

    def commit(self, manifest: Manifest, database: bytes) -> None:
        """Make the version visible, with its database, and end the lease.

        One change of the claim (to ``committing``) decides the commit. Before it nothing is visible to readers; the
        steps after it can be finished by another process if this run dies. If the version is already complete, its
        database is not replaced, because a person may have corrected it.

        Raises:
            LeaseLostError: another run has taken the version over.
            StoreAccessError: it could not be written.
        """
        if self.is_complete:
            publish_newest_database(self.store, self.keys)
            return
        store, keys, version = self.store, self.keys, self.version
        self._stored = True
        store_for_run(store, keys, version, self.run_id, keys.database(version), database, CONTENT_DATABASE)
        store.put(keys.staged_manifest(version, self.run_id), manifest.to_json(), CONTENT_JSON)
        self._change(store, state=COMMITTING)
        self.is_complete = True
        self._end_heartbeat()
        if not finish_commit(store, keys, self._held):
            raise ProcessingError(f"version {version} of {keys.video_id!r} was complete, and has been removed since")

    def _end_heartbeat(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _keep_alive(self) -> None:
        # Limit the retries of one heartbeat to half a lease, so that a hanging request leaves time for the next one.
        store = self.store.with_retry(RetryPolicy(seconds=self._lease_seconds / 2))
        while not self._stop.wait(self._lease_seconds / BEATS_IN_A_LEASE):
            try:
                self._write_journal(store)
                self._change(store)
            except LeaseLostError:
                return
            except Exception as error:
                # Only log it: uploads report store errors, and after a takeover the next change of the claim fails.
                log.warning("heartbeat of version %d failed: %s", self.version, error)

    def _change(self, store: Store, **changes: object) -> None:
        """Change the claim.

        Raises:
            LeaseLostError: it is another run's.
        """
        with self._claim_lock:
            if self._lost:
                raise self._lost_error()
            held = change_claim(store, self.keys, self._held, stored=self._stored, **changes)
            there = read_claim(store, self.keys, self.version) if held is None else None
            if there is not None and (there.claim.run_id, there.claim.state) == (self.run_id, RUNNING):
                # The claim is still this run's: an earlier change succeeded although its response was lost.
                held = change_claim(store, self.keys, there, stored=self._stored, **changes)
            if held is None:
                self._lost = True
                raise self._lost_error()
            self._held = held

    def _lost_error(self) -> LeaseLostError:
        return _lost_error(self.version, self._lease_seconds)

    def _write_journal(self, store: Store) -> None:
        with self._pending_lock:
            entries, self._pending = self._pending, []
        if entries:
            key = self.keys.journal(self.version, self.run_id, len(self._journals) + 1)
            try:
                store.put(key, json.dumps([asdict(entry) for entry in entries]).encode(), CONTENT_JSON)
            except BaseException:
                with self._pending_lock:
                    self._pending = entries + self._pending
                raise
            self._journals.append(key)

    def _remove_journals(self, store: Store) -> None:
        """Remove journals that this run wrote after it had lost the version: no run reads them."""
        try:
            store.delete(self._journals)
        except StoreAccessError as error:
            log.warning("could not remove the journal of version %d: %s", self.version, error)


def finish_commit(store: Store, keys: VideoKeys, held: Held) -> bool:
    """Finish a commit that is decided. Any run may do it once the committing run has died; it is idempotent.

    Returns:
        False if the version has been removed since.

    Raises:
        StoreAccessError: something could not be written.
    """
    version = held.version
    staged = keys.staged_manifest(version, held.claim.run_id)
    store.publish(staged, keys.manifest(version))
    # Some services copy asynchronously: wait until the manifest exists before deleting the staged one.
    if not _appears(store, keys.manifest(version)):
        return False
    publish_newest_database(store, keys)
    # Packed samples, of this run or of one before it that died.
    store.delete_below(f"{keys.segments(version)}/")
    sweep(store, keys, version)
    store.delete([key for key in store.keys(f"{keys.claims}/v{version}/") if key != keys.claim(version)])
    change_claim(store, keys, held, state=COMPLETE)
    return True


def sweep(store: Store, keys: VideoKeys, version: int) -> None:
    """In a folder store, delete temporary files of a version that were left by killed writers."""
    for prefix in (keys.cropped_frames(version), keys.segments(version), keys.server_prefix):
        store.remove_leftovers(prefix)


def _appears(store: Store, key: str) -> bool:
    deadline = time.monotonic() + _COPY_SECONDS
    while not store.exists(key):
        if time.monotonic() > deadline:
            return False
        time.sleep(_COPY_POLL_SECONDS)
    return True


def publish_newest_database(store: Store, keys: VideoKeys) -> None:
    """Make the newest complete version's database the newest database; several runs may do so at once.

    Raises:
        StoreAccessError: it could not be written.
    """
    key = keys.database()
    while True:
        there = store.read(
            key
        )  # before reading what it is to become: a run with newer data replaces what was read here
        versions = complete_versions(store, keys)
        newest = store.read(keys.database(versions[-1])) if versions else None
        if newest is None:
            if complete_versions(store, keys) == versions:
                return  # all are removed, or a database was lost
            continue
        if there is not None and there.data == newest.data:
            return
        if there is None:
            done = store.create(key, newest.data, CONTENT_DATABASE)
        else:
            done = store.replace(key, newest.data, there.tag, CONTENT_DATABASE)
        if done is not None:
            return
