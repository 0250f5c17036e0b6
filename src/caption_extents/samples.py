"""Cropped samples in 8-bit 4:2:0: Y, U and V planes as NumPy arrays, and batches of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from caption_extents.errors import InputError

if TYPE_CHECKING:
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


def plane_view(plane: VideoPlane, value_bytes: int = 1) -> np.ndarray:
    """The pixels of a plane, (H, W): a view of the frame's memory, without the rows' padding.

    Args:
        plane: of a format whose planes have one value in a pixel.
        value_bytes: of a value: 1 for uint8, 2 for uint16.
    """
    rows = np.frombuffer(cast(Any, plane), np.uint8)[: plane.height * plane.line_size]
    return rows.reshape(plane.height, plane.line_size).view(f"<u{value_bytes}")[:, : plane.width]


@dataclass(frozen=True, repr=False)
class SampleBatch:
    """Consecutive cropped samples in 8-bit 4:2:0, in the host's memory.

    Attributes:
        first_sample: number of the first sample.
        y: luma, uint8 (N, H, W) with even H and W.
        u: blue-difference chroma, uint8 (N, H/2, W/2).
        v: red-difference chroma, uint8 (N, H/2, W/2).

    Raises:
        InputError: the arrays do not have these shapes and the type uint8.
    """

    first_sample: int
    y: np.ndarray
    u: np.ndarray
    v: np.ndarray

    def __post_init__(self) -> None:
        if self.y.ndim != 3 or self.y.shape[1] % 2 or self.y.shape[2] % 2:
            raise InputError(f"luma must be (N, H, W) with even H and W, not {self.y.shape}")
        half = (self.y.shape[0], self.y.shape[1] // 2, self.y.shape[2] // 2)
        for name, plane in (("u", self.u), ("v", self.v)):
            if plane.shape != half:
                raise InputError(f"chroma {name} must be {half} beside luma {self.y.shape}, not {plane.shape}")
        if any(plane.dtype != np.uint8 for plane in self.planes):
            raise InputError(f"planes must be uint8, not {', '.join(str(plane.dtype) for plane in self.planes)}")

    @property
    def planes(self) -> Planes:
        """Y, U and V."""
        return self.y, self.u, self.v

    @property
    def height(self) -> int:
        """Height of a sample in pixels."""
        return int(self.y.shape[1])

    @property
    def width(self) -> int:
        """Width of a sample in pixels."""
        return int(self.y.shape[2])

    @property
    def nbytes(self) -> int:
        """Size of all planes in bytes."""
        return sum(plane.nbytes for plane in self.planes)

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"SampleBatch(samples {self.first_sample}..{self.first_sample + len(self)}, {self.width}x{self.height})"
