"""A video as a job sees it: facts, samples, and a decoder for them.

Three ways lead there: a file decoded in this process, one decoded in a process of its own, and one that is still on its
way from a store, of which decoding begins at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Protocol

import torch

from caption_extents.errors import VideoError
from caption_extents.region import CropRegion
from caption_extents.video.ahead import AheadDecoder
from caption_extents.video.crop import CropPixels, resolve_crop
from caption_extents.video.decoder import SampleDecoder, open_decoder
from caption_extents.video.gpu_start import GpuStart
from caption_extents.video.isolated import DecoderLimits, IsolatedVideo
from caption_extents.video.source import VideoFacts, probe
from caption_extents.video.timeline import Timeline, build_timeline
from caption_extents.video.wholeness import missing_bytes


class OpenDecoder(Protocol):
    """Opens a decoder of the video; see :func:`~caption_extents.video.decoder.open_decoder`."""

    def __call__(self, crop: CropPixels, *, device: torch.device, insist: bool, threads: int) -> SampleDecoder:
        """Open it."""
        ...


class Beside(Protocol):
    """What works in processes beside this one."""

    @property
    def peak_memory_bytes(self) -> int:
        """Their largest resident sets so far, together."""
        ...

    @property
    def cpu_seconds(self) -> float:
        """The CPU seconds that they took so far."""
        ...


@dataclass(frozen=True)
class VideoInput:
    """What is known of a video before it is decoded, and how to decode it."""

    facts: VideoFacts
    timeline: Timeline
    open_decoder: OpenDecoder
    beside: tuple[Beside, ...] = ()
    """What reads and decodes the video elsewhere."""
    gpu_memory_before: Mapping[str, int] = field(default_factory=dict)
    """Bytes in use of each GPU's memory before that began, by the GPU's UUID; empty where no GPU decodes."""


@contextmanager
def open_input(
    path: Path, rate: Fraction, limits: DecoderLimits | None = None, started: GpuStart | None = None
) -> Iterator[VideoInput]:
    """Probe a video and place its samples.

    Args:
        path: a file of this machine.
        rate: samples a second.
        limits: read and decode it in a process of its own within these; None for this process.
        started: processes that read it and decode it on a GPU; they are ended when the context is left.

    Raises:
        VideoError: it cannot be used.
        DecodeError: the process of its own died or went past a limit.
    """
    if started is not None:
        with closing(started):
            started.reader.wait_until_indexed()
            yield _video_input(started.reader.facts, started.reader.timeline, None, started)
        return
    if limits is None:
        facts = probe(path)
        yield _video_input(facts, build_timeline(facts, rate), None)
        return
    with IsolatedVideo(path, rate, limits) as video:

        def open_there(crop: CropPixels, *, device: torch.device, insist: bool, threads: int) -> SampleDecoder:
            return video.open_decoder(crop, threads=threads)

        yield VideoInput(video.facts, video.timeline, open_there)


class ArrivingFile(Protocol):
    """A file that is being fetched; see :class:`~caption_extents.storage.download.Download`."""

    path: Path

    def open(self) -> BinaryIO:
        """A reader that waits for bytes which have not come."""
        ...

    def wait(self) -> None:
        """Return when all bytes have come."""
        ...

    def close(self) -> None:
        """Give up what has not come; readers fail."""
        ...


@contextmanager
def open_arriving(
    file: ArrivingFile, rate: Fraction, region: CropRegion | None, threads: int = 0
) -> Iterator[VideoInput]:
    """As :func:`open_input`, for a file that is still arriving: it is indexed and decoded meanwhile.

    Args:
        file: the file.
        rate: samples a second.
        region: what to crop of the samples that are decoded meanwhile, on the CPU; None for decoding none.
        threads: of the decoder.

    Raises:
        VideoError: it cannot be used.
        StoreAccessError: it did not come.
    """
    ahead = None
    try:
        try:
            facts = probe(file.path, file.open)
            if region is not None:
                ahead = AheadDecoder(facts, rate, resolve_crop(region, facts), file.open, threads)
            timeline = build_timeline(facts, rate, file.open)
            file.wait()
            facts = replace(facts, missing_bytes=missing_bytes(file.path))
        except VideoError:
            # Only the whole file tells whether that is so, or whether its parts came too slowly.
            if ahead is not None:
                ahead.close()
            file.wait()
            with open_input(file.path, rate) as video:
                yield video
            return
        yield _video_input(facts, timeline, ahead)
    finally:
        file.close()
        if ahead is not None:
            ahead.close()


def _video_input(
    facts: VideoFacts, timeline: Timeline, ahead: AheadDecoder | None, started: GpuStart | None = None
) -> VideoInput:
    def open_here(crop: CropPixels, *, device: torch.device, insist: bool, threads: int) -> SampleDecoder:
        if ahead is not None and ahead.crop == crop and device.type == "cpu":
            ahead.set_timeline(timeline)
            return ahead
        read_there, sessions = (started.reader.segments, started.sessions) if started else (None, None)
        return open_decoder(
            facts,
            timeline,
            crop,
            device=device,
            insist=insist,
            threads=threads,
            read_there=read_there,
            started=sessions,
        )

    if started is None:
        return VideoInput(facts, timeline, open_here)
    return VideoInput(facts, timeline, open_here, (started.reader, started.sessions), started.memory_before)
