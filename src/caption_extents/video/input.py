"""A video as a job sees it: facts, samples, and a decoder for them, in this process or in one of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import torch

from caption_extents.video.crop import CropPixels
from caption_extents.video.decoder import SampleDecoder, open_decoder
from caption_extents.video.isolated import DecoderLimits, IsolatedVideo
from caption_extents.video.source import VideoFacts, probe
from caption_extents.video.timeline import Timeline, build_timeline


class OpenDecoder(Protocol):
    """Opens a decoder of the video; see :func:`~caption_extents.video.decoder.open_decoder`."""

    def __call__(self, crop: CropPixels, *, device: torch.device, insist: bool, threads: int) -> SampleDecoder:
        """Open it."""
        ...


@dataclass(frozen=True)
class VideoInput:
    """What is known of a video before it is decoded, and how to decode it."""

    facts: VideoFacts
    timeline: Timeline
    open_decoder: OpenDecoder


@contextmanager
def open_input(path: Path, rate: Fraction, limits: DecoderLimits | None = None) -> Iterator[VideoInput]:
    """Probe a video and place its samples.

    Args:
        path: a file of this machine.
        rate: samples a second.
        limits: read and decode it in a process of its own within these; None for this process.

    Raises:
        VideoError: it cannot be used.
        DecodeError: the process of its own died or went past a limit.
    """
    if limits is None:
        facts = probe(path)
        timeline = build_timeline(facts, rate)

        def open_here(crop: CropPixels, *, device: torch.device, insist: bool, threads: int) -> SampleDecoder:
            return open_decoder(facts, timeline, crop, device=device, insist=insist, threads=threads)

        yield VideoInput(facts, timeline, open_here)
        return
    with IsolatedVideo(path, rate, limits) as video:

        def open_there(crop: CropPixels, *, device: torch.device, insist: bool, threads: int) -> SampleDecoder:
            return video.open_decoder(crop, threads=threads)

        yield VideoInput(video.facts, video.timeline, open_there)
