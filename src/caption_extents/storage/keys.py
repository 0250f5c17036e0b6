"""Names of objects in the store. Every id is checked here, so that no key can climb out of its prefix."""

from __future__ import annotations

import re
from dataclasses import dataclass

from caption_extents.errors import InputError
from caption_extents.options import check_id


def check_key(key: str) -> str:
    """Return ``key`` if it names an object inside the store.

    Raises:
        InputError: it is empty or absolute, or has an empty, ``.`` or ``..`` part, a backslash or a control character.
    """
    if not is_key(key):
        raise InputError(f"key {key!r} cannot be used: give a relative path without '..', empty parts or backslashes")
    return key


def is_key(key: str) -> bool:
    """Whether :func:`check_key` would let it pass."""
    has_odd_parts = any(part in {"", ".", ".."} for part in key.split("/"))
    return not has_odd_parts and not re.search(r"[\\\x00-\x1f\x7f]", key)


@dataclass(frozen=True)
class VideoKeys:
    """All keys of one video.

    Raises:
        InputError: an id cannot be used.
    """

    tenant_id: str
    video_id: str

    def __post_init__(self) -> None:
        check_id(self.tenant_id, "tenant_id")
        check_id(self.video_id, "video_id")

    @property
    def client_prefix(self) -> str:
        """What browsers may read."""
        return f"{self.tenant_id}/client/videos/{self.video_id}"

    @property
    def server_prefix(self) -> str:
        """What only servers read."""
        return f"{self.tenant_id}/server/videos/{self.video_id}"

    def cropped_frames(self, version: int) -> str:
        """Prefix of a version's chunks and manifest."""
        return f"{self.client_prefix}/cropped_frames_v{version}"

    def chunk(self, version: int, level: int, first_sample: int) -> str:
        """A chunk, named by its first sample."""
        return f"{self.cropped_frames(version)}/modulo_{level}/chunk_{first_sample:010d}.webm"

    def manifest(self, version: int) -> str:
        """Key of the manifest, which is written after all chunks; a version without a manifest is not visible."""
        return f"{self.cropped_frames(version)}/manifest.json"

    @property
    def claims(self) -> str:
        """Prefix of the objects with which runs coordinate: claims, journals, staged manifests and the clock."""
        return f"{self.server_prefix}/claims"

    def claim(self, version: int) -> str:
        """Key of a version's claim; it is never deleted, so that no version number is used twice."""
        return f"{self.claims}/v{version}/claim.json"

    def journal(self, version: int, run_id: str, part: int) -> str:
        """Key of one part of a run's journal, which lists the chunks that the run has stored."""
        return f"{self.claims}/v{version}/journal_{run_id}_{part:06d}.json"

    def staged_manifest(self, version: int, run_id: str) -> str:
        """The manifest before it is visible."""
        return f"{self.claims}/v{version}/manifest_{run_id}.json"

    @property
    def clock(self) -> str:
        """Key of an object that is written to read the store's clock from its modification time."""
        return f"{self.claims}/clock"

    @property
    def temporary(self) -> str:
        """Prefix of temporary blocks that runs write for remote encoder workers."""
        return f"{self.tenant_id}/temporary/videos/{self.video_id}"

    def segments(self, version: int, run_id: str | None = None) -> str:
        """Prefix of the packed samples of a version, or of one run that writes it."""
        return f"{self.temporary}/v{version}" if run_id is None else f"{self.temporary}/v{version}/{run_id}"

    def segment(self, version: int, run_id: str, first_sample: int) -> str:
        """Packed samples that wait for an encoder."""
        return f"{self.segments(version, run_id)}/segment_{first_sample:010d}.mkv"

    def database(self, version: int | None = None) -> str:
        """Database of a version, or of the newest complete one."""
        suffix = "" if version is None else f"_v{version}"
        return f"{self.server_prefix}/caption_frame_extents{suffix}.db.gz"
