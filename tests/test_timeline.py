from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_extents.errors import VideoError
from caption_extents.video.timeline import FrameIndex, place_samples

gaps = st.lists(st.integers(1, 5000), max_size=60)
rates = st.fractions(Fraction(1, 10), 120, max_denominator=1001)
time_bases = st.sampled_from([Fraction(1, 1000), Fraction(1, 90000), Fraction(1001, 30000), Fraction(1, 12288)])


def index(pts: list[int], last_duration: int) -> FrameIndex:
    return FrameIndex(np.asarray(pts, np.int64), pts[-1] + last_duration, np.empty(0, np.int64), np.empty(0, np.int64))


@given(first=st.integers(-(10**6), 2**33), gaps=gaps, last=st.integers(1, 500), rate=rates, time_base=time_bases)
def test_sample_k_is_the_last_frame_that_is_not_later(
    first: int, gaps: list[int], last: int, rate: Fraction, time_base: Fraction
) -> None:
    pts = [first, *(first + np.cumsum(gaps)).tolist()] if gaps else [first]
    end = (pts[-1] + last - first) * time_base
    if end * rate > 20_000:
        return
    timeline = place_samples(index(pts, last), time_base, rate)
    assert Fraction(len(timeline) - 1) / rate < end <= Fraction(len(timeline)) / rate
    for k in {0, len(timeline) // 3, len(timeline) // 2, len(timeline) - 1}:
        now = Fraction(k) / rate
        assert timeline.sample_pts[k] == max(p for p in pts if (p - first) * time_base <= now)


def test_timestamps_over_two_days_are_refused() -> None:
    with pytest.raises(VideoError, match="remux"):
        place_samples(index([0, 10**9], 1), Fraction(1, 1000), Fraction(10))


def test_frames_that_samples_show_are_never_skippable() -> None:
    frames = FrameIndex(np.arange(10, dtype=np.int64), 10, np.asarray([1, 3, 4], np.int64), np.empty(0, np.int64))
    timeline = place_samples(frames, Fraction(1, 30), Fraction(10))
    assert timeline.sample_pts.tolist() == [0, 3, 6, 9]
    assert timeline.skippable_pts.tolist() == [1, 4]
