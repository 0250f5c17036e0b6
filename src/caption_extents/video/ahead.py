"""Decoding a video that is still arriving, before it is known which samples it has."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from fractions import Fraction

from av.video.frame import VideoFrame

from caption_extents.video.batch import CropBatch
from caption_extents.video.cpu import BatchWriter, CpuDecoder, good_frames
from caption_extents.video.crop import CropPixels
from caption_extents.video.decoder import BATCH_SAMPLES
from caption_extents.video.settling import settle
from caption_extents.video.source import OpenFile, VideoFacts
from caption_extents.video.timeline import MAX_SAMPLES, Timeline, sample_times

SPOOL_BYTES = 256 << 20
"""Samples that wait for the timeline; when there are more, decoding waits too."""

_CLOSE_SECONDS = 10.0
_POLL_SECONDS = 0.2


class AheadDecoder:
    """A :class:`~caption_extents.video.decoder.SampleDecoder` on the CPU that starts before there is a timeline.

    How many samples there are is known when the last packet has been read, but *when* sample k is shown is known from
    the first frame on. So frames are settled by time, as they come, in a thread of its own, and each batch remembers
    the pts that its samples show. The timeline then says what they ought to show. Where both agree, a sample is what
    :class:`CpuDecoder` would have given; from the first batch on where they do not (a damaged frame), it is decoded
    again by one.
    """

    def __init__(
        self, facts: VideoFacts, frame_rate: Fraction, crop: CropPixels, arriving: OpenFile, threads: int = 0
    ) -> None:
        self.name = "cpu"
        self.crop = crop
        self.undecodable_samples: list[int] = []
        self.decoded_samples = 0
        """Samples decoded so far."""
        self._facts, self._arriving, self._threads = facts, arriving, threads
        self._times = sample_times(facts.first_pts, MAX_SAMPLES + 1, facts.time_base, frame_rate)
        self._timeline: Timeline | None = None
        self._known = threading.Event()
        self._skippable: frozenset[int | None] = frozenset()
        self._closing = self._closed = False
        sample_bytes = crop.width * crop.height * 3 // 2
        self._spool: queue.Queue[tuple[CropBatch, list[int]] | None] = queue.Queue(
            max(2, SPOOL_BYTES // (sample_bytes * BATCH_SAMPLES))
        )
        self._again: CpuDecoder | None = None
        self._thread = threading.Thread(target=self._run, name="decode-ahead", daemon=True)
        self._thread.start()

    def set_timeline(self, timeline: Timeline) -> None:
        """Tell which samples there are; iterating may begin."""
        self._timeline = timeline
        self._skippable = frozenset(timeline.skippable_pts.tolist())
        self._known.set()

    def __iter__(self) -> Iterator[CropBatch]:
        assert self._timeline is not None
        expected, given = self._timeline.sample_pts, 0
        while given < len(expected):
            item = self._take()
            if self._closed:
                return
            if item is None or item[1] != expected[given : given + len(item[0])].tolist():
                yield from self._decode_again(self._timeline, given)
                return
            given += len(item[0])
            yield item[0]

    def close(self) -> None:
        """Stop decoding. A thread that hangs in a codec is left behind."""
        self._closing = self._closed = True
        self._known.set()
        if self._again is not None:
            self._again.close()
        self._thread.join(_CLOSE_SECONDS)

    def _decode_again(self, timeline: Timeline, first_sample: int) -> Iterator[CropBatch]:
        self._closing = True
        self._again = CpuDecoder(self._facts, timeline, self.crop, threads=self._threads)
        self.undecodable_samples = self._again.undecodable_samples
        yield from (batch for batch in self._again if batch.first_sample >= first_sample)

    def _take(self) -> tuple[CropBatch, list[int]] | None:
        while not self._closing:
            try:
                return self._spool.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
        return None

    def _give(self, item: tuple[CropBatch, list[int]] | None) -> None:
        while not self._closing:
            try:
                self._spool.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return

    def _run(self) -> None:
        try:
            self._decode()
        except Exception:
            # Whatever it was, decoding again will meet it and say so, or get over it.
            self._give(None)

    def _decode(self) -> None:
        writer = BatchWriter(self.crop, self._facts, len(self._times))
        shown: list[int] = []
        for number, pts, frame in settle(self._frames(), self._times):
            if self._closing or (self._timeline is not None and number >= len(self._timeline)):
                break
            shown.append(pts)
            batch = writer.add(number, frame)
            self.decoded_samples = number + 1
            if batch is not None:
                self._give((batch, shown))
                shown = []
        rest = writer.rest(len(shown))
        self._give(None if rest is None else (rest, shown))

    def _frames(self) -> Iterator[tuple[int, VideoFrame]]:
        def is_skippable(pts: int | None) -> bool:
            return pts in self._skippable

        yield from good_frames(self._facts, self._threads, is_skippable, lambda: self._closing, self._arriving)
        # The samples after the last frame show it, and how many they are, the timeline says.
        self._known.wait()
