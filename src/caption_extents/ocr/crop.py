"""Suggesting the crop region: finds a band of the picture in which text appears, changes and disappears."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from caption_extents.errors import VideoError
from caption_extents.ocr.reader import rapid_engine
from caption_extents.pictures import to_picture
from caption_extents.region import CropRegion
from caption_extents.video.crop import resolve_crop
from caption_extents.video.info import VideoFacts, probe
from caption_extents.video.random_access import frames_between
from caption_extents.video.timeline import Timeline, build_timeline
from caption_extents.watchdog import Watchdog, report_progress

FRAMES = 40
"""Number of pictures searched for text: if captions are shown a third of the time, about 13 of them contain one."""

_LONGEST_SIDE_PX = 960
"""Longest side of a picture that is searched for text; captions have at least a thirtieth of the picture's height."""

_BAND_HEIGHT = 0.16
"""Height of the tallest band, as a share of the picture: two lines, or three small ones."""

_STATIC_SHARE = 0.5
_STATIC_DISTANCE = 0.006
_SECOND_BAND_SHARE = 0.25
_SIDE = 0.04
"""Maximum distance of the region from the left and right sides: later captions may be wider than those found."""


@dataclass(frozen=True)
class TextBox:
    """Text in one of the pictures; sides are fractions of the picture."""

    picture: int
    left: float
    top: float
    right: float
    bottom: float

    @property
    def height(self) -> float:
        """Of the box."""
        return self.bottom - self.top

    @property
    def middle(self) -> float:
        """Its centre, from the top."""
        return (self.top + self.bottom) / 2

    def is_at(self, other: TextBox) -> bool:
        """Whether all four sides equal those of the other box, within the detector's jitter."""
        mine, others = ((b.left, b.top, b.right, b.bottom) for b in (self, other))
        return max(abs(a - b) for a, b in zip(mine, others, strict=True)) < _STATIC_DISTANCE


@dataclass(frozen=True)
class Band:
    """A region that may contain captions, and the number of searched pictures that have text in it."""

    region: CropRegion
    pictures: int


Detector = Callable[[np.ndarray], list[tuple[float, float, float, float]]]
"""Finds text in an RGB picture, uint8 (H, W, 3): left, top, right, bottom of each piece, in pixels."""


def rapid_detector() -> Detector:
    """PP-OCR's text detector.

    Raises:
        InputError: rapidocr is not installed.
    """
    engine = rapid_engine(
        _LONGEST_SIDE_PX,
        "suggesting a crop needs the extra 'ocr': pip install 'caption-extents[ocr]'; or give the crop",
    )

    def detect(picture: np.ndarray) -> list[tuple[float, float, float, float]]:
        result: Any = engine(np.ascontiguousarray(picture[..., ::-1]), use_det=True, use_cls=False, use_rec=False)
        if result.boxes is None:
            return []
        corners = [np.asarray(box) for box in result.boxes]
        return [(*map(float, box.min(axis=0)), *map(float, box.max(axis=0))) for box in corners]  # type: ignore[misc]

    return detect


def suggest_crop(
    path: Path,
    detect: Detector,
    tell: Callable[[int, int], None] = lambda done, total: None,
    stream_index: int | None = None,
) -> tuple[list[Band], np.ndarray]:
    """Search pictures of a video for bands of changing text.

    Args:
        path: the video file.
        detect: text detector.
        tell: called after each picture with the number of searched pictures, and their total number.
        stream_index: index of the video stream; by default the one that players choose.

    Returns:
        At most two bands, the most likely one first, and the picture with the most text, RGB, uint8 (H, W, 3).

    Raises:
        VideoError: the video cannot be used, or no changing text was found.
        StallError: a codec or the detector makes no progress.
    """
    return Watchdog().call(
        f"looking for text in {str(path)!r}", lambda: _suggest(probe(path, stream_index), detect, tell)
    )


def _suggest(facts: VideoFacts, detect: Detector, tell: Callable[[int, int], None]) -> tuple[list[Band], np.ndarray]:
    timeline = build_timeline(facts, Fraction(10))
    boxes: list[TextBox] = []
    best: tuple[int, np.ndarray | None] = (-1, None)
    times = pick_times(timeline, FRAMES)
    for number, picture in enumerate(pictures_at(facts, times)):
        height, width = picture.shape[:2]
        found = [
            TextBox(number, left / width, top / height, right / width, bottom / height)
            for left, top, right, bottom in detect(picture)
        ]
        report_progress()
        boxes += found
        if len(found) > best[0]:
            best = len(found), picture
        tell(number + 1, len(times))
    bands = find_bands(boxes, len(times))
    if not bands or best[1] is None:
        raise VideoError(
            f"no text comes and goes in {str(facts.path)!r}, as captions do; give the crop: --crop L,T,R,B"
        )
    return bands, best[1]


def find_bands(boxes: list[TextBox], pictures: int) -> list[Band]:
    """Bands of text that changes, those with text in most pictures first; at most two."""
    changing = [box for box in boxes if 0.012 < box.height < _BAND_HEIGHT and not _is_static(box, boxes, pictures)]
    bands: list[Band] = []
    while changing and len(bands) < 2:
        inside = max((_within(changing, box.middle) for box in changing), key=_pictures_with)
        count = _pictures_with(inside)
        if count < max(2, _SECOND_BAND_SHARE * (bands[0].pictures if bands else 0)):
            break
        bands.append(Band(_region(inside), count))
        changing = [box for box in changing if box not in inside]
    return bands


def _is_static(box: TextBox, boxes: list[TextBox], pictures: int) -> bool:
    """Whether the same place has the same text in half of the pictures: a logo, not a caption."""
    alike = {other.picture for other in boxes if box.is_at(other)}
    return len(alike) > max(2, _STATIC_SHARE * pictures)


def _within(boxes: list[TextBox], middle: float) -> list[TextBox]:
    return [box for box in boxes if abs(box.middle - middle) <= _BAND_HEIGHT / 2]


def _pictures_with(boxes: list[TextBox]) -> int:
    return len({box.picture for box in boxes})


def _region(boxes: list[TextBox]) -> CropRegion:
    """The region of a band: its boxes without outliers, with a margin for outlines and wider lines."""
    line = float(np.median([box.height for box in boxes]))
    middle = float(np.median([box.middle for box in boxes]))
    near = [box for box in boxes if abs(box.middle - middle) <= max(2.0 * line, 0.02)]
    room = 0.05 * line
    top, bottom = min(box.top for box in near) - room, max(box.bottom for box in near) + room
    left, right = min(box.left for box in near) - room, max(box.right for box in near) + room
    return CropRegion(
        round(max(0.0, min(left, _SIDE)), 4),
        round(max(0.0, top), 4),
        round(min(1.0, max(right, 1 - _SIDE)), 4),
        round(min(1.0, bottom), 4),
    )


def draw_regions(picture: np.ndarray, bands: list[Band]) -> np.ndarray:
    """The picture with a frame around each band; uint8 (H, W, 3)."""
    drawn = picture.copy()
    height, width = picture.shape[:2]
    for band, colour in zip(bands, ((255, 40, 40), (255, 200, 0)), strict=False):
        region = band.region
        left, right = (min(width - 1, round(x * width)) for x in (region.crop_left, region.crop_right))
        top, bottom = (min(height - 1, round(y * height)) for y in (region.crop_top, region.crop_bottom))
        drawn[top : bottom + 1, [left, max(0, left - 1), right, max(0, right - 1)]] = colour
        drawn[[top, max(0, top - 1), bottom, max(0, bottom - 1)], left : right + 1] = colour
    return drawn


_WIDTH_PX = 960


def pick_times(timeline: Timeline, count: int) -> list[int]:
    """Choose the pts of ``count`` evenly spaced frames; key frames, which decode on their own, if there are enough."""
    pool = timeline.key_pts if len(timeline.key_pts) >= count else timeline.sample_pts
    unique = np.unique(pool)
    picks = np.linspace(0, len(unique) - 1, min(count, len(unique))).round().astype(int)
    return [int(unique[pick]) for pick in np.unique(picks)]


def pictures_at(facts: VideoFacts, times: list[int]) -> Iterator[np.ndarray]:
    """The displayed pictures of these pts, RGB, uint8 (H, W, 3), at most 960 pixels wide; undecodable ones left out."""
    crop = resolve_crop(CropRegion(0, 0, 1, 1), facts)
    width = min(_WIDTH_PX, crop.width)
    size = (max(1, round(crop.height * width / crop.width)), width)
    for frames in frames_between(facts, crop, [(pts, pts) for pts in times]):
        if frames.pts:
            y, u, v = frames.planes
            yield to_picture((y[0], u[0], v[0]), size)
