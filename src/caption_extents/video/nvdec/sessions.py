"""The decoder sessions of a GPU: their number, the processes in which they run, and when they start.

Decoding can begin before the parent process has imported PyTorch: the session processes start, another process indexes
the video, and the first segments are decoded while PyTorch is imported.
"""

from __future__ import annotations

import itertools
import os
import threading
from contextlib import suppress
from dataclasses import dataclass

from caption_extents.children import Children, Pool
from caption_extents.errors import CaptionExtentsError, DecodeError
from caption_extents.region import CropRegion
from caption_extents.spawning import SESSIONS
from caption_extents.video.crop import CropPixels, resolve_crop
from caption_extents.video.decoders.isolated import VideoReaderProcess
from caption_extents.video.info import VideoFacts
from caption_extents.video.nvdec import segments
from caption_extents.video.nvdec.capabilities import decode_engines, why_not_nvdec
from caption_extents.video.nvdec.scheduler import LocalSession, ParallelSegmentDecoder, SegmentReader, SegmentSession
from caption_extents.video.nvdec.segments import PackedSegment, Span, plan_spans
from caption_extents.video.nvdec.session import Session, new_room
from caption_extents.video.nvdec.worker import EngineSpec, SessionProcess, part_samples
from caption_extents.video.timeline import Timeline

SPARE_SESSIONS = 1
"""Sessions in addition to one per engine, so that no engine idles while a session is between two segments."""

_SHARED_BYTES = 64 << 20
"""Maximum size of a film of one segment that is sent to a session process; larger ones are decoded in this process."""

_LONG_BYTES = 64 << 20
"""A film of so many bytes will very likely need all sessions of a process."""

_SEGMENTS_OF_SESSION = 3
"""A session is worth opening for so many segments. A GPU's driver takes 0.06 s to open a decoder, one after the other,
and each decodes the first frames of its film twice: as long as it takes for three segments of 720p."""

_SHORT_SEGMENTS = 32
"""A film of up to so many segments, three minutes or so, is decoded by the sessions of one process, whose context takes
the driver 0.4 s."""


@dataclass(frozen=True)
class Work:
    """What to decode.

    Attributes:
        facts: of the video.
        timeline: its samples.
        crop: what to keep of each.
        spans: the segments.
        sessions: at work at once; 0 for one for each engine and one more.
    """

    facts: VideoFacts
    timeline: Timeline
    crop: CropPixels
    spans: list[Span]
    sessions: int = 0


class SessionPool(Pool[SessionProcess]):
    """Processes with decoder sessions of one GPU.

    Args:
        ordinal: number of the device.
        children: registry in which the processes are started.
        kind: of the sessions' engines; by default NVDEC.
        most_idle: see the base class.
    """

    def __init__(
        self, ordinal: int, children: Children | None = None, kind: EngineSpec | None = None, most_idle: int = 0
    ) -> None:
        self.ordinal, registry = ordinal, children or Children()
        self.kind = kind or EngineSpec("caption_extents.video.nvdec.engine", "NvdecEngine", ordinal)
        super().__init__(lambda: SessionProcess(self.kind, registry), most_idle)
        # This process asks the driver what it decodes, and needs a context for it.
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def _warm_up(self) -> None:
        with suppress(OSError, DecodeError):  # told when a video is opened
            self.kind.warm_up()


class GpuSessions:
    """Decoder sessions of one GPU for one video, in processes that start at once, or are there already.

    Args:
        pool: where the processes come from.
        owner: whose video it is.
    """

    def __init__(self, pool: SessionPool, owner: str = "") -> None:
        self._pool, self._ordinal, self._kind = pool, pool.ordinal, pool.kind
        self._can_share = hasattr(os, "memfd_create")
        self._owner = owner
        self._unused = [pool.take(owner)] if self._can_share else []
        self._getting_ready: list[SessionProcess] = []
        self._busy: list[SessionProcess] = []
        self._running: ParallelSegmentDecoder | None = None
        self._early: tuple[Work, ParallelSegmentDecoder] | None = None
        self._beginning: threading.Thread | None = None
        self._is_closed = False

    def begin_early(self, reader: VideoReaderProcess, region: CropRegion) -> None:
        """Begin to decode a video that another process is indexing, as soon as that has been done."""

        def begin() -> None:
            try:
                reader.wait_until_probed()
                facts = reader.facts
                if why_not_nvdec(facts, self._ordinal) is not None:
                    return
                crop = resolve_crop(region, facts)
                self._get_ready(facts, crop, reader.take_beginning())
                reader.wait_until_indexed()
                timeline = reader.timeline
                work = Work(facts, timeline, crop, plan_spans(timeline, segments.SEGMENT_SAMPLES))
                self._early = work, self._begin(work, reader.segments)
            except CaptionExtentsError:
                return  # raised again when the video is asked for
            except ValueError:
                if not self._is_closed:  # otherwise the shared memory may be gone
                    raise

        self._beginning = threading.Thread(target=begin, name="begin-early", daemon=True)
        self._beginning.start()

    def _get_ready(self, facts: VideoFacts, crop: CropPixels, beginning: PackedSegment | None) -> None:
        """Open decoders while the file is being indexed: one, or as many as a large file will need in any case."""
        process = next(iter(self._unused), None)
        if beginning is None or process is None:
            return
        # Until it has decoded the film to its end, it must not be given to another one.
        self._unused, self._getting_ready = self._unused[1:], [process]
        count = self._most_sessions(facts) if facts.size_bytes > _LONG_BYTES else 1
        for session in process.sessions(facts, crop)[:count]:
            session.get_ready(beginning)

    def begin(self, work: Work, remote_reader: SegmentReader | None) -> ParallelSegmentDecoder:
        """Begin to decode, or go on with what has begun early if it is the same."""
        if self._beginning is not None:
            self._beginning.join()
        early, self._early = self._early, None
        if early is not None:
            known, begun = early
            if (known.crop, known.spans) == (work.crop, work.spans) and not work.sessions:
                self._running = begun
                return begun
            begun.close()
        self._running = self._begin(work, remote_reader)
        return self._running

    def _begin(self, work: Work, remote_reader: SegmentReader | None) -> ParallelSegmentDecoder:
        facts, stopped = work.facts, threading.Event()
        if len(work.spans) == 1 and facts.size_bytes > _SHARED_BYTES:
            # The single segment is too large to be sent to another process.
            return ParallelSegmentDecoder(
                facts, work.timeline, work.spans, self._local(work, 1, stopped), None, stopped
            )
        count = min(work.sessions or self._session_count(work), len(work.spans))
        sessions = self._remote(work, count) if self._can_share else self._local(work, count, stopped)
        return ParallelSegmentDecoder(facts, work.timeline, work.spans, sessions, remote_reader, stopped)

    def _session_count(self, work: Work) -> int:
        most = self._most_sessions(work.facts)
        if len(work.spans) <= _SHORT_SEGMENTS:
            most = min(most, SESSIONS)
        return min(most, -(-len(work.spans) // _SEGMENTS_OF_SESSION))

    def _most_sessions(self, facts: VideoFacts) -> int:
        engines = decode_engines(facts.codec, self._ordinal)
        return engines.count + SPARE_SESSIONS if engines else 1

    def _remote(self, work: Work, count: int) -> list[SegmentSession]:
        needed = -(-count // SESSIONS)
        self._unused, self._getting_ready = [*self._getting_ready, *self._unused], []
        while len(self._unused) < needed:
            self._unused.append(self._pool.take(self._owner))
        for process in self._busy:
            process.close()  # those that worked on other spans of the film
        self._busy, self._unused = self._unused[:needed], self._unused[needed:]
        theirs = [process.sessions(work.facts, work.crop) for process in self._busy]
        in_turn = itertools.chain.from_iterable(zip(*theirs, strict=True))
        return list(itertools.islice(in_turn, count))

    def _local(self, work: Work, count: int, stopped: threading.Event) -> list[SegmentSession]:
        engines = [self._kind.make(work.facts, work.crop) for _ in range(count)]
        return [
            LocalSession(engine, Session(engine, work.facts, part_samples(engine), new_room(engine), stopped.is_set))
            for engine in engines
        ]

    def close(self) -> None:
        """End what has begun, and the processes, unless they are done with the video: those go back to the pool."""
        self._is_closed = True
        if self._beginning is not None and self._beginning.is_alive():
            self._end_processes()
            self._beginning.join()
        early, self._early = self._early, None
        if early is not None:
            early[1].close()
        if self._running is not None and self._running.is_finished:
            self._unused += self._busy
            self._busy = []
        unused, self._unused = self._unused, []
        for process in unused:
            self._pool.give_back(process, self._owner)
        self._end_processes()

    def _end_processes(self) -> None:
        processes = [*self._busy, *self._unused, *self._getting_ready]
        self._busy, self._unused, self._getting_ready = [], [], []
        for process in processes:
            process.close()
