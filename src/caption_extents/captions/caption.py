"""A caption: from where to where it is shown, how sure that is, and its text if it was read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Caption:
    """One caption of a video.

    Attributes:
        start: when it appears, in seconds from the video's first frame.
        end: when it is gone, in seconds from the video's first frame.
        first_sample: number of the first sample that shows it.
        end_sample: number of the first sample after it that does not.
        confidence: how sure its least sure boundary is, in 0..1.
        text: its text; None if it was not read.
        text_confidence: how sure the text is, in 0..1; None if it was not read.
    """

    start: float
    end: float
    first_sample: int
    end_sample: int
    confidence: float
    text: str | None = None
    text_confidence: float | None = None
