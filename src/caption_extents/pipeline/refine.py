"""Captions exact to a frame of the source, not only to a sample.

A boundary lies between two samples. The model compares the source's frames between them with both samples: frames
before the change look like the first sample, frames from the change on look like the second. Where one caption follows
another there may be frames between them that show neither, and no sample: a gap of two frames is a rule of subtitling
(Netflix, Timed Text Style Guide, "Frame Gap"). The changes are placed where this split has the highest probability.
Only a few frames per boundary have to be decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

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

    A boundary whose frames cannot be decoded keeps its time. A caption that stands to the end of the video ends when
    the display of the last frame does.
    """
    count, pts = len(timeline), timeline.sample_pts.tolist()
    starts, ends = {caption.first_sample for caption in captions}, {caption.end_sample for caption in captions}
    edges = sorted(edge for edge in starts | ends if 0 < edge < count)
    between_captions = starts & ends
    intervals = [(pts[edge - 1], pts[edge]) for edge in edges]
    changes = {count: Change(timeline.end_pts, timeline.end_pts)}
    for edge, interval, frames in zip(edges, intervals, frames_between(facts, crop, intervals), strict=True):
        # Both samples' own frames are needed for comparison; if one cannot be decoded, keep the boundary's time.
        whole = bool(frames.pts) and (frames.pts[0], frames.pts[-1]) == interval
        change = find_change(frames, model, may_have_gap=edge in between_captions) if whole else None
        if change is not None:
            changes[edge] = change

    def seconds(ticks: int) -> float:
        return float(facts.first_sample_seconds + (ticks - facts.first_pts) * facts.time_base)

    def refined(caption: Caption) -> Caption:
        start, end = changes.get(caption.first_sample), changes.get(caption.end_sample)
        return replace(
            caption,
            start=caption.start if start is None else seconds(start.second_starts),
            end=caption.end if end is None else seconds(end.first_ends),
        )

    return [refined(caption) for caption in captions]


@dataclass(frozen=True)
class Change:
    """How one sample's picture turns into the next sample's.

    Attributes:
        first_ends: pts of the first frame that no longer shows what the first sample shows.
        second_starts: pts of the first frame that shows what the second sample shows; later only if there is a gap.
    """

    first_ends: int
    second_starts: int


def find_change(frames: CroppedFrames, model: PairModel, *, may_have_gap: bool) -> Change | None:
    """Find the change between the first and the last of some frames; None if there are not two.

    Args:
        frames: from one sample's frame to the next sample's, both included.
        model: compares frames.
        may_have_gap: whether both show a caption, so that there may be frames without any between them.
    """
    count = len(frames.pts)
    if count < 2:
        return None
    if count == 2:
        return Change(frames.pts[1], frames.pts[1])
    embeddings = torch.cat([model.embed(*map(torch.from_numpy, part)) for part in _parts(frames)])
    inner = embeddings[1:-1]
    with_first = _log_probabilities(model, embeddings[:1].expand_as(inner), inner)
    with_last = _log_probabilities(model, inner, embeddings[-1:].expand_as(inner))
    # Of each inner frame, how likely it shows what the first one shows, what the last one shows, or no caption. Sums
    # over the first n frames: the sum over any run of frames is a difference of two of them.
    like_first, like_last = _sums(with_first.unchanged), _sums(with_last.unchanged)
    empty = _sums((with_first.disappears + with_last.appears) / 2)
    at_once = like_first - like_last
    first_ends = second_starts = int(np.argmax(at_once))
    if may_have_gap:
        until, since = like_first - empty, empty - like_last
        with_gap = np.maximum.accumulate(until)[:-1] + since[1:]
        if with_gap.max() > at_once.max():
            second_starts = int(np.argmax(with_gap)) + 1
            first_ends = int(np.argmax(until[:second_starts]))
    return Change(frames.pts[first_ends + 1], frames.pts[second_starts + 1])


def _parts(frames: CroppedFrames) -> Iterator[Planes]:
    """Planes in slices: at a low rate there are many frames between two samples."""
    for start in range(0, len(frames.pts), 32):
        yield slice_planes(frames.planes, start, start + 32)


@dataclass(frozen=True)
class _LogProbabilities:
    """That between an earlier and a later frame no caption changes, one appears, or one disappears; float64 (N,)."""

    unchanged: np.ndarray
    appears: np.ndarray
    disappears: np.ndarray


def _log_probabilities(model: PairModel, earlier: torch.Tensor, later: torch.Tensor) -> _LogProbabilities:
    forward = model.compare(earlier, later)[:, 0].numpy().astype(np.float64)
    unchanged = forward[:, Label.SAME] + forward[:, Label.EMPTY_EMPTY]
    found = (unchanged, forward[:, Label.EMPTY_VALID], forward[:, Label.VALID_EMPTY])
    return _LogProbabilities(*(np.log(np.clip(values, 1e-6, 1.0)) for values in found))


def _sums(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ... N values."""
    return np.concatenate([[0.0], np.cumsum(values)])
