"""A few whole pictures of a video, spread over it, for finding or choosing the region of its captions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from caption_extents.pictures import to_picture
from caption_extents.region import CropRegion
from caption_extents.video.crop import resolve_crop
from caption_extents.video.info import VideoFacts
from caption_extents.video.random_access import frames_between
from caption_extents.video.timeline import Timeline

_WIDTH_PX = 960


def pick_times(timeline: Timeline, count: int) -> list[int]:
    """Pts of the frames to look at: key frames where there are enough, which cost nothing but themselves to decode."""
    pool = timeline.key_pts if len(timeline.key_pts) >= count else timeline.sample_pts
    unique = np.unique(pool)
    picks = np.linspace(0, len(unique) - 1, min(count, len(unique))).round().astype(int)
    return [int(unique[pick]) for pick in np.unique(picks)]


def pictures_at(facts: VideoFacts, times: list[int]) -> Iterator[np.ndarray]:
    """The displayed pictures of these pts, RGB, uint8 (H, W, 3), at most 960 pixels wide; undecodable ones left out."""
    crop = resolve_crop(CropRegion(0, 0, 1, 1), facts)
    width = min(_WIDTH_PX, crop.width)
    size = (max(1, round(crop.height * width / crop.width)), width)
    for frames in frames_between(facts, crop, [(pts, pts) for pts in times]):
        if frames.pts:
            y, u, v = frames.planes
            yield to_picture((y[0], u[0], v[0]), size)
