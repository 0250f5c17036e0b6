"""The eight ways in which a decoded frame can be turned and mirrored for display."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame

from caption_extents.errors import VideoError


@dataclass(frozen=True)
class Orientation:
    """Transpose first, then mirror: ``displayed = decoded(.T)(mirrored)``."""

    transpose: bool = False
    mirror_horizontal: bool = False
    mirror_vertical: bool = False

    @classmethod
    def from_frame(cls, frame: VideoFrame) -> Orientation:
        """Read the frame's display matrix; without one the frame is shown as it is.

        Raises:
            VideoError: the matrix turns by an angle that is no multiple of 90 degrees.
        """
        data = frame.side_data.get(cast(Any, Type.DISPLAYMATRIX))
        if data is None:
            return cls()
        # Displayed x = a*x + c*y, displayed y = b*x + d*y, in 16.16 fixed point (FFmpeg's libavutil/display.h).
        a, b, _, c, d = struct.unpack("=5i", bytes(cast(Any, data))[:20])
        if (a, b, c, d) == (0, 0, 0, 0):
            return cls()
        size = max(map(abs, (a, b, c, d)))
        if max(abs(b), abs(c)) * 100 < size:
            return cls(False, a < 0, d < 0)
        if max(abs(a), abs(d)) * 100 < size:
            return cls(True, c < 0, b < 0)
        angle = math.degrees(math.atan2(b, a))
        raise VideoError(f"the video is to be shown turned by {angle:.1f} degrees; only multiples of 90 are supported")

    def display_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the displayed picture for a decoded frame."""
        return (height, width) if self.transpose else (width, height)

    def apply(self, planes: np.ndarray) -> np.ndarray:
        """Turn planes (..., rows, columns) of decoded frames as they are displayed; a view, never a copy."""
        if self.transpose:
            planes = planes.swapaxes(-2, -1)
        if self.mirror_horizontal:
            planes = planes[..., ::-1]
        if self.mirror_vertical:
            planes = planes[..., ::-1, :]
        return planes

    def to_decoded(
        self, left: int, top: int, right: int, bottom: int, width: int, height: int
    ) -> tuple[int, int, int, int]:
        """A box of the displayed picture as a box of the decoded frame of the given size."""
        display_width, display_height = self.display_size(width, height)
        if self.mirror_horizontal:
            left, right = display_width - right, display_width - left
        if self.mirror_vertical:
            top, bottom = display_height - bottom, display_height - top
        return (top, left, bottom, right) if self.transpose else (left, top, right, bottom)
