"""From the pixels of deeper and denser formats to 8-bit 4:2:0, the same whether a CPU or a GPU has decoded them.

Of values of more than 8 bits the upper 8 are kept, without rounding or dither: white, 940 of 10 bits, becomes 235.
Chroma of 4:4:4 becomes that of 4:2:0 by the mean of 2x2 pixels, a half rounded up. Other formats are left to swscale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PixelFormat:
    """What tells a YUV format from others that are planar.

    Attributes:
        depth: bits of a value.
        is_dense: whether there is as much chroma as luma (4:4:4), and not a quarter (4:2:0).
    """

    depth: int = 8
    is_dense: bool = False


PLAIN = PixelFormat()
"""What samples are made of: 8-bit 4:2:0."""

FORMATS = {
    "yuv420p": PLAIN,
    "yuvj420p": PLAIN,
    "yuva420p": PLAIN,
    "yuv420p10le": PixelFormat(10),
    "yuv420p12le": PixelFormat(12),
    "yuv444p": PixelFormat(8, is_dense=True),
    "yuvj444p": PixelFormat(8, is_dense=True),
    "yuv444p10le": PixelFormat(10, is_dense=True),
    "yuv444p12le": PixelFormat(12, is_dense=True),
}
"""Formats that this module knows, by FFmpeg's names."""


def upper_bits(values: np.ndarray, depth: int) -> np.ndarray:
    """The upper 8 bits of values of a depth, which are stored in the lower bits of 16; uint8 of the same shape."""
    return (values >> (depth - 8)).astype(np.uint8)


def sparse_chroma(plane: np.ndarray) -> np.ndarray:
    """Chroma of 4:4:4, uint8 (..., H, W) with even H and W, as chroma of 4:2:0, uint8 (..., H/2, W/2)."""
    wide = plane.astype(np.uint16)
    total = wide[..., ::2, ::2] + wide[..., ::2, 1::2] + wide[..., 1::2, ::2] + wide[..., 1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)
