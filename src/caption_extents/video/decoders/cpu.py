"""Decoding on the CPU, and the crop out of the decoded planes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator

import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter

from caption_extents.errors import DecodeError, InputError
from caption_extents.samples import Planes, SampleBatch, empty_planes, plane_view
from caption_extents.video.crop import CropPixels
from caption_extents.video.decoders.base import (
    BATCH_SAMPLES,
    PictureChange,
    has_size_of_first,
    is_good,
    settle,
    size_and_format,
)
from caption_extents.video.demux import decode_or_skip, open_container, read_packets
from caption_extents.video.info import PresentationClock, VideoFacts
from caption_extents.video.pixels import FORMATS, PLAIN, sparse_chroma, upper_bits
from caption_extents.video.timeline import Timeline

_FULL_RANGE = 2
"""FFmpeg's number of the colour range in which luma goes from 0 to 255."""

_CLOSE_SECONDS = 10.0


class _Converters(threading.local):
    """A thread's converters, one for each kind of conversion: each keeps the swscale context of its last one."""

    def __init__(self) -> None:
        self.depth, self.size = VideoReformatter(), VideoReformatter()


_converters = _Converters()


def cut_planes(frame: VideoFrame, box: tuple[int, int, int, int]) -> Planes:
    """Y, U and V of a box of a frame in 8-bit 4:2:0, uint8: views of its memory if it has that format.

    What is converted keeps the range and matrix of YUV formats, so that only depth and chroma resolution change; see
    :mod:`caption_extents.video.pixels`.

    Args:
        frame: of any format.
        box: left, top, right and bottom in pixels, all even.
    """
    kind = FORMATS.get(frame.format.name)
    if kind is None:
        frame, kind = _converted(frame), PLAIN
    left, top, right, bottom = box
    step = 1 if kind.is_dense else 2
    y, u, v = (
        plane_view(plane, 1 if kind.depth == 8 else 2)[top // by : bottom // by, left // by : right // by]
        for plane, by in zip(frame.planes[:3], (1, step, step), strict=True)
    )
    if kind.depth > 8:
        y, u, v = (upper_bits(plane, kind.depth) for plane in (y, u, v))
    return (y, sparse_chroma(u), sparse_chroma(v)) if kind.is_dense else (y, u, v)


def _converted(frame: VideoFrame) -> VideoFrame:
    # The matrix is kept, whichever it is. swscale refuses some that it does not know, so it is told a common one.
    matrix = None if frame.format.is_rgb else Colorspace.ITU709
    return _converters.depth.reformat(
        frame,
        format=_format_of_range(_is_full_range(frame)),
        src_colorspace=matrix,
        dst_colorspace=matrix,
    )


def crop_planes(frame: VideoFrame, crop: CropPixels, facts: VideoFacts) -> list[np.ndarray]:
    """Y, U and V of a frame's crop, turned as displayed; views of its memory or of a converted copy.

    The crop of a frame of another size than the video's first is scaled to the size that it has there, and gets the
    range of its colours.
    """
    same_size = has_size_of_first(frame, facts)
    cropped = cut_planes(frame, crop.decoded) if same_size else _scaled_crop(frame, crop, facts)
    return [facts.orientation.apply(plane) for plane in cropped]


def _scaled_crop(frame: VideoFrame, crop: CropPixels, facts: VideoFacts) -> Planes:
    size = facts.width // 2 * 2, facts.height // 2 * 2
    box = crop.scaled(size, frame.width // 2 * 2, frame.height // 2 * 2)
    planes = cut_planes(frame, box)
    rows = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, planes[0].shape[1])
    source = VideoFrame.from_ndarray(rows, format=_format_of_range(_is_full_range(frame)))
    left, top, right, bottom = crop.decoded
    target = _format_of_range(facts.colour.range == _FULL_RANGE)
    width, height = right - left, bottom - top
    scaled = _converters.size.reformat(source, width, height, target, interpolation="BICUBIC")
    return cut_planes(scaled, (0, 0, width, height))


def _is_full_range(frame: VideoFrame) -> bool:
    # RGB becomes limited-range YUV.
    return not frame.format.is_rgb and (frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj"))


def _format_of_range(is_full: bool) -> str:
    return "yuvj420p" if is_full else "yuv420p"


class CpuDecoder:
    """A :class:`~caption_extents.video.decoders.base.SampleDecoder` on FFmpeg's threaded software decoders.

    Args:
        facts, timeline, crop: of the video.
        threads: of the decoder, 0 for one for each core.
        fallback_reason: why a GPU does not decode the video, if one was to.
        first_sample: begin with this sample, a multiple of :data:`BATCH_SAMPLES`; what is before it is decoded only.
    """

    def __init__(
        self,
        facts: VideoFacts,
        timeline: Timeline,
        crop: CropPixels,
        *,
        threads: int = 0,
        fallback_reason: str | None = None,
        first_sample: int = 0,
    ) -> None:
        self.name = "cpu" if fallback_reason is None else f"cpu ({fallback_reason})"
        self.undecodable_samples: list[int] = []
        self.picture_changes: list[PictureChange] = []
        self._facts = facts
        self._timeline = timeline
        self._crop = crop
        self._threads = threads
        self._first_sample = first_sample
        self._batches = self._decode()
        self._closing = False
        self._turn = threading.Lock()

    def __iter__(self) -> Iterator[SampleBatch]:
        return self

    def __next__(self) -> SampleBatch:
        with self._turn:
            if self._closing:
                raise self._closed_error()
            return next(self._batches)

    def close(self) -> None:
        """Stop decoding; the file is closed. A thread that is decoding stops at its next frame."""
        self._closing = True
        # A thread that hangs in a codec holds the lock: leave the file open for it.
        if self._turn.acquire(timeout=_CLOSE_SECONDS):
            try:
                self._batches.close()
            finally:
                self._turn.release()

    def _closed_error(self) -> InputError:
        return InputError(f"{str(self._facts.path)!r} was closed before all of its samples were taken; open it again")

    def _decode(self) -> Generator[SampleBatch]:
        first, count = self._first_sample, len(self._timeline)
        sample_pts = self._timeline.sample_pts[first:]
        skippable = frozenset(self._timeline.skippable_pts.tolist())
        writer = _BatchWriter(self._crop, self._facts, count)
        frames = _good_frames(self._facts, self._threads, skippable.__contains__, lambda: self._closing)
        at, picture = None, (self._facts.width, self._facts.height, self._facts.pixel_format)
        for at, pts, frame in settle(frames, sample_pts):
            number = first + at
            if self._closing:
                break
            if pts != sample_pts[at]:
                self.undecodable_samples.append(number)
            if (found := size_and_format(frame)) != picture:
                picture = found
                self.picture_changes.append(PictureChange(number, *found))
            batch = writer.add(number, frame)
            if batch is not None:
                yield batch
        if self._closing:
            raise self._closed_error()
        if at is None:
            raise DecodeError(f"no frame of {str(self._facts.path)!r} could be decoded")


def _good_frames(
    facts: VideoFacts,
    threads: int,
    skip: Callable[[int | None], bool],
    is_closing: Callable[[], bool],
) -> Iterator[tuple[int, VideoFrame]]:
    """Good frames of a video and their times, in presentation order.

    Args:
        facts: of the video.
        threads: of the decoder, 0 for one for each core.
        skip: tells by a packet's pts whether its frame is not needed.
        is_closing: asked before each packet; when true, the iteration ends.
    """
    last_pts, clock = facts.first_pts - 1, PresentationClock(facts.container, facts.usual_duration)
    with open_container(facts.path, facts.stream_index, threads) as (container, stream):
        try:
            for packet in read_packets(container, stream):
                if is_closing():
                    return
                if skip(packet.pts):
                    continue
                for frame in decode_or_skip(packet):
                    pts = clock(frame)
                    if pts is not None and pts >= last_pts and is_good(frame):
                        last_pts = pts
                        yield pts, frame
        except av.error.FFmpegError:
            # The file ends in damage. What follows cannot be read, and its samples are listed.
            return


class _BatchWriter:
    """Copies crops out of frames into batches."""

    def __init__(self, crop: CropPixels, facts: VideoFacts, count: int) -> None:
        self._crop, self._facts, self._count = crop, facts, count
        self._planes: Planes | None = None
        self._cropped_frame: VideoFrame | None = None
        self._cropped: list[np.ndarray] = []

    def add(self, number: int, frame: VideoFrame) -> SampleBatch | None:
        """Copy the crop of a frame into the batch as sample ``number``; returns the batch when it is complete."""
        crop, at = self._crop, number % BATCH_SAMPLES
        if self._planes is None:
            self._planes = empty_planes(min(BATCH_SAMPLES, self._count - number + at), crop.height, crop.width)
        if self._cropped_frame is not frame:
            self._cropped = crop_planes(frame, self._crop, self._facts)
            self._cropped_frame = frame
        for target, source in zip(self._planes, self._cropped, strict=True):
            target[at] = source
        if at + 1 < len(self._planes[0]):
            return None
        planes, self._planes = self._planes, None
        return SampleBatch(number - at, *planes)
