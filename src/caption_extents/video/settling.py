"""Which decoded frame each sample shows: the one rule that all decoders follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from av.video.frame import VideoFrame

from caption_extents.video.source import VideoFacts


def is_good(frame: VideoFrame, facts: VideoFacts) -> bool:
    """Whether a frame can be shown: it has the video's size, and was decoded whole."""
    return (frame.width, frame.height) == (facts.width, facts.height) and not frame.is_corrupt


def settle(frames: Iterable[tuple[int, VideoFrame]], sample_pts: np.ndarray) -> Iterator[tuple[int, int, VideoFrame]]:
    """For each sample, in order: its place in ``sample_pts``, and pts and picture of the frame that it shows.

    Args:
        frames: pts and picture of good frames, in presentation order.
        sample_pts: int64 (N,), ascending; pts of the frames that the samples ought to show.

    Yields:
        All samples, or none where there is no frame. A sample that comes with another pts than its own could not be
        decoded, and shows the last good frame before it, or the first one of all. Frames after the last sample's are
        not taken.
    """
    at, shown = 0, None
    for frame in frames:
        # A sample is settled when a frame arrives that is too late for it: the one before it was the right one.
        while shown is not None and at < len(sample_pts) and sample_pts[at] < frame[0]:
            yield at, *shown
            at += 1
        if at == len(sample_pts):
            return
        shown = frame
    if shown is not None:
        for left in range(at, len(sample_pts)):
            yield left, *shown
