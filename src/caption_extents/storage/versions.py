"""Versions of a video's results: claiming a number, committing, and reading what is complete."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

from caption_extents.errors import StoreError, UploadError
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.manifest import Manifest
from caption_extents.storage.store import Store

CONTENT_WEBM = "video/webm"
CONTENT_JSON = "application/json"
CONTENT_GZIP = "application/gzip"

_MAX_CLAIM_ATTEMPTS = 1000


def claim_version(store: Store, keys: VideoKeys, run_id: str) -> VersionClaim:
    """Take the next free version number, alone: of several runs at once, each gets its own.

    Raises:
        UploadError: the store cannot be written to.
    """
    taken = [*_numbers(store, f"{keys.server_prefix}/claims/", r"v(\d+)\.json"), *complete_versions(store, keys)]
    body = json.dumps({"run_id": run_id, "claimed_at": datetime.now(UTC).isoformat()}).encode()
    first = max(taken, default=0) + 1
    for version in range(first, first + _MAX_CLAIM_ATTEMPTS):
        if store.create(keys.claim(version), body, CONTENT_JSON):
            return VersionClaim(store, keys, version, run_id)
    raise UploadError(
        f"no version of {keys.video_id!r} could be claimed in {store.address}: {first} and on are all taken"
    )


class VersionClaim:
    """A version number that belongs to one run, from claim to commit.

    Nothing is visible to readers before :meth:`commit`. Leaving the ``with`` block without it removes everything.
    """

    def __init__(self, store: Store, keys: VideoKeys, version: int, run_id: str) -> None:
        self.version, self.run_id = version, run_id
        self._store, self._keys = store, keys
        self._committed = False

    def __enter__(self) -> VersionClaim:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._committed:
            self.abandon()

    def commit(self, manifest: Manifest, database: bytes) -> None:
        """Make the version visible: its database, then the manifest, then the newest database."""
        keys, version = self._keys, self.version
        self._store.put(keys.database(version), database, CONTENT_GZIP)
        self._store.put(keys.manifest(version), manifest.to_json(), CONTENT_JSON)
        self._committed = True
        if version == max(complete_versions(self._store, keys)):
            self._store.put(keys.database(), database, CONTENT_GZIP)

    def abandon(self) -> None:
        """Remove all that was written under the claim."""
        keys, version = self._keys, self.version
        self._store.delete(
            [*self._store.keys(f"{keys.cropped_frames(version)}/"), keys.database(version), keys.claim(version)]
        )


def _numbers(store: Store, prefix: str, pattern: str) -> list[int]:
    found = (re.fullmatch(pattern, key.removeprefix(prefix)) for key in store.keys(prefix))
    return [int(match[1]) for match in found if match]


def complete_versions(store: Store, keys: VideoKeys) -> list[int]:
    """Version numbers that have a manifest, ascending."""
    return sorted(_numbers(store, f"{keys.client_prefix}/", r"cropped_frames_v(\d+)/manifest\.json"))


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
    return Manifest.from_json(store.get(keys.manifest(version)))
