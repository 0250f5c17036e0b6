"""Captions exact to a frame of the source, not only to a sample.

A boundary lies between two samples. The model compares the source's frames between them with both samples: frames
before the change look like the first sample, frames from the change on look like the second. Where one caption follows
another there may be frames between them that show neither, and no sample: a gap of two frames is a rule of subtitling
(Netflix, Timed Text Style Guide, "Frame Gap"). The changes are placed where this split has the highest probability.
Only the frames near a boundary have to be decoded.

Where a caption fades, no frame is like neither sample, and the model would say anything between a sixth and a third of
full opacity. Its letters are measured instead, on more frames around the boundary (`captions/opacity.py`); that fails
where it takes about two seconds or more to fade.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from caption_extents.captions.extents import Caption
from caption_extents.captions.opacity import change_in_fade
from caption_extents.labels import Label
from caption_extents.samples import Planes
from caption_extents.video.crop import CropPixels
from caption_extents.video.info import VideoFacts
from caption_extents.video.random_access import CroppedFrames, frames_between
from caption_extents.video.timeline import Timeline

CompareWithEnds: TypeAlias = Callable[[Planes], tuple[np.ndarray, np.ndarray]]
"""See :func:`caption_extents.model.labeller.compare_with_ends`."""

_CAPTION_SECONDS, _EMPTY_SECONDS = 2.5, 0.6
"""How far from a boundary to look, where a caption is and where none is. The model sees a fading caption at a sixth to
a third of its opacity, so most of a fade is on its side."""

_NARROW_SAMPLES = 2
"""A gap up to this length may have no sample without either caption, as they fade: the one beyond it is looked at."""

_MOST_BYTES = 128 << 20
"""Of the frames around a boundary; fewer are looked at where they are larger."""


def refine_captions(
    captions: list[Caption], facts: VideoFacts, timeline: Timeline, crop: CropPixels, compare: CompareWithEnds
) -> list[Caption]:
    """Captions with ``start`` and ``end`` exact to a frame; their samples stay as they are.

    ``compare`` asks the model. A boundary whose frames cannot be decoded keeps its time. A caption that stands to the
    end of the video ends when the display of the last frame does. One that still fades when the next one is shown ends
    there.
    """
    count, pts = len(timeline), timeline.sample_pts.tolist()
    starts, ends = {caption.first_sample for caption in captions}, {caption.end_sample for caption in captions}
    edges = sorted(edge for edge in starts | ends if 0 < edge < count)
    windows = [
        (pts[first], pts[last]) for first, last in _windows(captions, edges, count, _reach(facts, timeline, crop))
    ]
    compared = [(pts[edge - 1], pts[edge]) for edge in edges]
    changes = {count: Change(timeline.end_pts, timeline.end_pts)}
    for edge, interval, frames in zip(edges, compared, frames_between(facts, crop, windows, compared), strict=True):
        between = frames.part(*interval)
        # Both samples' own frames are needed for comparison; if one cannot be decoded, keep the boundary's time.
        whole = bool(between.pts) and (between.pts[0], between.pts[-1]) == interval
        is_end, is_start = edge in ends, edge in starts
        change = find_change(between, compare, may_have_gap=is_end and is_start) if whole else None
        if change is not None:
            changes[edge] = in_fades(frames, change, is_end=is_end, is_start=is_start)

    refined: list[Caption] = []
    for caption in captions:
        start, end = changes.get(caption.first_sample), changes.get(caption.end_sample)
        starts_at = caption.start if start is None else facts.seconds_at(start.second_starts)
        ends_at = caption.end if end is None else facts.seconds_at(end.first_ends)
        if refined and refined[-1].end > starts_at:
            # One fades out while the other fades in.
            refined[-1] = replace(refined[-1], end=starts_at)
        refined.append(replace(caption, start=starts_at, end=ends_at))
    return refined


def _reach(facts: VideoFacts, timeline: Timeline, crop: CropPixels) -> tuple[int, int]:
    """How many samples to look at from a boundary, where a caption is and where none is."""
    bytes_per_second = crop.width * crop.height / float(facts.usual_duration * facts.time_base)
    share = min(1.0, _MOST_BYTES / (2 * _CAPTION_SECONDS * bytes_per_second))
    inside, outside = (
        max(1, int(seconds * share * timeline.frame_rate)) for seconds in (_CAPTION_SECONDS, _EMPTY_SECONDS)
    )
    return inside, outside


def _windows(
    captions: list[Caption], edges: list[int], count: int, reach: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """First and last sample to look at for each boundary.

    At most to the middle of a caption beside it, and not into one beyond a gap, which may say the same.
    """
    firsts, ends = [c.first_sample for c in captions], [c.end_sample for c in captions]
    middles = [(first + end) // 2 for first, end in zip(firsts, ends, strict=True)]
    inside, outside = reach
    for edge in edges:
        first, last = max(0, edge - outside), min(count, edge + outside) - 1
        before, after = bisect_left(firsts, edge) - 1, bisect_right(ends, edge)
        if before >= 0:
            is_near = edge - ends[before] <= _NARROW_SAMPLES
            first = max(middles[before], edge - inside) if is_near else max(ends[before], first)
        if after < len(captions):
            is_near = firsts[after] - edge <= _NARROW_SAMPLES
            last = min(middles[after], edge + inside - 1) if is_near else min(firsts[after] - 1, last)
        yield first, last


@dataclass(frozen=True)
class Change:
    """How one sample's picture turns into the next sample's.

    Attributes:
        first_ends: pts of the first frame that no longer shows what the first sample shows.
        second_starts: pts of the first frame that shows what the second sample shows; later only if there is a gap.
    """

    first_ends: int
    second_starts: int


def find_change(frames: CroppedFrames, compare: CompareWithEnds, *, may_have_gap: bool) -> Change | None:
    """Find the change between the first and the last of some frames; None if there are not two.

    Args:
        frames: from one sample's frame to the next sample's, both included.
        compare: compares frames with the first and the last of them.
        may_have_gap: whether both show a caption, so that there may be frames without any between them.
    """
    count = len(frames.pts)
    if count < 2:
        return None
    if count == 2:
        return Change(frames.pts[1], frames.pts[1])
    with_first, with_last = map(_log_probabilities, compare(frames.planes))
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


def in_fades(frames: CroppedFrames, change: Change, *, is_end: bool, is_start: bool) -> Change:
    """The change with the opacity that :mod:`caption_extents.captions.opacity` names, where a caption fades.

    Args:
        frames: around the change; the first and the last show, as far as can be, what is before and after it.
        change: as the model sees it.
        is_end: whether a caption ends there.
        is_start: whether a caption starts there; both if one follows another.
    """
    last = len(frames.pts) - 1
    first_ends, second_starts = (frames.pts.index(at) for at in (change.first_ends, change.second_starts))
    if is_end:
        first_ends = change_in_fade(frames.luma, full=0, without=last, seen=first_ends) or first_ends
    if is_start:
        second_starts = change_in_fade(frames.luma, full=last, without=0, seen=second_starts) or second_starts
    return Change(frames.pts[first_ends], frames.pts[second_starts])


@dataclass(frozen=True)
class _LogProbabilities:
    """That between an earlier and a later frame no caption changes, one appears, or one disappears; float64 (N,)."""

    unchanged: np.ndarray
    appears: np.ndarray
    disappears: np.ndarray


def _log_probabilities(labels: np.ndarray) -> _LogProbabilities:
    forward = labels.astype(np.float64)
    unchanged = forward[:, Label.SAME] + forward[:, Label.EMPTY_EMPTY]
    found = (unchanged, forward[:, Label.EMPTY_VALID], forward[:, Label.VALID_EMPTY])
    return _LogProbabilities(*(np.log(np.clip(values, 1e-6, 1.0)) for values in found))


def _sums(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ... N values."""
    return np.concatenate([[0.0], np.cumsum(values)])
