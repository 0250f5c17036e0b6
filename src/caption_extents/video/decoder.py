"""What every decoder of cropped samples promises, and choosing one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from caption_extents.errors import InputError
from caption_extents.video.batch import CropBatch
from caption_extents.video.crop import CropPixels
from caption_extents.video.source import VideoFacts
from caption_extents.video.timeline import Timeline

BATCH_SAMPLES = 32
"""Samples in a batch, cut at multiples of this number; two runs with the same number compute the same results."""


class SampleDecoder(Protocol):
    """Decodes the samples of a timeline, cropped, in order.

    Iterating starts the work and may be done once. Batches hold ``BATCH_SAMPLES`` samples, the last one the rest, and
    begin at multiples of that number. A sample whose frame cannot be decoded shows the last good frame before it (the
    first good one, at the start) and its number is in :attr:`undecodable_samples` when the iteration is over.
    ``close`` may be called at any time, more than once, and stops the iteration.
    """

    name: str
    """Which decoder this is, for results: ``cpu`` or ``nvdec``."""

    undecodable_samples: list[int]

    def __iter__(self) -> Iterator[CropBatch]: ...

    def close(self) -> None:
        """Stop and free everything."""
        ...


def open_decoder(
    facts: VideoFacts, timeline: Timeline, crop: CropPixels, *, device: str = "auto", threads: int = 0
) -> SampleDecoder:
    """A decoder for the device.

    Args:
        facts: of the video.
        timeline: its samples.
        crop: what to keep of each sample.
        device: ``cpu``, or ``auto`` for the best that is there.
        threads: of a CPU decoder; 0 for one for each core.

    Raises:
        InputError: the device is not one of these.
    """
    if device not in {"auto", "cpu"}:
        raise InputError(f"device {device!r} cannot decode video; use 'auto' or 'cpu'")
    from caption_extents.video.cpu import CpuDecoder

    return CpuDecoder(facts, timeline, crop, threads=threads)
