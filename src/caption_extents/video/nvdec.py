"""Decoding on the engines of an NVIDIA GPU (NVDEC); crops are taken where the frames are.

One thread reads packets and cuts them into segments (:mod:`caption_extents.video.segments`); as many sessions as the
device has engines decode segments side by side; the iterating thread puts them back in order. Frames never leave the
GPU: a session copies the crop out of a frame before the frame returns to the decoder's pool.

Everything is queued on the device's default stream, the one on which FFmpeg maps decoded frames, so that a crop is
taken after its frame is decoded and before the frame's memory is used again, without waiting for either.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import av
import av.error
import torch
from av.codec.hwaccel import HWAccel
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from torch.utils import dlpack

from caption_extents.errors import DecodeError
from caption_extents.video.batch import CropBatch, Planes, empty_planes
from caption_extents.video.crop import CropPixels
from caption_extents.video.cuda import decode_engines
from caption_extents.video.decoder import BATCH_SAMPLES
from caption_extents.video.segments import Segment, Span, cut_segments, plan_spans
from caption_extents.video.source import VideoFacts, open_video, read_packets
from caption_extents.video.timeline import Timeline

SEGMENT_SAMPLES = 64
"""Least samples in a segment. Draining a session at a segment's end costs a few frames' time, so not too few; all
sessions hold segments at once, and all must have one soon after the start, so not too many."""

_AHEAD = 2
"""Segments under way or waiting to be given out, for each session."""

_DECODERS = {"libdav1d": "av1"}
"""FFmpeg's own decoder, which drives NVDEC, where the usual one is another library."""

Packet: TypeAlias = "av.Packet[Any]"


class _Dependent(Exception):  # noqa: N818 (no error: the file is decoded in another way)
    """A segment's first frame cannot be decoded without what was before it."""


@dataclass
class _Crops:
    """What a segment gave.

    Attributes:
        span: the segment's samples.
        planes: their crops, on the device.
        without: leading samples for which no frame was good; they show what was shown before.
        undecodable: samples that do not show their own frame.
        last: crop of the last good frame, one sample; None if there was none.
    """

    span: Span
    planes: Planes
    without: int = 0
    undecodable: list[int] = field(default_factory=list)
    last: Planes | None = None


class NvdecDecoder:
    """A :class:`~caption_extents.video.decoder.SampleDecoder` on all decode engines of a GPU.

    Args:
        facts: of a video for which :func:`~caption_extents.video.cuda.why_not_nvdec` gives no reason.
        timeline: its samples.
        crop: what to keep of each sample.
        device: a CUDA device.
        sessions: decoders at work at once; 0 for one for each engine.
    """

    name = "nvdec"

    def __init__(
        self, facts: VideoFacts, timeline: Timeline, crop: CropPixels, device: torch.device, *, sessions: int = 0
    ) -> None:
        self.undecodable_samples: list[int] = []
        engines = decode_engines(facts.codec, device)
        self.sessions = sessions or (engines.count if engines else 1)
        self._facts, self._timeline, self._crop, self._device = facts, timeline, crop, device
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
        cutter = _BatchCutter(len(self._timeline), self._crop, self._device)
        try:
            yield from self._decode_spans(spans, cutter)
        except _Dependent:
            # Key frames that are none, as with intra refresh: one decoder, from the start, past what is given already.
            whole = Span(spans[0].start_pts, None, 0, len(self._timeline))
            yield from self._decode_spans([whole], cutter)

    def _decode_spans(self, spans: list[Span], cutter: _BatchCutter) -> Iterator[CropBatch]:
        sessions = min(self.sessions, len(spans))
        work = self._work = _SideBySide(self._facts, self._timeline, self._crop, self._device, spans, sessions)
        try:
            for crops in work:
                self.undecodable_samples.extend(
                    number for number in crops.undecodable if number >= cutter.given_samples
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
        crop: CropPixels,
        device: torch.device,
        spans: list[Span],
        count: int,
    ) -> None:
        self._facts, self._spans = facts, spans
        self._skippable = frozenset(timeline.skippable_pts.tolist())
        self._segments: queue.Queue[Segment[Packet] | None] = queue.Queue()
        self._room = threading.Semaphore(count * _AHEAD)
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        self._done: dict[int, _Crops] = {}
        self._error: BaseException | None = None
        sessions = [_Session(facts, timeline, crop, device, self._stopped) for _ in range(count)]
        self._threads = [threading.Thread(target=self._read, name="nvdec-read", daemon=True)]
        self._threads += [
            threading.Thread(target=self._work, args=(session,), name=f"nvdec-{index}", daemon=True)
            for index, session in enumerate(sessions)
        ]
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
                thread.join()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _needed(self) -> Iterator[Packet]:
        with open_video(self._facts.path) as (container, stream):
            try:
                for packet in read_packets(container, stream):
                    if self._stopped.is_set():
                        return
                    if packet.size and packet.pts not in self._skippable:
                        yield packet
            except av.error.FFmpegError:
                # The file ends in damage. What follows cannot be read, and its samples are listed.
                return

    def _read(self) -> None:
        try:
            found = 0
            for segment in cut_segments(self._needed(), self._spans):
                self._room.acquire()
                if self._stopped.is_set():
                    return
                self._segments.put(segment)
                found += 1
            for left in range(found, len(self._spans)):
                self._segments.put(Segment(left, self._spans[left]))
        except BaseException as error:
            self._fail(error)

    def _work(self, session: _Session) -> None:
        try:
            while (segment := self._segments.get()) is not None and not self._stopped.is_set():
                crops = session.decode(segment)
                with self._changed:
                    self._done[segment.number] = crops
                    self._changed.notify_all()
        except BaseException as error:
            self._fail(error)
        finally:
            session.close()


class _Session:
    """One decoder of the device. All calls come from one thread."""

    def __init__(
        self,
        facts: VideoFacts,
        timeline: Timeline,
        crop: CropPixels,
        device: torch.device,
        stopped: threading.Event,
    ) -> None:
        self._facts, self._timeline, self._crop, self._device = facts, timeline, crop, device
        self._stopped = stopped
        self._context: VideoCodecContext | None = None

    def decode(self, segment: Segment[Packet]) -> _Crops:
        """Decode a segment and crop its samples.

        Raises:
            _Dependent: it is not the first, and its first frame cannot be decoded.
        """
        span, crop, sample_pts = segment.span, self._crop, self._timeline.sample_pts
        crops = _Crops(span, empty_planes(len(span), crop.height, crop.width, self._device))
        number, last = span.first_sample, span.last_sample
        shown: tuple[int, VideoFrame] | None = None
        cropped: tuple[VideoFrame, Planes] | None = None

        def settle(up_to: int | None) -> None:
            # A sample is settled when a frame arrives that is too late for it: the one before it was the right one.
            nonlocal number, cropped
            while number < last and (up_to is None or sample_pts[number] < up_to):
                at = number - span.first_sample
                if shown is None:
                    crops.without += 1
                else:
                    if cropped is None or cropped[0] is not shown[1]:
                        cropped = shown[1], self._crop_planes(shown[1])
                    for target, source in zip(crops.planes, cropped[1], strict=True):
                        target[at] = source
                if shown is None or shown[0] != sample_pts[number]:
                    crops.undecodable.append(number)
                number += 1

        for pts, frame in self._frames(segment):
            if shown is None and segment.number and pts != span.start_pts:
                raise _Dependent
            if shown is not None:
                settle(pts)
            shown = pts, frame
        if shown is None and segment.number and segment.packets and not self._stopped.is_set():
            raise _Dependent
        settle(None)
        if shown is not None:
            crops.last = cropped[1] if cropped and cropped[0] is shown[1] else self._crop_planes(shown[1])
        return crops

    def _frames(self, segment: Segment[Packet]) -> Iterator[tuple[int, VideoFrame]]:
        """Good frames of a segment and their times, in presentation order."""
        span, context = segment.span, self._open()
        last_pts = span.start_pts - 1
        packets: list[Packet | None] = [*segment.packets, None]
        for packet in packets:
            if self._stopped.is_set():
                return
            try:
                frames = context.decode(packet)
            except av.error.FFmpegError:
                frames = []
            for frame in frames:
                pts = frame.pts
                if pts is None or pts <= last_pts or (span.end_pts is not None and pts >= span.end_pts):
                    continue
                if self._is_good(frame):
                    last_pts = pts
                    yield pts, frame
        context.flush_buffers()

    def _is_good(self, frame: VideoFrame) -> bool:
        return (frame.width, frame.height) == (self._facts.width, self._facts.height) and not frame.is_corrupt

    def _crop_planes(self, frame: VideoFrame) -> Planes:
        left, top, right, bottom = self._crop.decoded
        # NV12: luma, and chroma with U and V side by side. PyTorch's own call of __dlpack__ passes a stream, which
        # PyAV refuses; both are on the default stream.
        luma, chroma = (dlpack.from_dlpack(cast(Any, plane).__dlpack__()) for plane in frame.planes[:2])
        box = chroma[top // 2 : bottom // 2, left // 2 : right // 2]
        planes = (luma[top:bottom, left:right], box[..., 0], box[..., 1])
        y, u, v = (self._facts.orientation.apply_tensor(plane).contiguous() for plane in planes)
        return y, u, v

    def _open(self) -> VideoCodecContext:
        if self._context is None:
            torch.cuda.set_device(self._device)
            torch.zeros(1, device=self._device)  # FFmpeg joins the context that is current in this thread
            accelerator = HWAccel(
                "cuda",
                device=str(self._device.index or 0),
                allow_software_fallback=False,
                is_hw_owned=True,
                options={"primary_ctx": "0", "current_ctx": "1"},
            )
            name = _DECODERS.get(self._facts.codec, self._facts.codec)
            context = cast(VideoCodecContext, av.CodecContext.create(name, "r", hwaccel=accelerator))
            with open_video(self._facts.path) as (_, stream):
                context.extradata = stream.codec_context.extradata
            self._context = context
        return self._context

    def close(self) -> None:
        self._context = None


class _BatchCutter:
    """Cuts segments, which come in order, into batches of ``BATCH_SAMPLES``."""

    def __init__(self, count: int, crop: CropPixels, device: torch.device) -> None:
        self.given_samples = 0
        self._count, self._crop, self._device = count, crop, device
        self._parts: list[Planes] = []
        self._held = 0
        self._shown: Planes | None = None

    def add(self, crops: _Crops) -> Iterator[CropBatch]:
        """The batches that a segment completes. Samples that were given out before are passed over."""
        planes = crops.planes
        if crops.without:
            shown = self._shown or self._first_good(crops)
            for target, source in zip(planes, shown, strict=True):
                target[: crops.without] = source
        self._shown = crops.last or self._shown
        passed = self.given_samples + self._held - crops.span.first_sample
        if passed < len(crops.span):
            self._parts.append(cast(Planes, tuple(plane[passed:] for plane in planes)))
            self._held += len(crops.span) - passed
        joined = cast(Planes, tuple(torch.cat(group) for group in zip(*self._parts, strict=True)))
        at = 0
        while self._held >= BATCH_SAMPLES or (self._held and self.given_samples + self._held == self._count):
            size = min(BATCH_SAMPLES, self._held)
            yield CropBatch(self.given_samples, *(plane[at : at + size] for plane in joined))
            at, self._held, self.given_samples = at + size, self._held - size, self.given_samples + size
        self._parts = [cast(Planes, tuple(plane[at:] for plane in joined))]

    def _first_good(self, crops: _Crops) -> Planes:
        if crops.last is None or crops.without == len(crops.span):
            raise DecodeError("no frame at the start of the video could be decoded")
        return cast(Planes, tuple(plane[crops.without] for plane in crops.planes))
