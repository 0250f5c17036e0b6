"""Detection of truncated files: incomplete downloads, and recordings that were cut off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_EBML = b"\x1aE\xdf\xa3"
_SEGMENT_ID = b"\x18S\x80g"
_MOST_BOXES = 10_000
_SLACK_BYTES = 16
"""Tolerance: programs differ in whether a size includes its header."""
_NO_LENGTHS = (0, 0xFFFFFFFF)
"""Sizes that mean "unknown" in an AVI that was written to a non-seekable output."""
_BOX_TYPES = {
    *(b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"ssix", b"prft", b"emsg"),
    *(b"moof", b"uuid", b"mfra", b"meta", b"pdin", b"udta", b"junk", b"PICT"),
}


def missing_bytes(path: Path) -> int:
    """Bytes by which a file is shorter than its container says; 0 where it does not say.

    MP4 and MOV give the size of each box, MKV and WebM that of their one segment, AVI that of its list.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        missing = _end(file, size) - size
    return missing if missing > _SLACK_BYTES else 0


def lacks_index(path: Path) -> bool:
    """Whether a file is an MP4 without its index (``moov``), which a recorder writes last."""
    size = path.stat().st_size
    with path.open("rb") as file:
        kinds = [kind for kind, _ in _boxes(file, size)]
    return bool(kinds) and kinds[0] in _BOX_TYPES and b"mdat" in kinds and not {b"moov", b"moof"} & set(kinds)


def _end(file: BinaryIO, size: int) -> int:
    """Where the container says that it ends."""
    head = file.read(12)
    if head[:4] == _EBML:
        return _segment_end(file)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        length = int.from_bytes(head[4:8], "little")
        return 0 if length in _NO_LENGTHS else 8 + length
    if head[4:8] in _BOX_TYPES:
        return max((end for _, end in _boxes(file, size)), default=0)
    return 0


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Kind and end of each of an MP4's outermost boxes."""
    start = 0
    for _ in range(_MOST_BOXES):
        file.seek(start)
        head = file.read(16)
        if len(head) < 8:
            return
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            length = size - start  # up to the end, wherever that is
        if length < 8 or head[4:8] not in _BOX_TYPES:
            return  # no box: some programs write notes of their own behind the last
        yield head[4:8], start + length
        start += length


def _segment_end(file: BinaryIO) -> int:
    """Where an MKV's segment ends; 0 if it does not say, as in a recording that was streamed."""
    file.seek(4)
    header = _number(file)
    if header is None:
        return 0
    file.seek(header, 1)
    if file.read(4) != _SEGMENT_ID:
        return 0
    length = _number(file)
    return 0 if length is None else file.tell() + length


def _number(file: BinaryIO) -> int | None:
    """A size as EBML writes it; None if it is unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    count = 8 - first[0].bit_length()
    rest = file.read(count)
    value = int.from_bytes(first + rest, "big") & (1 << 7 * (count + 1)) - 1
    return None if value == (1 << 7 * (count + 1)) - 1 else value
