"""The text of captions: one picture and one reading for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from caption_extents.captions.extents import Caption
from caption_extents.errors import wrap_unexpected_errors
from caption_extents.ocr.reader import ReadText, TextReader, check_reader
from caption_extents.pictures import to_picture
from caption_extents.region import CropRegion
from caption_extents.results.database import open_database, with_texts
from caption_extents.samples import Planes
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import Store
from caption_extents.storage.versions import SampleReader, change_database, read_manifest
from caption_extents.video.video import Video, open_video
from caption_extents.watchdog import Watchdog, report_progress

if TYPE_CHECKING:
    from caption_extents.ocr.reading import CaptionReader

MEDIAN_SAMPLES = 9
"""Number of samples whose median is a caption's picture: enough to suppress moving background, few to fetch."""

_RATE = 10
"""Sample rate at which :func:`read_text` decodes the video, in samples per second."""


def median_samples(start: int, end: int, count: int = MEDIAN_SAMPLES) -> list[int]:
    """Choose up to ``count`` samples of a caption, evenly spaced.

    The first and the last sample are left out if the caption has more than four samples, because they may be in a fade.

    Args:
        start: first sample of the caption.
        end: first sample after the caption.
        count: maximum number of samples.
    """
    inner = range(start + 1, end - 1) if end - start > 4 else range(start, end)
    picks = np.linspace(0, len(inner) - 1, min(count, len(inner))).round().astype(int)
    return [inner[int(pick)] for pick in picks]


def caption_picture(read_sample: Callable[[int], Planes], start: int, end: int) -> np.ndarray:
    """One RGB picture of a caption, uint8 (H, W, 3): the median of its samples, in which only what stays is sharp."""
    return median_picture([read_sample(sample) for sample in median_samples(start, end)])


def median_picture(samples: list[Planes]) -> np.ndarray:
    """The median of samples as an RGB picture, uint8 (H, W, 3)."""
    y, u, v = (np.median(np.stack(plane), axis=0).astype(np.uint8) for plane in zip(*samples, strict=True))
    return to_picture((y, u, v), (y.shape[0], y.shape[1]))


def open_reader(languages: str | None = None, reader: str = "auto") -> CaptionReader:
    """A :class:`~caption_extents.ocr.reading.CaptionReader`, which imports what only the extra ``ocr`` installs.

    Raises:
        InputError: the extra is not installed, or nothing that is installed reads a language.
    """
    check_reader()
    from caption_extents.ocr.reading import CaptionReader

    return CaptionReader(languages, reader)


def read_text(
    path: str | os.PathLike[str],
    captions: Iterable[Caption],
    crop: CropRegion | tuple[float, float, float, float],
    reader: TextReader | None = None,
) -> list[Caption]:
    """Read the text of captions, once each, from the median of some of the frames in which they are shown.

    Args:
        path: the video file.
        captions: of this file, in order.
        crop: where they stand: left, top, right and bottom as fractions of the displayed picture.
        reader: reads a picture; by default :class:`~caption_extents.ocr.reading.CaptionReader` (extra ``ocr``), which
            takes the languages of the captions.

    Returns:
        The captions with their text; text and its confidence are None where none was found.

    Raises:
        InputError: nothing that reads text is installed, or the file or the region cannot be used.
        StallError: the reader, or a codec, makes no progress.
    """
    with wrap_unexpected_errors():
        reader, captions = reader or open_reader(), list(captions)
        return Watchdog().call(f"reading text in {str(path)!r}", lambda: _read_text(path, captions, crop, reader))


def _read_text(
    path: str | os.PathLike[str],
    captions: list[Caption],
    crop: CropRegion | tuple[float, float, float, float],
    reader: TextReader,
) -> list[Caption]:
    found: list[Caption] = []
    with open_video(path, _RATE, device="cpu") as video:
        wanted = [_samples_of(caption, video) for caption in captions]
        kept: dict[int, Planes] = {}
        for batch in video.samples(crop) if captions else ():
            end = batch.first_sample + len(batch)
            for number in {n for numbers in wanted[len(found) :] for n in numbers if batch.first_sample <= n < end}:
                y, u, v = (plane[number - batch.first_sample].copy() for plane in batch.planes)
                kept[number] = y, u, v
            while len(found) < len(captions) and all(number < end for number in wanted[len(found)]):
                numbers = wanted[len(found)]
                text = reader.read(median_picture([kept[n] for n in numbers])) if numbers else None
                report_progress()
                found.append(_with_text(captions[len(found)], text))
            needed = {number for numbers in wanted[len(found) :] for number in numbers}
            kept = {number: planes for number, planes in kept.items() if number in needed}
    return found


def _samples_of(caption: Caption, video: Video) -> list[int]:
    """The samples of a video that a caption's picture is made of; none if it lies outside of the video."""
    begin, end = (round((time - video.first_sample_seconds) * _RATE) for time in (caption.start, caption.end))
    start, end = max(0, begin), min(video.sample_count, max(begin + 1, end))
    return median_samples(start, end) if start < end else []


def _with_text(caption: Caption, text: ReadText | None) -> Caption:
    return replace(caption, text=text.text if text else None, text_confidence=text.confidence if text else None)


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
            report_progress()
            if text is not None:
                found[extent] = text
            tell(done, len(extents))

    Watchdog().call("reading the captions' text", read)
    count = 0

    def write(data: bytes) -> bytes:
        # `data` may be newer than the database read above: a person may have corrected captions in the meantime.
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
