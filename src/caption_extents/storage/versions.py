"""What readers see of a video's versions, and clearing away what nobody needs."""

from __future__ import annotations

from dataclasses import dataclass

from caption_extents.errors import StoreError
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.leases import (
    claimed_versions,
    complete_versions,
    is_dead,
    latest_claim,
    publish_newest_database,
    shared_objects,
)
from caption_extents.storage.manifest import Manifest
from caption_extents.storage.store import Store

COMPLETE, RUNNING, ABANDONED = "complete", "running", "abandoned"


def read_manifest(store: Store, keys: VideoKeys, version: int | None = None) -> Manifest:
    """The manifest of a version, by default the newest complete one.

    Raises:
        StoreError: there is no such complete version.
    """
    if version is None:
        versions = complete_versions(store, keys)
        if not versions:
            raise StoreError(
                f"{store.address} has no complete version of video {keys.video_id!r} of tenant {keys.tenant_id!r}"
            )
        version = versions[-1]
    elif not store.exists(keys.manifest(version)):
        there = ", ".join(map(str, complete_versions(store, keys))) or "none"
        raise StoreError(f"video {keys.video_id!r} has no complete version {version}; complete are {there}")
    return Manifest.from_json(store.get(keys.manifest(version)))


@dataclass(frozen=True)
class VersionState:
    """A version as it stands in the store.

    Attributes:
        version: N.
        state: ``complete``, ``running``, or ``abandoned`` (its run has died or failed; a run with the same inputs goes
            on with it).
        chunk_count: chunks that are stored.
        run_id: who wrote it last; empty if unknown.
    """

    version: int
    state: str
    chunk_count: int
    run_id: str


def replace_database(store: Store, keys: VideoKeys, version: int, data: bytes) -> None:
    """Write a complete version's database anew, and the newest database if this version is the newest.

    Raises:
        UploadError: it could not be written; what was there before is still there.
    """
    store.put(keys.database(version), data, "application/gzip")
    publish_newest_database(store, keys)


def list_versions(store: Store, keys: VideoKeys) -> list[VersionState]:
    """All versions of a video, ascending."""
    prefix = f"{keys.client_prefix}/cropped_frames_v"
    counts: dict[int, int] = {}
    for key in store.keys(f"{keys.client_prefix}/"):
        number, _, rest = key.removeprefix(prefix).partition("/")
        if key.startswith(prefix) and number.isdecimal():
            counts[int(number)] = counts.get(int(number), 0) + rest.endswith(".webm")
    complete = set(complete_versions(store, keys))
    numbers = sorted({*counts, *complete, *claimed_versions(store, keys)})
    return [_state(store, keys, number, number in complete, counts.get(number, 0)) for number in numbers]


def _state(store: Store, keys: VideoKeys, version: int, complete: bool, chunk_count: int) -> VersionState:
    if complete:
        return VersionState(version, COMPLETE, chunk_count, read_manifest(store, keys, version).run_id)
    found = latest_claim(store, keys, version)
    if found is None:
        if store.exists(keys.manifest(version)):  # finished since it was looked for
            return _state(store, keys, version, True, chunk_count)
        return VersionState(version, ABANDONED, chunk_count, "")
    generation, claim = found
    state = ABANDONED if is_dead(store, keys, version, generation, claim, wait=False) else RUNNING
    return VersionState(version, state, chunk_count, claim.run_id)


def prunable_versions(store: Store, keys: VideoKeys, keep: int | None = None) -> list[VersionState]:
    """Abandoned versions, and complete ones but for the newest ``keep``; never one that is being written.

    Raises:
        ValueError: ``keep`` is below 1.
    """
    if keep is not None and keep < 1:
        raise ValueError(f"keep is {keep}; at least one complete version must stay")
    states = list_versions(store, keys)
    complete = [state for state in states if state.state == COMPLETE]
    old = complete[:-keep] if keep is not None else []
    return [state for state in states if state.state == ABANDONED or state in old]


def remove_version(store: Store, keys: VideoKeys, version: int, expected: str | None = None) -> int:
    """Remove all objects of a version, the manifest first, so that no reader meets half of it; how many there were.

    Args:
        store: where.
        keys: of the video.
        version: N.
        expected: the state that it was seen in.

    Raises:
        StoreError: a run writes it, or has finished it since.
    """
    found = latest_claim(store, keys, version)
    if found is not None and not is_dead(store, keys, version, *found, wait=False):
        raise StoreError(f"version {version} is being written by a run; remove it when that is over")
    if expected == ABANDONED and store.exists(keys.manifest(version)):
        raise StoreError(f"version {version} has been finished by a run since; it stays")
    objects = [
        *sorted(store.keys(f"{keys.cropped_frames(version)}/"), key=lambda key: not key.endswith("/manifest.json")),
        *(key for key in [keys.database(version)] if store.exists(key)),
        *store.keys(f"{keys.claims}/v{version}/"),
        *store.keys(f"{keys.segments(version)}/"),
    ]
    store.delete([*objects, *shared_objects(keys)])
    return len(objects)
