"""Listing, reading, changing and removing versions of a video."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from caption_extents.chunks.encode import decode_chunk
from caption_extents.chunks.plan import chunk_of
from caption_extents.errors import InputError, StoreAccessError, StoreError, UploadError
from caption_extents.samples import Planes
from caption_extents.storage.claims import (
    COMMITTING,
    COMPLETE,
    REMOVED,
    REMOVING,
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
from caption_extents.storage.leases import (
    CONTENT_DATABASE,
    complete_versions,
    finish_commit,
    publish_newest_database,
    sweep,
)
from caption_extents.storage.manifest import Manifest
from caption_extents.storage.store import Store

ABANDONED, UNFINISHED = "abandoned", "unfinished"
_SERVER_OBJECT = re.compile(r"claims/v(\d+)/|caption_frame_extents_v(\d+)\.db\.gz")


def read_manifest(store: Store, keys: VideoKeys, version: int | None = None) -> Manifest:
    """The manifest of a version, by default the newest complete one.

    Raises:
        StoreError: there is no such complete version.
    """
    found = newest_manifest(store, keys) if version is None else _manifest(store, keys, version)
    if found is not None:
        return found
    if version is None:
        check_video(store, keys)
        raise StoreError(
            f"{store.address} has no complete version of video {keys.video_id!r} of tenant {keys.tenant_id!r}"
        )
    check_video(store, keys)
    there = ", ".join(map(str, complete_versions(store, keys))) or "none"
    raise StoreError(f"video {keys.video_id!r} has no complete version {version}; complete are {there}")


def check_video(store: Store, keys: VideoKeys) -> None:
    """Raise a StoreError that names similar videos, if no version of this one was ever begun."""
    if claimed_numbers(store, keys) or complete_versions(store, keys):
        return
    folder = keys.client_prefix.removesuffix(keys.video_id)
    there: list[str] = []
    with suppress(StoreAccessError):  # a user may have no right to list the videos of others
        there = [prefix.rstrip("/").rpartition("/")[2] for prefix in store.prefixes(folder.rstrip("/"))]
    if store.folder is not None and not store.folder.exists():
        raise StoreError(f"there is no store {store.address!r}; give the one that the run wrote to: `store`")
    similar = ", ".join(map(repr, difflib.get_close_matches(keys.video_id, there, cutoff=0.5)))
    advice = f"; did you mean {similar}?" if similar else ""
    raise StoreError(f"{store.address} has no versions of video {keys.video_id!r} of tenant {keys.tenant_id!r}{advice}")


def newest_manifest(store: Store, keys: VideoKeys) -> Manifest | None:
    """The manifest of the newest complete version; None if there is none."""
    versions = complete_versions(store, keys)
    return _manifest(store, keys, versions[-1]) if versions else None


def _manifest(store: Store, keys: VideoKeys, version: int) -> Manifest | None:
    found = store.read(keys.manifest(version))
    return None if found is None else Manifest.from_json(found.data)


@dataclass(frozen=True)
class VersionState:
    """A version as it stands in the store.

    Attributes:
        version: version number N.
        state: ``complete``; ``running``; ``abandoned`` (its run has died or failed, and a run with the same inputs can
            continue it); ``removed`` (deleted, but a delayed run has stored objects since); ``unfinished`` (running or
            abandoned, which cannot be distinguished without write access to the store).
        chunk_count: number of chunks that are stored.
        run_id: id of the run that wrote the version last; empty if unknown.
        source: path or key of the source video as given to the run; empty if the version is not complete.
        source_fingerprint: fingerprint of the source's content; empty if the version is not complete.
    """

    version: int
    state: str
    chunk_count: int
    run_id: str
    source: str = ""
    source_fingerprint: str = ""


def change_database(store: Store, keys: VideoKeys, version: int, change: Callable[[bytes], bytes]) -> None:
    """Change a complete version's database, and the newest database if this version is the newest.

    Args:
        store: where.
        keys: of the video.
        version: N.
        change: called with the database as it is; again with a newer one if another process has changed it meanwhile.

    Raises:
        StoreError: there is no such version.
        UploadError: it could not be written; what was there before is still there.
    """
    key = keys.database(version)
    while True:
        there = store.read(key)
        if there is None:
            raise StoreError(f"video {keys.video_id!r} has no complete version {version}: it was removed")
        data = change(there.data)
        if data == there.data or store.replace(key, data, there.tag, CONTENT_DATABASE):
            break
    publish_newest_database(store, keys)


def list_versions(store: Store, keys: VideoKeys) -> list[VersionState]:
    """All versions of a video, ascending."""
    prefix = f"{keys.client_prefix}/cropped_frames_v"
    counts: dict[int, int] = {}
    for key in store.keys(f"{keys.client_prefix}/"):
        number, _, rest = key.removeprefix(prefix).partition("/")
        if key.startswith(prefix) and number.isdecimal():
            counts[int(number)] = counts.get(int(number), 0) + rest.endswith(".webm")
    claims = {held.version: held for held in read_claims(store, keys)}
    left = _versions_with_leftovers(store, keys)
    numbers = sorted({*counts, *(n for n, held in claims.items() if held.claim.state != REMOVED or n in left)})
    return [_state(store, keys, number, claims.get(number), counts.get(number, 0)) for number in numbers]


def _versions_with_leftovers(store: Store, keys: VideoKeys) -> set[int]:
    """Versions with objects below the server prefix other than their claim; may include removed versions."""
    found = set()
    for key in store.keys(f"{keys.server_prefix}/"):
        name = key.removeprefix(f"{keys.server_prefix}/")
        number = _SERVER_OBJECT.match(name)
        if number is not None and not name.endswith("/claim.json"):
            found.add(int(number[1] or number[2]))
    return found


def _state(store: Store, keys: VideoKeys, version: int, held: Held | None, chunk_count: int) -> VersionState:
    manifest = _manifest(store, keys, version)
    if manifest is not None:
        source = manifest.source
        return VersionState(version, COMPLETE, chunk_count, manifest.run_id, source.key, source.fingerprint)
    if held is None:
        return VersionState(version, ABANDONED, chunk_count, "")
    return VersionState(version, _unfinished_state(store, keys, held), chunk_count, held.claim.run_id)


def _unfinished_state(store: Store, keys: VideoKeys, held: Held) -> str:
    if held.claim.state in {REMOVING, REMOVED}:
        return REMOVED
    if not held.may_live:
        return ABANDONED
    try:
        return RUNNING if ended(store, keys, held) is None else ABANDONED
    except UploadError:
        return UNFINISHED


def prunable_versions(store: Store, keys: VideoKeys, keep: int | None = None) -> list[VersionState]:
    """Abandoned versions, what is left of removed ones, and complete ones but for the newest ``keep`` of each source.

    None of them is being written.

    A commit that is decided, and whose run has died, is finished first.

    Raises:
        InputError: ``keep`` is below 1.
    """
    if keep is not None and keep < 1:
        raise InputError(f"keep is {keep}; at least one complete version must stay")
    for held in read_claims(store, keys):
        with suppress(UploadError):  # where nothing may be written, nothing is to be removed either
            if held.claim.state == COMMITTING and (dead := ended(store, keys, held)) is not None:
                finish_commit(store, keys, dead)
    states = list_versions(store, keys)
    old: list[VersionState] = []
    # Files of one name may share an id: the newest versions of each stay.
    for fingerprint in {state.source_fingerprint for state in states}:
        of_file = [s for s in states if s.state == COMPLETE and s.source_fingerprint == fingerprint]
        old += of_file[:-keep] if keep is not None else []
    return [state for state in states if state.state in {ABANDONED, REMOVED} or state in old]


def remove_version(store: Store, keys: VideoKeys, version: int, expected: str | None = None) -> int:
    """Remove all objects of a version, the manifest first, so that no reader meets half of it; how many there were.

    Its claim stays, and says that it was removed.

    Args:
        store: where.
        keys: of the video.
        version: N.
        expected: the state that it was seen in.

    Raises:
        StoreError: a run writes it, or has finished it since.
    """
    held = _claim_for_removal(store, keys, version, expected)
    claim = keys.claim(version)
    # Delete staged manifests first, so that a run that was suspended during its commit cannot publish one afterwards.
    staged = [key for key in store.keys(f"{keys.claims}/v{version}/") if key != claim]
    frames = sorted(store.keys(f"{keys.cropped_frames(version)}/"), key=lambda key: not key.endswith("/manifest.json"))
    others = [key for key in [keys.database(version)] if store.exists(key)]
    objects = [*staged, *frames, *others, *store.keys(f"{keys.segments(version)}/")]
    store.delete(objects)
    sweep(store, keys, version)
    change_claim(store, keys, held, state=REMOVED)
    return len(objects)


def _claim_for_removal(store: Store, keys: VideoKeys, version: int, expected: str | None) -> Held:
    """Set the version's claim to ``removing``, so that no run can take the version over, and return it."""
    mover = new_run_id()
    while True:
        found = read_claim(store, keys, version)
        if found is not None and found.claim.state in {REMOVING, REMOVED}:
            return found  # begun by another, which may have been killed
        held = found
        if found is not None:
            held = ended(store, keys, found)
            if held is None:
                raise StoreError(f"version {version} is being written by a run; remove it when that is over")
            if held.claim.state == COMMITTING:
                finish_commit(store, keys, held)
                continue
        if expected == ABANDONED and store.exists(keys.manifest(version)):
            raise StoreError(f"version {version} has been finished by a run since; it stays")
        if held is None:
            mine = create_claim(store, keys, version, Claim(mover, "", 0.0, REMOVING, stored=True))
        else:
            mine = change_claim(store, keys, held, run_id=mover, state=REMOVING)
        if mine is not None:
            return mine


_CHUNKS_KEPT = 12


class SampleReader:
    """Reads samples of a version from its chunks; the most recently used chunks are cached."""

    def __init__(self, store: Store, keys: VideoKeys, version: int) -> None:
        @lru_cache(_CHUNKS_KEPT)
        def chunk(level: int, first: int) -> list[Planes]:
            return decode_chunk(store.get(keys.chunk(version, level, first)))

        self._chunk = chunk

    def __call__(self, sample: int) -> Planes:
        """Y (H, W), U and V (H/2, W/2) of a sample."""
        level, first, position = chunk_of(sample)
        return self._chunk(level, first)[position]
