"""A plane of a video frame as an array."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from av.video.plane import VideoPlane


def plane_view(plane: VideoPlane) -> np.ndarray:
    """The pixels of an 8-bit plane, uint8 (height, width): a view of the frame's memory, without the rows' padding."""
    rows = np.frombuffer(cast(Any, plane), np.uint8)[: plane.height * plane.line_size]
    return rows.reshape(plane.height, plane.line_size)[:, : plane.width]
