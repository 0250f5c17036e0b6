"""What every decoder of cropped samples promises, and choosing one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch

from caption_extents.errors import InputError
from caption_extents.video.batch import CropBatch
from caption_extents.video.crop import CropPixels
from caption_extents.video.source import VideoFacts
from caption_extents.video.timeline import Timeline

if TYPE_CHECKING:
    from caption_extents.video.gpu_sessions import GpuSessions
    from caption_extents.video.side_by_side import SegmentReader

BATCH_SAMPLES = 32
"""Samples in a batch on a CPU. Two runs whose batches are cut at the same samples compute the same results."""


class SampleDecoder(Protocol):
    """Decodes the samples of a timeline, cropped, in order.

    Iterating starts the work and may be done once. All batches hold the same number of samples, the last one the rest;
    that number depends on the decoder and the size of the crop, and on nothing else. A sample whose frame cannot be
    decoded shows the last good frame before it (the first good one, at the start) and its number is in
    :attr:`undecodable_samples` when the iteration is over. ``close`` may be called at any time, more than once, and
    stops the iteration.
    """

    name: str
    """Which decoder this is, for results: ``cpu`` or ``nvdec``, and why, where a GPU had to leave it to the CPU."""

    undecodable_samples: list[int]

    def __iter__(self) -> Iterator[CropBatch]: ...

    def close(self) -> None:
        """Stop and free everything."""
        ...


def open_decoder(
    facts: VideoFacts,
    timeline: Timeline,
    crop: CropPixels,
    *,
    device: torch.device | str = "cpu",
    insist: bool = False,
    threads: int = 0,
    read_there: SegmentReader | None = None,
    started: GpuSessions | None = None,
) -> SampleDecoder:
    """A decoder for the device.

    Args:
        facts: of the video.
        timeline: its samples.
        crop: what to keep of each sample.
        device: a CPU or CUDA device.
        insist: never fall back to the CPU.
        threads: of a CPU decoder, 0 for one for each core; of a GPU decoder, sessions, 0 for as many as keep its
            engines busy.
        read_there: another process that reads the file for a GPU's sessions.
        started: a GPU's sessions that have been started already; they end with the decoder.

    Raises:
        InputError: ``insist`` was given, and the GPU cannot decode this video, or the device is none.
    """
    from caption_extents.video.cpu import CpuDecoder

    device = torch.device(device)
    if device.type != "cuda":
        if insist:
            raise InputError(
                f"the GPU was asked to decode {str(facts.path)!r}, but the model computes on the CPU; "
                "give a model on the GPU, or device 'auto' or 'cpu'"
            )
        return CpuDecoder(facts, timeline, crop, threads=threads)
    from caption_extents.video.cuda import why_not_nvdec
    from caption_extents.video.gpu_decoder import open_nvdec

    ordinal = device.index or 0
    reason = why_not_nvdec(facts, ordinal)
    if reason is None:
        return open_nvdec(facts, timeline, crop, ordinal, sessions=threads, read_there=read_there, started=started)
    if insist:
        raise InputError(f"the GPU cannot decode {str(facts.path)!r}: {reason}; use device 'auto' or 'cpu'")
    return CpuDecoder(facts, timeline, crop, threads=threads, fallback_reason=reason)
