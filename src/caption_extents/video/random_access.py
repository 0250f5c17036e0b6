"""Decoding the frames of given time intervals, for example those between two samples."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import av.error
import numpy as np
from av.video.frame import VideoFrame

from caption_extents.samples import Planes, slice_planes
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
        planes: Y (N, H, W), U and V (N, H/2, W/2), uint8.
    """

    pts: list[int]
    planes: Planes

    def part(self, first: int, last: int) -> CroppedFrames:
        """Those from one time to another, in ticks, both included."""
        start, stop = bisect_left(self.pts, first), bisect_right(self.pts, last)
        return CroppedFrames(self.pts[start:stop], slice_planes(self.planes, start, stop))


def frames_between(
    facts: VideoFacts, crop: CropPixels, intervals: Iterable[tuple[int, int]], threads: int = 0
) -> Iterator[CroppedFrames]:
    """Frames from one time to another, both included, for each of several intervals.

    Args:
        facts: of a video whose container keeps presentation times.
        crop: what to keep of each frame.
        intervals: first and last pts, in ticks, in order of time.
        threads: of the decoder, 0 for one for each core.

    Yields:
        The frames of each interval that can be decoded; they may be none.
    """
    read_on = int(_READ_ON_SECONDS / facts.time_base)
    with open_container(facts.path, facts.stream_index, threads) as (container, stream):
        reader: Iterator[VideoFrame] = iter(())
        held: list[tuple[int, list[np.ndarray]]] = []
        before: tuple[int, int] | None = None
        for first, last in intervals:
            if before is None or not before[0] <= first <= before[1] + read_on:
                reader, held = _frames_from(container, stream, facts, first), []
            # Neighbouring intervals may overlap: frames of one may be frames of the next.
            held, before = [frame for frame in held if frame[0] >= first], (first, last)
            while not held or held[-1][0] < last:
                frame = next(reader, None)
                if frame is None:
                    break
                if _pts(frame) >= first:
                    held.append((_pts(frame), _planes(frame, crop, facts)))
            yield _joined([frame for frame in held if frame[0] <= last], crop)


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


def _planes(frame: VideoFrame, crop: CropPixels, facts: VideoFacts) -> list[np.ndarray]:
    """Copies: a whole frame is ten times as large as its crop."""
    return [plane.copy() for plane in crop_planes(frame, crop, facts)]


def _joined(frames: list[tuple[int, list[np.ndarray]]], crop: CropPixels) -> CroppedFrames:
    shapes = [(crop.height, crop.width), *[(crop.height // 2, crop.width // 2)] * 2]
    groups = zip(*(planes for _, planes in frames), strict=True) if frames else ((), (), ())
    y, u, v = (
        np.stack(group) if group else np.empty((0, *shape), np.uint8)
        for group, shape in zip(groups, shapes, strict=True)
    )
    return CroppedFrames([pts for pts, _ in frames], (y, u, v))
