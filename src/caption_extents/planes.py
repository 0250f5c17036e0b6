"""The Y, U and V planes of 8-bit 4:2:0 pictures as NumPy arrays."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import numpy as np
from av.video.plane import VideoPlane

Planes: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Y, U and V, uint8: (H, W) and twice (H/2, W/2), or with a first axis for samples."""


def empty_planes(count: int, height: int, width: int) -> Planes:
    """Uninitialised planes for ``count`` samples: (N, H, W) and twice (N, H/2, W/2)."""
    half = (count, height // 2, width // 2)
    return np.empty((count, height, width), np.uint8), np.empty(half, np.uint8), np.empty(half, np.uint8)


def slice_planes(planes: Planes, start: int, end: int) -> Planes:
    """The samples ``start`` to ``end`` (half-open) of planes with an axis for samples; views."""
    y, u, v = planes
    return y[start:end], u[start:end], v[start:end]


def plane_view(plane: VideoPlane) -> np.ndarray:
    """The pixels of an 8-bit plane, uint8 (H, W): a view of the frame's memory, without the rows' padding."""
    rows = np.frombuffer(cast(Any, plane), np.uint8)[: plane.height * plane.line_size]
    return rows.reshape(plane.height, plane.line_size)[:, : plane.width]
