"""Reading samples back out of chunks."""

from __future__ import annotations

import io

import av
import numpy as np


def decode_chunk(data: bytes) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All frames of a chunk: Y (H, W), U and V (H/2, W/2), uint8."""
    frames = []
    with av.open(io.BytesIO(data), format="webm") as container:
        for frame in container.decode(video=0):
            planes = []
            for plane in frame.planes:
                rows = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size]
                planes.append(rows.reshape(plane.height, plane.line_size)[:, : plane.width].copy())
            frames.append((planes[0], planes[1], planes[2]))
    return frames
