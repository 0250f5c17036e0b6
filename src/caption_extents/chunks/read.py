"""Reading samples back out of chunks."""

from __future__ import annotations

import io

import av
import numpy as np

from caption_extents.planes import plane_view


def decode_chunk(data: bytes) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All frames of a chunk: Y (H, W), U and V (H/2, W/2), uint8."""
    with av.open(io.BytesIO(data), "r", format="webm") as container:
        frames = [tuple(plane_view(plane).copy() for plane in frame.planes) for frame in container.decode(video=0)]
    return [(y, u, v) for y, u, v in frames]
