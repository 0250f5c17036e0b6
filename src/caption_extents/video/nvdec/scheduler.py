"""Decoding the segments of a video in parallel, and returning their parts in order.

One thread reads packets and cuts them into segments (:mod:`caption_extents.video.nvdec.segments`). One thread per
session waits for its decoder, which runs in this or in another process. The iterating thread gets the parts of the
segments in order. This module does not need PyTorch, so that decoding can begin while PyTorch is still being imported.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

import numpy as np

from caption_extents.video.info import VideoFacts
from caption_extents.video.nvdec.segments import PackedSegment, Packet, Segment, Span, read_segments
from caption_extents.video.nvdec.session import Engine, KeyFrameNotDecodableError, Part, Session
from caption_extents.video.timeline import Timeline

_AHEAD = 2
"""Maximum number of segments per session that are being decoded or not completely consumed."""

_PARTS_AHEAD = 4
"""Maximum number of parts of a segment that wait to be consumed; then its session waits (back-pressure)."""

_CLOSE_SECONDS = 10.0

AnySegment: TypeAlias = "Segment[Packet] | PackedSegment"

SegmentReader: TypeAlias = Callable[[list[Span]], Iterator[PackedSegment]]
"""Gives a video's segments in order, as :func:`~caption_extents.video.nvdec.segments.read_segments` does; some may be
missing at the end."""


class SegmentSession(Protocol):
    """What decodes one segment after the other; see :class:`~caption_extents.video.nvdec.session.Session`."""

    def decode(self, segment: AnySegment, sample_pts: np.ndarray) -> Iterator[Part]:
        """The segment's parts, with planes of 8-bit 4:2:0 as crops."""
        ...

    def close(self) -> None:
        """Make a running call of :meth:`decode` end soon."""
        ...


class LocalSession:
    """A session whose decoder runs in the calling thread."""

    def __init__(self, engine: Engine, session: Session) -> None:
        self._engine, self._session = engine, session

    def decode(self, segment: AnySegment, sample_pts: np.ndarray) -> Iterator[Part]:
        """See the protocol."""
        unpacked = segment if isinstance(segment, Segment) else segment.unpack()
        for part in self._session.decode(unpacked, sample_pts):
            yield part.with_planes(self._engine)

    def close(self) -> None:
        """Nothing to do: the session checks its ``stopped`` function before every packet."""


class ParallelSegmentDecoder:
    """Threads that decode the spans of a file; iterating gives their parts in order, once.

    Args:
        facts: of the video.
        timeline: its samples.
        spans: segments to decode.
        sessions: sessions that decode the segments.
        remote_reader: reads the file in another process; segments that it does not return are read in this process.
        stopped: set by :meth:`close`; sessions check it.
    """

    def __init__(
        self,
        facts: VideoFacts,
        timeline: Timeline,
        spans: list[Span],
        sessions: Sequence[SegmentSession],
        remote_reader: SegmentReader | None,
        stopped: threading.Event,
    ) -> None:
        self.spans = spans
        self._facts, self._timeline, self._sessions, self._read_there = facts, timeline, sessions, remote_reader
        self._segments: queue.Queue[AnySegment | None] = queue.Queue()
        self._room = threading.Semaphore(len(sessions) * _AHEAD)
        self._stopped = stopped
        self._changed = threading.Condition()
        self._parts: dict[int, deque[Part]] = {}
        self._error: BaseException | None = None
        self.is_finished = False
        """Whether all parts have been taken; the sessions have nothing left to do then."""
        self._threads = [threading.Thread(target=self._read, name="segments", daemon=True)]
        for number, session in enumerate(sessions):
            self._threads.append(
                threading.Thread(target=self._work, args=(session,), name=f"session-{number}", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[Part]:
        for number in range(len(self.spans)):
            while (part := self._next(number)) is not None:
                yield part
                if part.is_last:
                    break
            else:
                return
            self._room.release()
        self.is_finished = True

    def _next(self, number: int) -> Part | None:
        with self._changed:
            while not self._parts.get(number) and self._error is None and not self._stopped.is_set():
                self._changed.wait()
            if self._error is not None:
                raise self._error
            if not self._parts.get(number):
                return None
            part = self._parts[number].popleft()
            if part.is_last:
                del self._parts[number]
            self._changed.notify_all()
        return part

    def close(self) -> None:
        """Stop all sessions, unless they are finished; returns when their threads have ended."""
        self._stopped.set()
        self._room.release()
        if not self.is_finished:
            for session in self._sessions:
                session.close()
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
            for left in range(found, len(self.spans)):
                self._segments.put(Segment(left, self.spans[left]))
        except BaseException as error:
            self._fail(error)

    def _all_segments(self) -> Iterator[AnySegment]:
        found = 0
        for segment in self._read_there(self.spans) if self._read_there else ():
            yield segment
            found += 1
        if found < len(self.spans):
            read = read_segments(self._facts, self._timeline, self.spans, self._stopped.is_set)
            yield from itertools.islice(read, found, None)

    def _work(self, session: SegmentSession) -> None:
        try:
            while (segment := self._segments.get()) is not None and not self._stopped.is_set():
                span = segment.span
                sample_pts = self._timeline.sample_pts[span.first_sample : span.last_sample]
                try:
                    for part in session.decode(segment, sample_pts):
                        self._put(segment.number, part)
                except KeyFrameNotDecodableError as error:
                    error.segment = segment.number
                    raise
        except BaseException as error:
            self._fail(error)

    def _put(self, number: int, part: Part) -> None:
        with self._changed:
            parts = self._parts.setdefault(number, deque())
            while len(parts) >= _PARTS_AHEAD and not self._stopped.is_set():
                self._changed.wait()
            parts.append(part)
            self._changed.notify_all()
