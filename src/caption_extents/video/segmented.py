"""Decoding segments of a video side by side, and giving their samples out in order.

One thread reads packets and cuts them into segments (:mod:`caption_extents.video.segments`); several sessions, each
with a decoder and a thread of its own, decode segments; the iterating thread puts them back in order. What decodes and
crops is an :class:`Engine`: the engines of a GPU in :mod:`caption_extents.video.nvdec`.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

import av
import av.error
import torch
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from caption_extents.errors import DecodeError
from caption_extents.video.batch import CropBatch, Planes
from caption_extents.video.decoder import BATCH_SAMPLES
from caption_extents.video.segments import Packet, Segment, Span, plan_spans, read_segments
from caption_extents.video.settling import is_good, settle
from caption_extents.video.source import VideoFacts
from caption_extents.video.timeline import Timeline

SEGMENT_SAMPLES = 64
"""Least samples in a segment. Draining a session at a segment's end costs a few frames' time, so not too few; all
sessions hold segments at once, and all must have one soon after the start, so not too many."""

_AHEAD = 2
"""Segments under way or waiting to be given out, for each session."""

_CLOSE_SECONDS = 10.0

SegmentReader: TypeAlias = Callable[[list[Span]], Iterator[Segment[Packet]]]
"""Gives a video's segments in order, as :func:`~caption_extents.video.segments.read_segments` does; some may be missing
at the end."""

Buffers: TypeAlias = tuple[torch.Tensor, ...]
"""Crops of consecutive samples, laid out as suits the engine that takes them."""


class Engine(Protocol):
    """What decodes and crops. A session calls it from its own thread only."""

    def open(self) -> VideoCodecContext:
        """A decoder for the video's packets."""
        ...

    def empty(self, count: int) -> Buffers:
        """Uninitialised room for the crops of ``count`` samples."""
        ...

    def crop_into(self, frame: VideoFrame, buffers: Buffers, index: int) -> None:
        """Copy a frame's crop into the room of sample ``index``."""
        ...

    def planes(self, buffers: Buffers) -> Planes:
        """Crops that are all there, as they are displayed."""
        ...


class _DependentError(Exception):
    """A segment's first frame cannot be decoded without what was before it."""


@dataclass
class _Crops:
    """What a segment gave.

    Attributes:
        span: the segment's samples.
        planes: their crops.
        undecodable: samples that do not show their own frame.
        last: crop of the last good frame, planes of one sample; None if there was none, and the samples show what was
            shown before.
    """

    span: Span
    planes: Planes
    undecodable: list[int]
    last: Planes | None = None


class SegmentedDecoder:
    """A :class:`~caption_extents.video.decoder.SampleDecoder` that decodes segments side by side.

    Args:
        name: see the protocol.
        facts: of the video.
        timeline: its samples.
        engines: one for each session.
        batch_samples: samples in a batch.
        read_there: another process that reads the file; what it leaves out is read here.
    """

    def __init__(
        self,
        name: str,
        facts: VideoFacts,
        timeline: Timeline,
        engines: list[Engine],
        batch_samples: int = BATCH_SAMPLES,
        read_there: SegmentReader | None = None,
    ) -> None:
        self.name = name
        self.undecodable_samples: list[int] = []
        self._facts, self._timeline, self._engines = facts, timeline, engines
        self._batch_samples, self._read_there = batch_samples, read_there
        self._batches = self._decode()
        self._work: _SideBySide | None = None

    def __iter__(self) -> Iterator[CropBatch]:
        return self._batches

    def close(self) -> None:
        """Stop all sessions; returns when their threads have ended."""
        if self._work is not None:
            self._work.close()

    def _decode(self) -> Iterator[CropBatch]:
        spans = plan_spans(self._timeline, SEGMENT_SAMPLES)
        cutter = _BatchCutter(len(self._timeline), self._batch_samples)
        try:
            yield from self._decode_spans(spans, cutter)
        except _DependentError:
            # Key frames that are none, as with intra refresh: one decoder, from the start, past what is given already.
            yield from self._decode_spans([Span(spans[0].start_pts, None, 0, len(self._timeline))], cutter)

    def _decode_spans(self, spans: list[Span], cutter: _BatchCutter) -> Iterator[CropBatch]:
        self._work = work = _SideBySide(
            self._facts, self._timeline, spans, self._engines[: len(spans)], self._read_there
        )
        try:
            for crops in work:
                self.undecodable_samples.extend(
                    number for number in crops.undecodable if number >= cutter.taken_samples
                )
                yield from cutter.add(crops)
        finally:
            work.close()


class _SideBySide:
    """Threads that decode the spans of a file; iterating gives their crops in order."""

    def __init__(
        self,
        facts: VideoFacts,
        timeline: Timeline,
        spans: list[Span],
        engines: list[Engine],
        read_there: SegmentReader | None,
    ) -> None:
        self._facts, self._timeline, self._spans, self._read_there = facts, timeline, spans, read_there
        self._segments: queue.Queue[Segment[Packet] | None] = queue.Queue()
        self._room = threading.Semaphore(len(engines) * _AHEAD)
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        self._done: dict[int, _Crops] = {}
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._read, name="segments", daemon=True)]
        for number, engine in enumerate(engines):
            session = _Session(engine, facts, timeline, self._stopped)
            self._threads.append(
                threading.Thread(target=self._work, args=(session,), name=f"session-{number}", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[_Crops]:
        for number in range(len(self._spans)):
            with self._changed:
                while number not in self._done and self._error is None and not self._stopped.is_set():
                    self._changed.wait()
                if self._error is not None:
                    raise self._error
                if number not in self._done:
                    return
                crops = self._done.pop(number)
            self._room.release()
            yield crops

    def close(self) -> None:
        self._stopped.set()
        self._room.release()
        for _ in self._threads:
            self._segments.put(None)
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                # One that hangs in a codec is left behind.
                thread.join(_CLOSE_SECONDS)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _read(self) -> None:
        try:
            found = 0
            for segment in self._all_segments():
                self._room.acquire()
                if self._stopped.is_set():
                    return
                self._segments.put(segment)
                found += 1
            for left in range(found, len(self._spans)):
                self._segments.put(Segment(left, self._spans[left]))
        except BaseException as error:
            self._fail(error)

    def _all_segments(self) -> Iterator[Segment[Packet]]:
        found = 0
        for segment in self._read_there(self._spans) if self._read_there else ():
            yield segment
            found += 1
        if found < len(self._spans):
            read = read_segments(self._facts.path, self._timeline, self._spans, self._stopped.is_set)
            yield from itertools.islice(read, found, None)

    def _work(self, session: _Session) -> None:
        try:
            while (segment := self._segments.get()) is not None and not self._stopped.is_set():
                crops = session.decode(segment)
                with self._changed:
                    self._done[segment.number] = crops
                    self._changed.notify_all()
        except BaseException as error:
            self._fail(error)


class _Session:
    """One decoder. All calls come from one thread."""

    def __init__(self, engine: Engine, facts: VideoFacts, timeline: Timeline, stopped: threading.Event) -> None:
        self._engine, self._facts, self._timeline, self._stopped = engine, facts, timeline, stopped
        self._context: VideoCodecContext | None = None

    def decode(self, segment: Segment[Packet]) -> _Crops:
        """Decode a segment and crop its samples.

        Raises:
            _DependentError: it is not the first, and its first frame cannot be decoded.
        """
        span, engine = segment.span, self._engine
        buffers, undecodable = engine.empty(len(span)), list[int]()
        sample_pts = self._timeline.sample_pts[span.first_sample : span.last_sample]
        latest: VideoFrame | None = None

        def frames() -> Iterator[tuple[int, VideoFrame]]:
            nonlocal latest
            for pts, frame in self._frames(segment):
                if latest is None and segment.number and pts != span.start_pts:
                    raise _DependentError
                latest = frame
                yield pts, frame

        source = frames()
        for at, pts, frame in settle(source, sample_pts):
            engine.crop_into(frame, buffers, at)
            if pts != sample_pts[at]:
                undecodable.append(span.first_sample + at)
        for _ in source:
            pass  # to the end, so that the decoder is empty for the next segment, and the last good frame is known
        if latest is not None:
            last = engine.empty(1)
            engine.crop_into(latest, last, 0)
            return _Crops(span, engine.planes(buffers), undecodable, engine.planes(last))
        if segment.number and segment.packets and not self._stopped.is_set():
            raise _DependentError
        return _Crops(span, engine.planes(buffers), list(range(span.first_sample, span.last_sample)))

    def _frames(self, segment: Segment[Packet]) -> Iterator[tuple[int, VideoFrame]]:
        """Good frames of a segment and their times, in presentation order."""
        if self._context is None:
            self._context = self._engine.open()
        span, context = segment.span, self._context
        last_pts = span.start_pts - 1
        packets: list[Packet | None] = [*segment.packets, None]
        for packet in packets:
            if self._stopped.is_set():
                return
            try:
                frames = context.decode(packet)
            except av.error.FFmpegError:
                continue
            for frame in frames:
                pts = frame.pts
                if pts is None or pts < last_pts or pts < span.start_pts:
                    continue
                if (span.end_pts is None or pts < span.end_pts) and is_good(frame, self._facts):
                    last_pts = pts
                    yield pts, frame
        context.flush_buffers()


class _BatchCutter:
    """Cuts segments, which come in order, into batches of a size."""

    def __init__(self, count: int, batch_samples: int) -> None:
        self._count, self._size = count, batch_samples
        self._given = 0
        self._parts: list[Planes] = []
        self._held = 0
        self._shown: Planes | None = None

    @property
    def taken_samples(self) -> int:
        """Samples that came in so far."""
        return self._given + self._held

    def add(self, crops: _Crops) -> Iterator[CropBatch]:
        """The batches that a segment completes. Samples that came in before are passed over."""
        if crops.last is None:
            if self._shown is None:
                raise DecodeError("no frame at the start of the video could be decoded")
            for target, source in zip(crops.planes, self._shown, strict=True):
                target[:] = source
        self._shown = crops.last or self._shown
        passed = self.taken_samples - crops.span.first_sample
        if passed < len(crops.span):
            self._parts.append(_slice(crops.planes, passed, len(crops.span)))
            self._held += len(crops.span) - passed
        joined = cast(Planes, tuple(torch.cat(group) for group in zip(*self._parts, strict=True)))
        at = 0
        while self._held >= self._size or (self._held and self.taken_samples == self._count):
            size = min(self._size, self._held)
            batch = CropBatch(self._given, *_slice(joined, at, at + size))
            at, self._held, self._given = at + size, self._held - size, self._given + size
            yield batch
        self._parts = [_slice(joined, at, at + self._held)]


def _slice(planes: Planes, start: int, end: int) -> Planes:
    y, u, v = planes
    return y[start:end], u[start:end], v[start:end]
