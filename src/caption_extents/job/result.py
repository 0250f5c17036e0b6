"""What a finished job has made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from caption_extents.captions.caption import Caption
from caption_extents.pipeline.metrics import RunMetrics


@dataclass(frozen=True)
class CropInferResult:
    """What a finished job has made.

    Attributes:
        version: N of ``cropped_frames_vN``.
        frame_count: samples of the video.
        label_counts: pairs for each forward label.
        processing_duration_seconds: wall time of the job.
        caption_frame_extents_db_key: the version's database.
        cropped_frames_prefix: prefix of the version's chunks and manifest.
        caption_count: captions found.
        undecodable_samples: samples that show the last good frame instead of their own.
        decoder: the decoder that was used.
        captions: the captions, in order.
        metrics: where the time went.
    """

    version: int
    frame_count: int
    label_counts: dict[str, int]
    processing_duration_seconds: float
    caption_frame_extents_db_key: str
    cropped_frames_prefix: str
    caption_count: int
    undecodable_samples: tuple[int, ...]
    decoder: str
    captions: tuple[Caption, ...] = field(repr=False)
    metrics: RunMetrics = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the captions, which are in the database."""
        fields = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in {"captions", "metrics"}
        }
        return {**fields, "undecodable_samples": list(self.undecodable_samples), "metrics": asdict(self.metrics)}
