"""One decoder at work on segments: packets in, crops of samples out, some at a time.

Decoding and cropping are done by an :class:`Engine`, such as NVDEC in :mod:`caption_extents.video.nvdec.engine`. This
module does not depend on threads, processes or PyTorch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias, cast

import av
import av.error
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from caption_extents.samples import Planes
from caption_extents.video.decoders.base import is_good, settle, size_and_format
from caption_extents.video.demux import open_container
from caption_extents.video.info import VideoFacts
from caption_extents.video.nvdec.segments import BEGINNING_PACKETS, Packet, Segment

Crops: TypeAlias = tuple[np.ndarray, ...]
"""Crops of consecutive samples, uint8 (N, ...), laid out as the engine requires."""

Room: TypeAlias = Callable[[int], Crops]
"""Allocates uninitialised crops for a number of samples."""


class Engine(Protocol):
    """Decodes frames and copies crops. A session calls it from one thread only."""

    shapes: tuple[tuple[int, ...], ...]
    """Shape of one sample's crop in each array."""

    def kind_of_stream(self) -> Hashable:
        """What a decoder is opened for: one that is open can go on with another video of the same kind."""
        ...

    def open(self) -> VideoCodecContext:
        """A decoder for the video's packets."""
        ...

    def pin(self, memory: np.ndarray, before: np.ndarray | None) -> None:
        """Prepare memory that crops will be copied to again and again, in place of what was prepared before."""
        ...

    def takes(self, frame: VideoFrame) -> bool:
        """Whether a frame has the size and format from which crops are copied as they are."""
        ...

    def crop_into(self, frame: VideoFrame, crops: Crops, index: int) -> None:
        """Start to copy the crop of a frame to index ``index`` of ``crops``; complete after :meth:`finish`."""
        ...

    def finish(self) -> None:
        """Return when everything has been copied."""
        ...

    def planes(self, crops: Crops) -> Planes:
        """Crops as planes of 8-bit 4:2:0, not turned; copies."""
        ...


def new_room(engine: Engine) -> Room:
    """A :data:`Room` that allocates new arrays for every part."""
    return lambda count: tuple(np.empty((count, *shape), np.uint8) for shape in engine.shapes)


class KeyFrameNotDecodableError(Exception):
    """A segment's first frame cannot be decoded without what was before it.

    Attributes:
        segment: its number; 0 where it is not known.
    """

    segment = 0


class PictureChangesError(Exception):
    """A frame has another size or format than the video's first; such frames are cropped and converted on the CPU."""


@dataclass(frozen=True)
class Part:
    """Some of a segment's samples, in order.

    Attributes:
        first_sample: number of the first.
        count: how many.
        crops: crops of the samples; None if no frame of the segment decodes, so that they show the frame before it.
        undecodable: numbers of samples that do not show their own frame.
        is_last: whether this is the last part of the segment.
        last: in the last part, the crop of the segment's last good frame.
    """

    first_sample: int
    count: int
    crops: Crops | None
    undecodable: list[int] = field(default_factory=list)
    is_last: bool = True
    last: Crops | None = None

    def with_planes(self, engine: Engine) -> Part:
        """The same with crops that are planes of 8-bit 4:2:0, and copies."""
        crops, last = (None if there is None else engine.planes(there) for there in (self.crops, self.last))
        return replace(self, crops=crops, last=last)


class Session:
    """One decoder. All calls come from one thread.

    Args:
        engine: decodes and crops.
        facts: facts of the video.
        part_samples: maximum number of samples in a part.
        room: allocates the crops of a part; called with one sample more than the part has, for the last good frame.
        stopped: checked before every packet; decoding ends when it returns True.
        before: a session that is over, whose decoder this one may go on with: opening one takes a twentieth of a
            second, and a GPU's driver opens one after the other.
    """

    def __init__(
        self,
        engine: Engine,
        facts: VideoFacts,
        part_samples: int,
        room: Room,
        stopped: Callable[[], bool],
        before: Session | None = None,
    ) -> None:
        self._engine, self._facts, self._stopped = engine, facts, stopped
        self._part_samples, self._room = part_samples, room
        self._kind, self._context = engine.kind_of_stream(), None if before is None else before._given_up()
        if before is not None and before._kind != self._kind:
            self._context = None
        self._is_prepared = False
        self._is_drained = True
        """Whether the decoder has been drained after the previous segment; otherwise it is opened again."""

    def _given_up(self) -> VideoCodecContext | None:
        """The decoder, for another session; None if it is in the middle of something."""
        context, self._context = self._context, None
        return context if self._is_drained else None

    def get_ready(self, beginning: list[Packet]) -> None:
        """Open the decoder, while the file is still being indexed; what goes wrong does so again with a segment."""
        with suppress(Exception):
            if self._context is None:
                self._context = self._engine.open()
                # The driver's decoder is opened when the first packet is decoded.
                _prepare(self._context, beginning)

    def decode(self, segment: Segment[Packet], sample_pts: np.ndarray) -> Iterator[Part]:
        """Decode a segment and crop its samples.

        Args:
            segment: to decode.
            sample_pts: of its samples, int64.

        Raises:
            KeyFrameNotDecodableError: it is not the first, and its first frame cannot be decoded.
            PictureChangesError: a frame has another size or format than the video's first.
        """
        latest: VideoFrame | None = None
        if not self._is_drained:
            self._context, self._is_prepared = None, False
        self._is_drained = False

        def frames() -> Iterator[tuple[int, VideoFrame]]:
            nonlocal latest
            for pts, frame in self._frames(segment):
                if latest is None and segment.number and pts != segment.span.start_pts:
                    raise KeyFrameNotDecodableError
                latest = frame
                yield pts, frame

        first, end, engine = segment.span.first_sample, segment.span.last_sample, self._engine
        source, crops, undecodable, begun = frames(), None, list[int](), 0
        for at, pts, frame in settle(source, sample_pts):
            if crops is None:
                crops, begun = self._room(min(self._part_samples, len(sample_pts) - at) + 1), at
            engine.crop_into(frame, crops, at - begun)
            if pts != sample_pts[at]:
                undecodable.append(first + at)
            if at + 1 == begun + self._part_samples < len(sample_pts):
                engine.finish()
                yield Part(first + begun, at + 1 - begun, _cut(crops, 0, at + 1 - begun), undecodable, is_last=False)
                crops, undecodable = None, []
        for _ in source:
            pass  # decode to the end: this drains the decoder and finds the last good frame
        if latest is None or crops is None:
            if segment.number and segment.packets and not self._stopped():
                raise KeyFrameNotDecodableError
            yield Part(first, end - first, None, list(range(first, end)))
            return
        count = len(sample_pts) - begun
        engine.crop_into(latest, crops, count)
        engine.finish()
        yield Part(first + begun, count, _cut(crops, 0, count), undecodable, last=_cut(crops, count, count + 1))

    def _frames(self, segment: Segment[Packet]) -> Iterator[tuple[int, VideoFrame]]:
        """Good frames of a segment and their times, in presentation order."""
        packets: Iterator[Packet] = itertools.chain(segment.packets, segment.later)
        if self._context is None:
            self._context = self._engine.open()
        if not self._is_prepared:
            self._is_prepared = True
            if self._facts.codec == "h264":
                first = list(itertools.islice(packets, BEGINNING_PACKETS))
                _prepare(self._context, first)
                packets = itertools.chain(first, packets)
        span, context = segment.span, self._context
        last_pts = span.start_pts - 1
        for packet in itertools.chain(packets, [None]):
            if self._stopped():
                return
            try:
                frames = context.decode(packet)
            except av.error.FFmpegError as error:
                if packet is not None and packet.is_keyframe and self._is_of_another_kind(packet):
                    raise PictureChangesError from error
                continue
            for frame in frames:
                pts = frame.pts
                if pts is None or pts < last_pts or pts < span.start_pts:
                    continue
                if (span.end_pts is None or pts < span.end_pts) and not frame.is_corrupt:
                    if not self._engine.takes(frame):
                        raise PictureChangesError
                    last_pts = pts
                    yield pts, frame
        context.flush_buffers()
        self._is_drained = True

    def _is_of_another_kind(self, packet: Packet) -> bool:
        """Whether a key frame that the engine refuses is whole, and has another size or format than the first."""
        facts = self._facts
        context = cast(VideoCodecContext, av.CodecContext.create(facts.codec, "r"))
        with open_container(facts.path, facts.stream_index) as (_, stream):
            context.extradata = stream.codec_context.extradata
        try:
            frames = [*context.decode(packet), *context.decode(None)]
        except av.error.FFmpegError:
            return False
        first = facts.width, facts.height, facts.pixel_format
        return any(is_good(frame) and size_and_format(frame) != first for frame in frames)


def _prepare(context: VideoCodecContext, packets: list[Packet]) -> None:
    """Let an H.264 decoder find the reorder depth of the stream by decoding its first packets and flushing it.

    H.264 streams need not declare the reorder depth (``bitstream_restriction_flag``, annex E). FFmpeg's decoder then
    learns it from the first frame that comes out too late, and drops that frame. It keeps the learned depth when it is
    flushed.
    """
    for packet in [*packets, None]:
        with suppress(av.error.FFmpegError):
            context.decode(packet)
    context.flush_buffers()


def _cut(crops: Crops, start: int, end: int) -> Crops:
    return tuple(array[start:end] for array in crops)
