"""Corrections made on the report page: reading, validating, writing to the database, and exporting as ground truth."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from caption_extents.captions.extents import Caption
from caption_extents.errors import InputError
from caption_extents.results.database import read_captions, with_captions
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import Store
from caption_extents.storage.versions import change_database, read_manifest

FORMAT = 1
MAX_FILE_BYTES = 64 << 20
MAX_TEXT_CHARACTERS = 10_000


@dataclass(frozen=True)
class Corrections:
    """A file of corrections. It holds all captions of a version, corrected or not."""

    keys: VideoKeys
    version: int
    run_id: str
    captions: list[Caption]

    def truth(self, store: Store) -> dict[str, object]:
        """The captions as labels beside a video, for training and evaluation (docs/formats.md).

        Raises:
            StoreError: the version is gone.
        """
        manifest = read_manifest(store, self.keys, self.version)
        captions = [
            {"start_frame": caption.first_sample, "end_frame": caption.end_sample, "text": caption.text or ""}
            for caption in self.captions
        ]
        return {"crop": list(manifest.crop), "rate": manifest.frame_rate, "captions": captions}


def read_corrections(path: Path) -> Corrections:
    """Read and check a file of the report page.

    Raises:
        InputError: it is not a corrections file, or a value is invalid; the message names the field.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{str(path)!r} is larger than {MAX_FILE_BYTES >> 20} MiB; it is no file of corrections")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InputError(f"{str(path)!r} is of format {content['format']!r}, and this version reads {FORMAT}")
        keys = VideoKeys(content["tenant_id"], content["video_id"])
        count = _whole(content, "sample_count", 1, 1 << 40)
        captions = [_caption(row, number, count) for number, row in enumerate(content["captions"])]
        _check_order(captions)
        return Corrections(keys, _whole(content, "version", 1, 1 << 40), str(content["run_id"]), captions)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{str(path)!r} is no file of corrections: {what}") from error


def import_corrections(store: Store, corrections: Corrections) -> int:
    """Write corrections into the database of their version; returns the number of captions that changed.

    Captions that were corrected have confidence 1: a person has looked at them.

    Raises:
        InputError: the version was written by another run than the one that was corrected.
        StoreError: there is no such complete version.
    """
    keys, version = corrections.keys, corrections.version
    manifest = read_manifest(store, keys, version)
    if manifest.run_id != corrections.run_id:
        raise InputError(f"version {version} of {keys.video_id!r} was written by another run than was corrected")
    changed = 0

    def correct(data: bytes) -> bytes:
        nonlocal changed
        rows, changed = _merged(corrections.captions, data)
        return with_captions(data, rows)

    change_database(store, keys, version, correct)
    return changed


def _merged(captions: list[Caption], data: bytes) -> tuple[list[Caption], int]:
    """Merge corrected captions with those in a database; unchanged captions keep their confidences.

    Returns:
        The captions to write, and the number of captions that were changed, added or removed.
    """
    before = {(known.first_sample, known.end_sample, known.text): known for known in read_captions(data)}
    merged, changed = [], 0
    for caption in captions:
        known = before.get((caption.first_sample, caption.end_sample, caption.text))
        changed += known is None
        merged.append(known or caption)
    return merged, changed + max(0, len(before) - len(merged))


def _caption(row: dict[str, Any], number: int, sample_count: int) -> Caption:
    where = f"captions[{number}]."
    start = _whole(row, "start_frame", 0, sample_count - 1, where)
    end = _whole(row, "end_frame", start + 1, sample_count, where)
    text = row.get("text")
    if text is not None and (not isinstance(text, str) or len(text) > MAX_TEXT_CHARACTERS):
        raise InputError(f"{where}text is no text of at most {MAX_TEXT_CHARACTERS} characters")
    (text or "").encode()  # half of a surrogate pair is no text
    begin = _seconds(row, "start_seconds", 0.0, where)
    return Caption(begin, _seconds(row, "end_seconds", begin, where), start, end, 1.0, text or None)


def _whole(row: dict[str, Any], name: str, least: int, most: int, where: str = "") -> int:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{where}{name} is {value!r}; it must be a whole number between {least} and {most}")
    return value


def _seconds(row: dict[str, Any], name: str, least: float, where: str) -> float:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
        raise InputError(f"{where}{name} is {value!r}; it must be seconds from {least:g} on")
    return float(value)


def _check_order(captions: list[Caption]) -> None:
    for number, (one, other) in enumerate(pairwise(captions)):
        if other.first_sample < one.end_sample:
            raise InputError(f"captions[{number}] and captions[{number + 1}] overlap, or are not in order")
