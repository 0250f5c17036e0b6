"""Engines that decode segments as a GPU's do, with FFmpeg's software decoders."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Hashable

import av
import numpy as np

from caption_extents.samples import Planes
from caption_extents.video.crop import CropPixels
from caption_extents.video.decoders.base import SampleDecoder, has_size_of_first
from caption_extents.video.decoders.cpu import cut_planes
from caption_extents.video.demux import open_container
from caption_extents.video.info import VideoFacts
from caption_extents.video.nvdec.scheduler import LocalSession, ParallelSegmentDecoder, SegmentReader
from caption_extents.video.nvdec.session import Crops, Session, new_room
from caption_extents.video.nvdec.sessions import Work
from caption_extents.video.timeline import Timeline
from caption_extents.video.video import Decoding, Video


class SoftwareEngine:
    """Crops are NV12 and not turned, as NVDEC's are."""

    def __init__(self, facts: VideoFacts, crop: CropPixels, ordinal: int = 0) -> None:
        self._facts = facts
        self._left, self._top, self._right, self._bottom = crop.decoded
        height, width = self._bottom - self._top, self._right - self._left
        self.shapes: tuple[tuple[int, ...], ...] = ((height, width), (height // 2, width // 2, 2))

    def kind_of_stream(self) -> Hashable:
        with open_container(self._facts.path, self._facts.stream_index) as (_, stream):
            return self._facts.codec, self._facts.width, self._facts.height, stream.codec_context.extradata

    def open(self) -> av.VideoCodecContext:
        with open_container(self._facts.path, self._facts.stream_index) as (_, stream):
            context = av.CodecContext.create(stream.codec_context.name, "r")
            assert isinstance(context, av.VideoCodecContext)
            context.extradata = stream.codec_context.extradata
            context.width, context.height = stream.codec_context.width, stream.codec_context.height
        return context

    def pin(self, memory: np.ndarray, before: np.ndarray | None) -> None:
        pass

    def takes(self, frame: av.VideoFrame) -> bool:
        return has_size_of_first(frame, self._facts) and frame.format.name == self._facts.pixel_format

    def crop_into(self, frame: av.VideoFrame, crops: Crops, index: int) -> None:
        box = self._left, self._top, self._right, self._bottom
        (luma, chroma), (y, u, v) = crops, cut_planes(frame, box)
        luma[index] = y
        for channel, plane in enumerate((u, v)):
            chroma[index, :, :, channel] = plane

    def planes(self, crops: Crops) -> Planes:
        luma, chroma = crops
        return luma.copy(), chroma[..., 0].copy(), chroma[..., 1].copy()

    def finish(self) -> None:
        pass


class DyingEngine(SoftwareEngine):
    """Its process is killed at the third crop, as by a codec that crashes."""

    def crop_into(self, frame: av.VideoFrame, crops: Crops, index: int) -> None:
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        super().crop_into(frame, crops, index)


class UnreadyEngine(SoftwareEngine):
    """Its decoder cannot be opened until a second has passed since its module was imported."""

    def open(self) -> av.VideoCodecContext:
        if time.monotonic() < _READY_AT:
            raise NotImplementedError("on purpose")
        return super().open()


_READY_AT = time.monotonic() + 1.0


class FailingEngine(SoftwareEngine):
    def crop_into(self, frame: av.VideoFrame, crops: Crops, index: int) -> None:
        raise ZeroDivisionError("on purpose")


class SessionsHere:
    """Sessions in threads of this process, in place of :class:`~caption_extents.video.nvdec.sessions.GpuSessions`."""

    def __init__(self, count: int, part_samples: int = 5, kind: type[SoftwareEngine] = SoftwareEngine) -> None:
        self._count, self._part_samples, self._kind = count, part_samples, kind

    def begin(self, work: Work, remote_reader: SegmentReader | None) -> ParallelSegmentDecoder:
        facts, stopped = work.facts, threading.Event()
        engines = [self._kind(facts, work.crop) for _ in range(min(self._count, len(work.spans)))]
        here = [
            LocalSession(engine, Session(engine, facts, self._part_samples, new_room(engine), stopped.is_set))
            for engine in engines
        ]
        return ParallelSegmentDecoder(facts, work.timeline, work.spans, here, remote_reader, stopped)

    def close(self) -> None:
        pass


def open_decoder(
    facts: VideoFacts,
    timeline: Timeline,
    crop: CropPixels,
    gpu: int | None = None,
    *,
    only_gpu: bool = False,
    threads: int = 0,
) -> SampleDecoder:
    """The decoder of a video that is indexed."""
    return Video(facts, timeline, Decoding(gpu, only_gpu, threads)).samples(crop)
