"""Engines that decode segments as a GPU's do, with FFmpeg's software decoders."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import av
import numpy as np
import torch

from caption_extents.video.batch import Planes
from caption_extents.video.cpu import crop_planes
from caption_extents.video.crop import CropPixels
from caption_extents.video.segments import Span
from caption_extents.video.session import Crops, Session, new_room
from caption_extents.video.side_by_side import LocalSession, SegmentReader, SideBySide
from caption_extents.video.source import VideoFacts, open_video
from caption_extents.video.timeline import Timeline


class SoftwareEngine:
    """Crops are Y, U and V, as they are displayed."""

    def __init__(self, facts: VideoFacts, crop: CropPixels, ordinal: int = 0) -> None:
        self._facts, self._crop = facts, crop
        half = (crop.height // 2, crop.width // 2)
        self.shapes: tuple[tuple[int, ...], ...] = ((crop.height, crop.width), half, half)

    def open(self) -> av.VideoCodecContext:
        with open_video(self._facts.path) as (_, stream):
            context = av.CodecContext.create(stream.codec_context.name, "r")
            assert isinstance(context, av.VideoCodecContext)
            context.extradata = stream.codec_context.extradata
            context.width, context.height = stream.codec_context.width, stream.codec_context.height
        return context

    def pin(self, memory: np.ndarray) -> None:
        pass

    def crop_into(self, frame: av.VideoFrame, crops: Crops, index: int) -> None:
        for target, source in zip(crops, crop_planes(frame, self._crop, self._facts), strict=True):
            target[index] = source

    def finish(self) -> None:
        pass


class DyingEngine(SoftwareEngine):
    """Its process is killed at the third crop, as by a codec that crashes."""

    def crop_into(self, frame: av.VideoFrame, crops: Crops, index: int) -> None:
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        super().crop_into(frame, crops, index)


class FailingEngine(SoftwareEngine):
    def crop_into(self, frame: av.VideoFrame, crops: Crops, index: int) -> None:
        raise ZeroDivisionError("on purpose")


def planes_of(crops: Crops) -> Planes:
    y, u, v = map(torch.from_numpy, crops)
    return y, u, v


def begin_here(
    facts: VideoFacts,
    timeline: Timeline,
    crop: CropPixels,
    sessions: int,
    read_there: SegmentReader | None = None,
    part_samples: int = 5,
    kind: type[SoftwareEngine] = SoftwareEngine,
) -> Callable[[list[Span]], SideBySide]:
    """Begins sessions in threads of this process."""

    def begin(spans: list[Span]) -> SideBySide:
        import threading

        stopped = threading.Event()
        engines = [kind(facts, crop) for _ in range(min(sessions, len(spans)))]
        here = [
            LocalSession(Session(engine, facts, part_samples, new_room(engine), stopped.is_set)) for engine in engines
        ]
        return SideBySide(facts, timeline, spans, here, read_there, stopped)

    return begin
