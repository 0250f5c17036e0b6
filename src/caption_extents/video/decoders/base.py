"""The protocol of sample decoders, and the rule that decides which frame each sample shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from av.video.frame import VideoFrame

from caption_extents.samples import SampleBatch
from caption_extents.video.info import VideoFacts

BATCH_SAMPLES = 32
"""Samples in a batch on a CPU. Two runs whose batches are cut at the same samples compute the same results."""


@dataclass(frozen=True)
class PictureChange:
    """A sample from which on samples' frames have another size or format than before, as in broadcasts.

    Attributes:
        sample: number of the first one.
        width, height: size of the decoded frame in pixels, before rotation.
        pixel_format: FFmpeg's name.
    """

    sample: int
    width: int
    height: int
    pixel_format: str

    def __str__(self) -> str:
        return f"{self.width}x{self.height} {self.pixel_format} from sample {self.sample} on"


class SampleDecoder(Protocol):
    """Decodes the samples of a timeline, cropped, in order.

    Iterating starts the work and may be done once. All batches hold the same number of samples, the last one the rest;
    that number depends on the decoder and the size of the crop, and on nothing else. A sample whose frame cannot be
    decoded shows the last good frame before it (the first good one, at the start) and its number is in
    :attr:`undecodable_samples` when the iteration is over. ``close`` may be called at any time, more than once, and
    stops the iteration.

    If the picture changes its size in mid-file, the crop covers the same fractions of it and is scaled to the crop's
    size in the first frame; :attr:`picture_changes` lists these samples, and those where only the format changes.
    """

    name: str
    """Name of the decoder for results: ``cpu`` or ``nvdec``; if a GPU could not decode the video, with the reason."""

    undecodable_samples: list[int]

    picture_changes: list[PictureChange]

    def __iter__(self) -> Iterator[SampleBatch]: ...

    def close(self) -> None:
        """Stop and free everything."""
        ...


MIN_FRAME_PX = 16
"""Smallest width and height of a frame that can be shown in place of the video's own size."""


def is_good(frame: VideoFrame) -> bool:
    """Whether a frame can be shown: it was decoded whole, and a crop of it can be scaled."""
    return not frame.is_corrupt and min(frame.width, frame.height) >= MIN_FRAME_PX


def size_and_format(frame: VideoFrame) -> tuple[int, int, str]:
    """Width, height and pixel format of a frame; a picture changes where they do."""
    return frame.width, frame.height, frame.format.name


def has_size_of_first(frame: VideoFrame, facts: VideoFacts) -> bool:
    """Whether a frame has the size of the video's first one."""
    return (frame.width, frame.height) == (facts.width, facts.height)


def settle(frames: Iterable[tuple[int, VideoFrame]], sample_pts: np.ndarray) -> Iterator[tuple[int, int, VideoFrame]]:
    """Assign frames to samples: yields each sample's index in ``sample_pts``, and pts and picture of its frame.

    Args:
        frames: pts and picture of good frames, in presentation order.
        sample_pts: int64 (N,), ascending; pts of the frames that the samples ought to show.

    Yields:
        One item for each sample; nothing if there are no frames. If the yielded pts is not the sample's own pts, the
        sample's frame could not be decoded: the sample shows the last good frame before it, or the first good frame.
        Frames after the last sample are not consumed.
    """
    at, shown = 0, None
    for frame in frames:
        # A frame later than the sample has arrived: the sample shows the frame before it.
        while shown is not None and at < len(sample_pts) and sample_pts[at] < frame[0]:
            yield at, *shown
            at += 1
        if at == len(sample_pts):
            return
        shown = frame
    if shown is not None:
        for left in range(at, len(sample_pts)):
            yield left, *shown
