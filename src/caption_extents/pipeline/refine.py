"""Captions exact to a frame of the source, not only to a sample.

A boundary lies between two samples. The model compares the source's frames between them with both samples: frames
before the change look like the first sample, frames from the change on look like the second. The change is placed where
this split has the highest probability. Only a few frames per boundary have to be decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from caption_extents.captions.extents import Caption
from caption_extents.labels import Label
from caption_extents.model.interface import PairModel
from caption_extents.samples import Planes, slice_planes
from caption_extents.video.crop import CropPixels
from caption_extents.video.info import VideoFacts
from caption_extents.video.random_access import CroppedFrames, frames_between
from caption_extents.video.timeline import Timeline


def refine_captions(
    captions: list[Caption], facts: VideoFacts, timeline: Timeline, crop: CropPixels, model: PairModel
) -> list[Caption]:
    """Captions with ``start`` and ``end`` exact to a frame; their samples stay as they are.

    A boundary whose frames cannot be decoded, and the ends of the video, keep their time.
    """
    count = len(timeline)
    boundaries = sorted({edge for c in captions for edge in (c.first_sample, c.end_sample) if 0 < edge < count})
    pts = timeline.sample_pts.tolist()
    intervals = [(pts[edge - 1], pts[edge]) for edge in boundaries]
    times: dict[int, float] = {}
    for edge, interval, frames in zip(boundaries, intervals, frames_between(facts, crop, intervals), strict=True):
        # Both samples' own frames are needed for comparison; if one cannot be decoded, keep the boundary's time.
        whole = bool(frames.pts) and (frames.pts[0], frames.pts[-1]) == interval
        change = find_change(frames, model) if whole else None
        if change is not None:
            times[edge] = float(facts.first_sample_seconds + (change - facts.first_pts) * facts.time_base)
    return [
        replace(
            caption,
            start=times.get(caption.first_sample, caption.start),
            end=times.get(caption.end_sample, caption.end),
        )
        for caption in captions
    ]


def find_change(frames: CroppedFrames, model: PairModel) -> int | None:
    """Pts of the first frame that shows what the last one shows, and not what the first one shows; None if unknown."""
    count = len(frames.pts)
    if count < 2:
        return None
    if count == 2:
        return frames.pts[1]
    embeddings = torch.cat([model.embed(*map(torch.from_numpy, part)) for part in _parts(frames)])
    inner = embeddings[1:-1]
    like_first = _unchanged(model, embeddings[:1].expand_as(inner), inner)
    like_last = _unchanged(model, inner, embeddings[-1:].expand_as(inner))
    # Frames before the change are like the first one, those from it on like the last one.
    before = np.concatenate([[0.0], np.cumsum(like_first)])
    after = np.concatenate([np.cumsum(like_last[::-1])[::-1], [0.0]])
    return frames.pts[1 + int(np.argmax(before + after))]


def _parts(frames: CroppedFrames) -> Iterator[Planes]:
    """Planes in slices: at a low rate there are many frames between two samples."""
    for start in range(0, len(frames.pts), 32):
        yield slice_planes(frames.planes, start, start + 32)


def _unchanged(model: PairModel, earlier: torch.Tensor, later: torch.Tensor) -> np.ndarray:
    """Log probability that nothing changes between each two; float64 (N,)."""
    forward = model.compare(earlier, later)[:, 0].numpy().astype(np.float64)
    return np.log(np.clip(forward[:, Label.SAME] + forward[:, Label.EMPTY_EMPTY], 1e-6, 1.0))
