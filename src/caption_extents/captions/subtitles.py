"""Captions as a subtitle file."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pysubs2
from pysubs2.formats.substation import SubstationFormat

from caption_extents.captions.extents import Caption
from caption_extents.errors import InputError
from caption_extents.files import write_atomically

SUBTITLE_SUFFIXES = (".srt", ".vtt", ".ass")

_AS_TEXT = str.maketrans({"{": "\uff5b", "}": "\uff5d", "\\": "\uff3c"})
"""Replaces markup characters by their full-width forms, because no escape sequence works in all players."""


def _as_text(text: str, kind: str) -> str:
    """Escape text for a subtitle format, so that no player interprets any of it as markup."""
    plain = text.translate(_AS_TEXT).replace("\r\n", "\n").replace("\r", "\n")
    if kind == "ass":
        return plain
    if kind == "vtt":
        plain = plain.replace("&", "&amp;")
    return plain.replace("<", "\uff1c").replace(">", "\uff1e")


def write_subtitles(captions: Iterable[Caption], path: str | Path) -> None:
    """Write captions as a subtitle file, atomically.

    Args:
        captions: captions in order of time; those without text become numbered placeholders such as ``[1]``.
        path: name of the file; the suffix ``.srt``, ``.vtt`` or ``.ass`` selects the format.

    Raises:
        InputError: the name has another suffix.
        OutputError: the file cannot be written; an existing file is unchanged.
    """
    check_subtitle_path(Path(path))
    write_atomically(Path(path), render_subtitles(captions, Path(path).suffix[1:].lower()))


def check_subtitle_path(path: Path) -> None:
    """Raise an InputError if the name is not that of a subtitle file."""
    if path.suffix.lower() not in SUBTITLE_SUFFIXES:
        allowed = ", ".join(SUBTITLE_SUFFIXES)
        raise InputError(f"cannot write subtitles to {str(path)!r}; the name must end with {allowed}")


def render_subtitles(captions: Iterable[Caption], kind: str = "srt") -> str:
    """The text of a subtitle file; ``kind`` is ``srt``, ``vtt`` or ``ass``."""
    file = pysubs2.SSAFile()
    shortest = 10 if kind == "ass" else 1  # ASS counts in hundredths of a second
    for number, caption in enumerate(captions, start=1):
        start, end = round(caption.start * 1000), round(caption.end * 1000)
        text = _as_text(caption.text or f"[{number}]", kind).replace("\n", "\\N")
        file.append(pysubs2.SSAEvent(start=start, end=max(end, start + shortest), text=text))
    if kind != "ass":
        return str(file.to_string(kind))
    written = io.StringIO()
    _AnyHours.to_file(file, written, kind)
    return written.getvalue()


class _AnyHours(SubstationFormat):
    """ASS with times beyond ten hours, which players read (libass) though the format's description has one digit."""

    @staticmethod
    def ms_to_timestamp(requested_ms: int) -> str:
        """Hours, minutes, seconds and hundredths of a second."""
        seconds, hundredths = divmod((max(0, requested_ms) + 5) // 10, 100)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{hundredths:02d}"
