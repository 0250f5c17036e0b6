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


_AS_TEXT = str.maketrans({"{": "\uff5b", "}": "\uff5d", "\\": "\uff3c"})
"""What subtitle formats take for markup, as its full-width likeness: no escape is understood by all players."""


def _as_text(text: str, kind: str) -> str:
    """Text that stays text: nothing that an OCR engine read becomes markup."""
    plain = text.translate(_AS_TEXT).replace("\r\n", "\n").replace("\r", "\n")
    if kind == "ass":
        return plain
    if kind == "vtt":
        plain = plain.replace("&", "&amp;")
    return plain.replace("<", "\uff1c").replace(">", "\uff1e")


def render_subtitles(events: Iterable[SubtitleEvent], kind: str = "srt") -> str:
    """The text of a subtitle file; ``kind`` is a format of pysubs2: ``srt``, ``vtt`` or ``ass``."""
    file = pysubs2.SSAFile()
    shortest = 10 if kind == "ass" else 1  # ASS counts in hundredths of a second
    for event in events:
        start, end = round(event.start_seconds * 1000), round(event.end_seconds * 1000)
        end = max(end, start + shortest)
        file.append(pysubs2.SSAEvent(start=start, end=end, text=_as_text(event.text, kind).replace("\n", "\\N")))
    return str(file.to_string(kind))
