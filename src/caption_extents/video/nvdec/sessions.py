"""The decoder sessions of a GPU: their number, the processes in which they run, and when they start.

Decoding can begin before the parent process has imported PyTorch: the session processes start, another process indexes
the video, and the first segments are decoded while PyTorch is imported.
"""

from __future__ import annotations

import itertools
import os
import threading
from dataclasses import dataclass

from caption_extents.children import Children
from caption_extents.errors import CaptionExtentsError
from caption_extents.region import CropRegion
from caption_extents.video.crop import CropPixels, resolve_crop
from caption_extents.video.decoders.isolated import VideoReaderProcess
from caption_extents.video.info import VideoFacts
from caption_extents.video.nvdec import segments
from caption_extents.video.nvdec.capabilities import decode_engines, why_not_nvdec
from caption_extents.video.nvdec.scheduler import LocalSession, ParallelSegmentDecoder, SegmentReader, SegmentSession
from caption_extents.video.nvdec.segments import Span, plan_spans
from caption_extents.video.nvdec.session import Session, new_room
from caption_extents.video.nvdec.worker import SESSIONS, EngineSpec, SessionProcess, part_samples
from caption_extents.video.timeline import Timeline

SPARE_SESSIONS = 1
"""Sessions in addition to one per engine, so that no engine idles while a session is between two segments."""

_SHARED_BYTES = 64 << 20
"""Maximum size of a film of one segment that is sent to a session process; larger ones are decoded in this process."""

_PROCESSES = 2
"""Number of session processes started in advance; sufficient for the sessions of up to seven engines."""


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


class GpuSessions:
    """Decoder sessions of one GPU, in processes that start at once; a closed one cannot be used any more.

    Args:
        ordinal: number of the device.
        children: of the run.
        kind: of the sessions' engines; by default NVDEC.
    """

    def __init__(self, ordinal: int, children: Children | None = None, kind: EngineSpec | None = None) -> None:
        self._ordinal, self._children = ordinal, children or Children()
        self._kind = kind or EngineSpec("caption_extents.video.nvdec.engine", "NvdecEngine", ordinal)
        can_share = hasattr(os, "memfd_create")
        self._fresh = [SessionProcess(self._kind, self._children) for _ in range(_PROCESSES)] if can_share else []
        self._all = list(self._fresh)
        self._busy: list[SessionProcess] = []
        self._can_share = can_share
        self._early: tuple[Work, ParallelSegmentDecoder] | None = None
        self._beginning: threading.Thread | None = None

    def begin_early(self, reader: VideoReaderProcess, region: CropRegion) -> None:
        """Begin to decode a video that another process is indexing, as soon as that has been done."""

        def begin() -> None:
            try:
                reader.wait_until_indexed()
                facts, timeline = reader.facts, reader.timeline
                if why_not_nvdec(facts, self._ordinal) is None:
                    spans = plan_spans(timeline, segments.SEGMENT_SAMPLES)
                    work = Work(facts, timeline, resolve_crop(region, facts), spans)
                    self._early = work, self._begin(work, reader.segments)
            except CaptionExtentsError:
                return  # raised again when the video is asked for

        self._beginning = threading.Thread(target=begin, name="begin-early", daemon=True)
        self._beginning.start()

    def begin(self, work: Work, remote_reader: SegmentReader | None) -> ParallelSegmentDecoder:
        """Begin to decode, or go on with what has begun early if it is the same."""
        if self._beginning is not None:
            self._beginning.join()
        early, self._early = self._early, None
        if early is not None:
            known, begun = early
            if (known.crop, known.spans) == (work.crop, work.spans) and not work.sessions:
                return begun
            begun.close()
        return self._begin(work, remote_reader)

    def _begin(self, work: Work, remote_reader: SegmentReader | None) -> ParallelSegmentDecoder:
        facts, stopped = work.facts, threading.Event()
        if len(work.spans) == 1 and facts.size_bytes > _SHARED_BYTES:
            # The single segment is too large to be sent to another process.
            return ParallelSegmentDecoder(
                facts, work.timeline, work.spans, self._local(work, 1, stopped), None, stopped
            )
        count = min(work.sessions or self._session_count(facts), len(work.spans))
        sessions = self._remote(work, count) if self._can_share else self._local(work, count, stopped)
        return ParallelSegmentDecoder(facts, work.timeline, work.spans, sessions, remote_reader, stopped)

    def _session_count(self, facts: VideoFacts) -> int:
        engines = decode_engines(facts.codec, self._ordinal)
        return engines.count + SPARE_SESSIONS if engines else 1

    def _remote(self, work: Work, count: int) -> list[SegmentSession]:
        needed = max(-(-count // SESSIONS), min(_PROCESSES, count))
        while len(self._fresh) < needed:
            process = SessionProcess(self._kind, self._children)
            self._fresh.append(process)
            self._all.append(process)
        for process in self._busy:
            process.close()  # those that worked on other spans of the film
        processes, self._fresh = self._fresh[:needed], self._fresh[needed:]
        self._busy = processes
        theirs = [process.sessions(work.facts, work.crop) for process in processes]
        in_turn = itertools.chain.from_iterable(zip(*theirs, strict=True))
        return list(itertools.islice(in_turn, count))

    def _local(self, work: Work, count: int, stopped: threading.Event) -> list[SegmentSession]:
        engines = [self._kind.make(work.facts, work.crop) for _ in range(count)]
        samples = part_samples(work.crop)
        return [
            LocalSession(Session(engine, work.facts, samples, new_room(engine), stopped.is_set)) for engine in engines
        ]

    def close(self) -> None:
        """End what has begun and all processes."""
        for process in self._all:
            process.close()
        if self._beginning is not None:
            self._beginning.join()
        if self._early is not None:
            self._early[1].close()
            self._early = None
