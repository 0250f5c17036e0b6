"""Suggesting the crop region: finds bands of the picture in which captions appear, change and disappear.

The caption network looks at whole pictures: its mask says where letters of captions stand
(:mod:`caption_extents.model.network`). Several pictures are decoded and looked at at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from caption_extents.errors import VideoError
from caption_extents.model.identity import DEFAULT_WEIGHTS
from caption_extents.model.inputs import STRIDE
from caption_extents.model.portable import PortableNetwork, need_graphs
from caption_extents.options import default_inference_threads
from caption_extents.pictures import resized, to_picture
from caption_extents.region import CropRegion
from caption_extents.samples import Planes
from caption_extents.video.crop import MIN_CROP_PX, resolve_crop
from caption_extents.video.info import VideoFacts, probe
from caption_extents.video.random_access import frames_between
from caption_extents.video.timeline import Timeline, build_timeline
from caption_extents.watchdog import Watchdog, report_progress

FRAMES = 24
"""Number of pictures searched for text at first: if captions are shown a third of the time, eight contain one. As many
more are searched where that leaves a doubt."""

_FEW_PICTURES = 4
_COMPETING_SHARE = 0.5

_AREA_PX = 432 * 768
"""Size at which the network looks at pictures: letters of a twentieth of the picture's height are 20 pixels high."""

_LETTERS, _SURE = 0.15, 0.5
"""A cell has letters from the first value of the mask on; in some cell of each piece of text it reaches the second."""

_GAP_CELLS = 3
"""Letters with at most so many cells between them belong to one piece of text."""

_FEWEST_CELLS = 3

_MOST_HEIGHT, _REACH = 0.25, 0.11
"""Height of the tallest piece of text, two large lines, and how far from the middle of a band its pieces may stand; as
shares of the picture."""

_STATIC_SHARE = 0.5
_STATIC_LIKENESS = 0.8
_COARSE = 108, 192
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


@dataclass(frozen=True)
class Band:
    """A region that may contain captions, and the number of searched pictures that have text in it."""

    region: CropRegion
    pictures: int


Sides = tuple[float, float, float, float]
"""Left, top, right and bottom of a piece of text, as shares of the picture."""

Detector = Callable[[Planes], list[Sides]]
"""Finds text in a picture, Y (H, W), U and V (H/2, W/2)."""


def detector_of(network: PortableNetwork) -> Detector:
    """Finds text by the mask of the caption network. May be called from several threads."""

    def detect(planes: Planes) -> list[Sides]:
        height, width = planes[0].shape
        scale = math.sqrt(_AREA_PX / (height * width))
        rows, columns = (max(2, round(side * scale / STRIDE)) for side in (height, width))
        y, u, v = (plane[None] for plane in planes)
        mask = network.letters((y, u, v), (rows * STRIDE, columns * STRIDE))[0]
        return [
            (left / columns, top / rows, right / columns, bottom / rows)
            for left, top, right, bottom in pieces(mask >= _LETTERS)
            if mask[top:bottom, left:right].max() >= _SURE
        ]

    return detect


def pieces(cells: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of each piece of text among cells with letters, bool (h, w); right and bottom
    are the first cells beyond it.
    """
    left_over = set(zip(*(axis.tolist() for axis in cells.nonzero()), strict=True))
    found = []
    while left_over:
        piece, beside = [], [left_over.pop()]
        while beside:
            row, column = beside.pop()
            piece.append((row, column))
            near = {
                (row + down, column + across)
                for down in (-1, 0, 1)
                for across in range(-_GAP_CELLS - 1, _GAP_CELLS + 2)
            } & left_over
            left_over -= near
            beside += near
        if len(piece) >= _FEWEST_CELLS:
            rows, columns = zip(*piece, strict=True)
            found.append((min(columns), min(rows), max(columns) + 1, max(rows) + 1))
    return found


def suggest_crop(
    path: Path,
    detect: Detector | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
    stream_index: int | None = None,
) -> tuple[list[Band], np.ndarray]:
    """Search pictures of a video for bands of changing text.

    Args:
        path: the video file.
        detect: text detector, which several threads call; by default the caption network.
        tell: called after each picture with the number of searched pictures, and their total number.
        stream_index: index of the video stream; by default the one that players choose.

    Returns:
        At most two bands, the most likely one first, and the picture with the most text, RGB, uint8 (H, W, 3).

    Raises:
        VideoError: the video cannot be used, or no changing text was found.
        StallError: a codec or the detector makes no progress.
    """

    def look() -> tuple[list[Band], np.ndarray]:
        facts = probe(path, stream_index)
        if detect is not None:
            return _suggest(facts, detect, tell)
        with closing(
            PortableNetwork(DEFAULT_WEIGHTS, need_graphs(DEFAULT_WEIGHTS), default_inference_threads())
        ) as network:
            return _suggest(facts, detector_of(network), tell)

    return Watchdog().call(f"looking for text in {str(path)!r}", look)


def _suggest(facts: VideoFacts, detect: Detector, tell: Callable[[int, int], None]) -> tuple[list[Band], np.ndarray]:
    times = pick_times(build_timeline(facts, Fraction(10)), 2 * FRAMES)
    search = _Search(facts, detect)
    for part in (times[::2], times[1::2]):
        search.add(part, tell)
        bands = search.bands()
        if not _are_in_doubt(bands):
            break
    if not bands or search.fullest is None:
        raise VideoError(
            f"no text comes and goes in {str(facts.path)!r}, as captions do; give the crop: --crop L,T,R,B"
        )
    return bands, _shown(search.fullest)


def _are_in_doubt(bands: list[Band]) -> bool:
    """Whether captions are seldom seen, or two bands compete."""
    return (
        not bands
        or bands[0].pictures < _FEW_PICTURES
        or any(band.pictures > _COMPETING_SHARE * bands[0].pictures for band in bands[1:])
    )


class _Search:
    """What was seen so far in pictures of a video."""

    def __init__(self, facts: VideoFacts, detect: Detector) -> None:
        self._facts, self._detect = facts, detect
        self._boxes: list[TextBox] = []
        self._most = -1
        self.coarse: list[np.ndarray] = []
        """Luma of each picture, coarsely."""
        self.fullest: Planes | None = None
        """The picture with the most text."""

    def add(self, times: list[int], tell: Callable[[int, int], None]) -> None:
        """Look at the pictures of these pts; ``tell`` is called after each with the number so far and that to come."""
        total = len(self.coarse) + len(times)
        for planes, found in _looked_at(self._facts, times, self._detect):
            self._boxes += [TextBox(len(self.coarse), *sides) for sides in found]
            self.coarse.append(resized(planes[0], _COARSE))
            if len(found) > self._most:
                self._most, self.fullest = len(found), planes
            tell(len(self.coarse), total)
            report_progress()

    def bands(self) -> list[Band]:
        """At most two, the most likely one first."""
        found = find_bands(without_static(self._boxes, np.array(self.coarse)))
        return [replace(band, region=self._wide_enough(band.region)) for band in found]

    def _wide_enough(self, region: CropRegion) -> CropRegion:
        """Of a small video, a line of text may be lower than a crop may be."""
        lacking = (MIN_CROP_PX + 2) / self._facts.display_height - (region.crop_bottom - region.crop_top)
        if lacking <= 0:
            return region
        top = min(max(0.0, region.crop_top - lacking / 2), max(0.0, region.crop_top + 1 - region.crop_bottom - lacking))
        bottom = min(1.0, top + region.crop_bottom - region.crop_top + lacking)
        return CropRegion(region.crop_left, round(top, 4), region.crop_right, round(bottom, 4))


def _looked_at(facts: VideoFacts, times: list[int], detect: Detector) -> Iterator[tuple[Planes, list[Sides]]]:
    """The pictures of these pts with the text in each, in order; some are looked at while the next is decoded."""
    threads = default_inference_threads()
    waiting: deque[tuple[Planes, Future[list[Sides]]]] = deque()
    with ThreadPoolExecutor(threads, "crop") as pool:
        for planes in _planes_at(facts, times, threads=1):
            waiting.append((planes, pool.submit(detect, planes)))
            if len(waiting) > threads:
                seen, found = waiting.popleft()
                yield seen, found.result()
        while waiting:
            seen, found = waiting.popleft()
            yield seen, found.result()


def without_static(boxes: list[TextBox], luma: np.ndarray) -> list[TextBox]:
    """Text that does not stand in half of the pictures, as logos do.

    Args:
        boxes: text of all pictures.
        luma: of the pictures, coarsely, float32 (N, h, w).
    """
    return [box for box in boxes if not _is_static(box, luma)]


def _is_static(box: TextBox, luma: np.ndarray) -> bool:
    count, height, width = luma.shape
    rows = slice(math.floor(box.top * height), math.ceil(box.bottom * height))
    columns = slice(math.floor(box.left * width), math.ceil(box.right * width))
    there = luma[:, rows, columns].reshape(count, -1)
    there = there - there.mean(axis=1, keepdims=True)
    there /= np.maximum(np.linalg.norm(there, axis=1, keepdims=True), 1e-6)
    alike = there @ there[box.picture] > _STATIC_LIKENESS
    return bool(alike.sum() > max(2, _STATIC_SHARE * count))


def find_bands(boxes: list[TextBox]) -> list[Band]:
    """Bands of text that changes, those with text in most pictures first; at most two."""
    changing = [box for box in boxes if 0.012 < box.height < _MOST_HEIGHT]
    bands: list[Band] = []
    while changing and len(bands) < 2:
        inside = max((_within(changing, box.middle) for box in changing), key=_pictures_with)
        count = _pictures_with(inside)
        if count < max(2, _SECOND_BAND_SHARE * (bands[0].pictures if bands else 0)):
            break
        bands.append(Band(_region(inside), count))
        changing = [box for box in changing if box not in inside]
    return bands


def _within(boxes: list[TextBox], middle: float) -> list[TextBox]:
    return [box for box in boxes if abs(box.middle - middle) <= _REACH]


def _pictures_with(boxes: list[TextBox]) -> int:
    return len({box.picture for box in boxes})


def _region(boxes: list[TextBox]) -> CropRegion:
    """The region of a band: its boxes without outliers, with a margin for outlines and wider lines."""
    line = float(np.median([box.height for box in boxes]))
    middle = float(np.median([box.middle for box in boxes]))
    near = [box for box in boxes if abs(box.middle - middle) <= max(2.0 * line, 0.02)]
    room = 0.25 * line  # a cell is not counted that has but the end of a letter
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
"""Widest picture that is shown to a person."""


def pick_times(timeline: Timeline, count: int) -> list[int]:
    """Choose the pts of ``count`` evenly spaced frames; key frames, which decode on their own, if there are enough."""
    pool = timeline.key_pts if len(timeline.key_pts) >= count else timeline.sample_pts
    unique = np.unique(pool)
    picks = np.linspace(0, len(unique) - 1, min(count, len(unique))).round().astype(int)
    return [int(unique[pick]) for pick in np.unique(picks)]


def pictures_at(facts: VideoFacts, times: list[int]) -> Iterator[np.ndarray]:
    """The displayed pictures of these pts, RGB, uint8 (H, W, 3), at most 960 pixels wide; undecodable ones left out."""
    return map(_shown, _planes_at(facts, times))


def _planes_at(facts: VideoFacts, times: list[int], threads: int = 0) -> Iterator[Planes]:
    crop = resolve_crop(CropRegion(0, 0, 1, 1), facts)
    for frames in frames_between(facts, crop, [(pts, pts) for pts in times], threads=threads):
        if frames.pts:
            y, u, v = frames.planes
            yield y[0], u[0], v[0]


def _shown(planes: Planes) -> np.ndarray:
    height, width = planes[0].shape
    narrow = min(_WIDTH_PX, width)
    return to_picture(planes, (max(1, round(height * narrow / width)), narrow))
