"""The manifest: what a version consists of. A version without one does not exist for readers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from caption_extents.chunks.plan import ChunkPlan
from caption_extents.errors import StoreError

MANIFEST_FORMAT = 1

_FINGERPRINT_PART_BYTES = 1 << 20


@dataclass(frozen=True)
class ChunkRecord:
    """A stored chunk."""

    key: str
    level: int
    samples: tuple[int, ...]
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, key: str, plan: ChunkPlan, data: bytes) -> ChunkRecord:
        """The record of an encoded chunk with this key, plan and content."""
        return cls(key, plan.level, plan.samples, len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class SourceRecord:
    """The video that a version was made of.

    Attributes:
        key: the file's path, or its key in the store.
        size_bytes: of the file.
        fingerprint: of its content, see :func:`content_fingerprint`.
        stream: index of the video stream, as FFmpeg counts them; None in versions that did not note it.
    """

    key: str
    size_bytes: int
    fingerprint: str
    stream: int | None = None


@dataclass(frozen=True)
class Manifest:
    """A complete version.

    Attributes:
        version: N of ``cropped_frames_vN``.
        run_id: the run that wrote it.
        source: the video.
        crop: left, top, right, bottom as fractions of the displayed picture.
        crop_px: the same in pixels, half-open.
        sample_aspect_ratio: width over height of a pixel, as a fraction in text; chunks are stored unscaled.
        frame_rate: samples a second, as a fraction in text, for example ``10`` or ``30000/1001``.
        sample_count: samples of the video.
        preset: encoder preset.
        model_version: of the caption model.
        first_sample_seconds: when the first sample is shown on a player's clock, which starts where the container does.
        chunks: all chunks, in order of level (16, 4, 1) and first sample.
    """

    version: int
    run_id: str
    source: SourceRecord
    crop: tuple[float, float, float, float]
    crop_px: tuple[int, int, int, int]
    sample_aspect_ratio: str
    frame_rate: str
    sample_count: int
    preset: str
    model_version: str
    chunks: tuple[ChunkRecord, ...] = field(repr=False)
    first_sample_seconds: float = 0.0
    format_version: int = MANIFEST_FORMAT

    def to_json(self) -> bytes:
        """UTF-8 JSON."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Read a manifest. What it says beyond this format is left out.

        Raises:
            StoreError: it is damaged, or of a newer format than this package knows.
        """
        try:
            fields: dict[str, Any] = json.loads(data)
            if fields["format_version"] > MANIFEST_FORMAT:
                raise StoreError(
                    f"manifest format {fields['format_version']} is newer than {MANIFEST_FORMAT}; update the package"
                )
            fields["source"] = SourceRecord(**fields["source"])
            fields["chunks"] = tuple(
                ChunkRecord(**{**chunk, "samples": tuple(chunk["samples"])}) for chunk in fields["chunks"]
            )
            fields["crop"], fields["crop_px"] = tuple(fields["crop"]), tuple(fields["crop_px"])
            return cls(**{one.name: fields[one.name] for one in dataclass_fields(cls) if one.name in fields})
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"damaged manifest: {error}") from error


def content_fingerprint(path: Path) -> str:
    """Fingerprint of a video file: SHA-256 of its size and of its first, middle and last MiB.

    A checksum of the whole file is not used, because reading a film takes longer than processing it.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in (0, max(0, size // 2 - _FINGERPRINT_PART_BYTES // 2), max(0, size - _FINGERPRINT_PART_BYTES)):
            file.seek(start)
            digest.update(file.read(_FINGERPRINT_PART_BYTES))
    return f"sampled-sha256:{digest.hexdigest()}"
