"""The text of every caption of a version, out of its chunks: one picture and one reading for each caption."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from caption_extents.chunks.assemble import Planes
from caption_extents.ocr.reader import ReadText, TextReader
from caption_extents.pictures import to_picture
from caption_extents.results.database import open_database, with_texts
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.samples import SampleReader
from caption_extents.storage.store import Store
from caption_extents.storage.versions import change_database, read_manifest
from caption_extents.watchdog import Watchdog, alive

MEDIAN_SAMPLES = 9
"""Samples that a caption's picture is made of: enough to blur what moves behind it, few enough to fetch."""


def median_samples(start: int, end: int, count: int = MEDIAN_SAMPLES) -> list[int]:
    """Samples of the caption ``start..end`` to look at: spread over it, its first and last left out if it has others.

    The ends may be in the middle of a fade.
    """
    inner = range(start + 1, end - 1) if end - start > 4 else range(start, end)
    picks = np.linspace(0, len(inner) - 1, min(count, len(inner))).round().astype(int)
    return [inner[int(pick)] for pick in picks]


def caption_picture(read_sample: Callable[[int], Planes], start: int, end: int) -> np.ndarray:
    """One RGB picture of a caption, uint8 (H, W, 3): the median of its samples, in which only what stays is sharp."""
    samples = [read_sample(sample) for sample in median_samples(start, end)]
    planes = [np.median(np.stack(plane), axis=0).astype(np.uint8) for plane in zip(*samples, strict=True)]
    y, u, v = (torch.from_numpy(plane) for plane in planes)
    return to_picture(y, u, v, (y.shape[0], y.shape[1]))


def store_texts(
    store: Store,
    keys: VideoKeys,
    reader: TextReader,
    version: int | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Read the captions of a version and write their text into its database; returns how many had text.

    The reader is asked once for each caption. Those whose text a person wrote keep it.

    Args:
        store: where the version is.
        keys: of the video.
        reader: what reads.
        version: N; by default the newest complete one.
        tell: called after each caption with how many are done, and how many there are.

    Raises:
        StoreError: there is no such complete version.
        StoreAccessError: it cannot be read or written.
        StallError: the reader, or a codec, gives no sign of life.
    """
    number = read_manifest(store, keys, version).version
    extents = _to_read(store.get(keys.database(number))).values()
    read_sample = SampleReader(store, keys, number)
    found: dict[tuple[int, int], ReadText] = {}

    def read() -> None:
        for done, extent in enumerate(extents, start=1):
            text = reader.read(caption_picture(read_sample, *extent))
            alive()
            if text is not None:
                found[extent] = text
            tell(done, len(extents))

    Watchdog().call("reading the captions' text", read)
    count = 0

    def write(data: bytes) -> bytes:
        # As it is now: a person may have corrected it meanwhile.
        nonlocal count
        read = {index: found[extent] for index, extent in _to_read(data).items() if extent in found}
        count = len(read)
        return with_texts(data, {index: (text.text, text.confidence) for index, text in read.items()})

    change_database(store, keys, number, write)
    return count


def _to_read(database: bytes) -> dict[int, tuple[int, int]]:
    """Extents of the captions whose text no person wrote, by their number, in order."""
    rows = open_database(database).execute(
        "SELECT caption_index, start_frame, end_frame FROM captions "
        "WHERE text IS NULL OR text_confidence IS NOT NULL ORDER BY caption_index"
    )
    return {row["caption_index"]: (row["start_frame"], row["end_frame"]) for row in rows}
