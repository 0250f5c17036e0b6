"""Captions as a subtitle file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pysubs2


@dataclass(frozen=True)
class SubtitleEvent:
    """A line of a subtitle file; times in seconds from the video's first frame."""

    start_seconds: float
    end_seconds: float
    text: str


def render_subtitles(events: Iterable[SubtitleEvent], kind: str = "srt") -> str:
    """The text of a subtitle file; ``kind`` is a format of pysubs2: ``srt``, ``vtt`` or ``ass``."""
    file = pysubs2.SSAFile()
    for event in events:
        start, end = round(event.start_seconds * 1000), round(event.end_seconds * 1000)
        file.append(pysubs2.SSAEvent(start=start, end=end, text=event.text.replace("\n", "\\N")))
    return str(file.to_string(kind))
