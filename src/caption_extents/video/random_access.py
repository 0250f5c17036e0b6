"""Decoding the frames of given time intervals, for example those between two samples."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import av.error
import numpy as np
from av.video.frame import VideoFrame

from caption_extents.samples import Planes
from caption_extents.video.crop import CropPixels
from caption_extents.video.decoders.base import is_good
from caption_extents.video.decoders.cpu import crop_planes
from caption_extents.video.demux import decode_or_skip, open_container, read_packets
from caption_extents.video.info import VideoFacts

_READ_ON_SECONDS = 2.0
"""Intervals nearer than this are reached by reading on; farther ones by seeking to the key frame before them."""

_SEEK_AHEAD_SECONDS = (0.0, 4.0, 20.0, 1e6)


@dataclass(frozen=True)
class CroppedFrames:
    """Consecutive frames of the source, cropped.

    Attributes:
        pts: of each frame, in ticks.
        luma: of each frame, uint8 (H, W).
        chroma: U and V of each frame, uint8 (H/2, W/2); None of frames outside the intervals that need it.
    """

    pts: list[int]
    luma: list[np.ndarray]
    chroma: list[tuple[np.ndarray, np.ndarray] | None]

    def part(self, first: int, last: int) -> CroppedFrames:
        """Those from one time to another, in ticks, both included."""
        chosen = slice(bisect_left(self.pts, first), bisect_right(self.pts, last))
        return CroppedFrames(self.pts[chosen], self.luma[chosen], self.chroma[chosen])

    @property
    def planes(self) -> Planes:
        """Y (N, H, W), U and V (N, H/2, W/2), uint8; of one frame or more, all of which have chroma."""
        u, v = zip(*(chroma for chroma in self.chroma if chroma is not None), strict=True)
        return np.stack(self.luma), np.stack(u), np.stack(v)


def frames_between(
    facts: VideoFacts,
    crop: CropPixels,
    intervals: Iterable[tuple[int, int]],
    chroma: Sequence[tuple[int, int]] | None = None,
    threads: int = 0,
) -> Iterator[CroppedFrames]:
    """Frames from one time to another, both included, for each of several intervals, which may overlap.

    Args:
        facts: of a video whose container keeps presentation times.
        crop: what to keep of each frame.
        intervals: first and last pts, in ticks; neither goes back from one interval to the next.
        chroma: intervals whose frames are kept with their chroma, in order; by default all frames are.
        threads: of the decoder, 0 for one for each core.

    Yields:
        The frames of each interval that can be decoded; they may be none.
    """
    read_on = int(_READ_ON_SECONDS / facts.time_base)
    starts = [first for first, _ in chroma or ()]

    def needs_chroma(pts: int) -> bool:
        number = bisect_right(starts, pts)
        return chroma is None or any(first <= pts <= last for first, last in chroma[max(0, number - 2) : number])

    def cropped(frame: VideoFrame) -> _Frame:
        # Copies: a whole frame is ten times as large as its crop.
        y, u, v = crop_planes(frame, crop, facts)
        return _Frame(_pts(frame), y.copy(), (u.copy(), v.copy()) if needs_chroma(_pts(frame)) else None)

    with open_container(facts.path, facts.stream_index, threads) as (container, stream):
        reader: Iterator[VideoFrame] = iter(())
        held: list[_Frame] = []
        before: tuple[int, int] | None = None
        for first, last in intervals:
            if before is None or not before[0] <= first <= before[1] + read_on:
                reader, held = _frames_from(container, stream, facts, first), []
            held, before = [frame for frame in held if frame.pts >= first], (first, last)
            while not held or held[-1].pts < last:
                frame = next(reader, None)
                if frame is None:
                    break
                if _pts(frame) >= first:
                    held.append(cropped(frame))
            found = [frame for frame in held if frame.pts <= last]
            yield CroppedFrames(*(list(values) for values in zip(*found, strict=True))) if found else _NONE


class _Frame(NamedTuple):
    pts: int
    luma: np.ndarray
    chroma: tuple[np.ndarray, np.ndarray] | None


_NONE = CroppedFrames([], [], [])


def _frames_from(
    container: av.container.InputContainer, stream: av.VideoStream, facts: VideoFacts, first: int
) -> Iterator[VideoFrame]:
    """Seek, and decode frames from the time ``first`` on, possibly from some time before it.

    In containers without an index (MPEG-TS), seeking is approximate and may end after the key frame. In this case seek
    to earlier positions, and finally to the start of the file.
    """
    for seconds in _SEEK_AHEAD_SECONDS:
        container.seek(first - int(seconds / facts.time_base), stream=stream, backward=True)
        reader = _frames(container, stream)
        frame = next(reader, None)
        if frame is not None and (_pts(frame) <= first or seconds == _SEEK_AHEAD_SECONDS[-1]):
            return itertools.chain([frame], reader)
    return iter(())


def _frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[VideoFrame]:
    try:
        for packet in read_packets(container, stream):
            yield from (frame for frame in decode_or_skip(packet) if frame.pts is not None and is_good(frame))
    except av.error.FFmpegError:
        return


def _pts(frame: VideoFrame) -> int:
    assert frame.pts is not None
    return frame.pts
