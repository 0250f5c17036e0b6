"""Cropped samples on their way through the stages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caption_extents.planes import Planes


@dataclass(frozen=True, repr=False)
class SampleBatch:
    """Consecutive cropped samples in 8-bit 4:2:0, in the host's memory.

    Attributes:
        first_sample: number of the first sample.
        y: luma, uint8 (N, H, W) with even H and W.
        u: blue-difference chroma, uint8 (N, H/2, W/2).
        v: red-difference chroma, uint8 (N, H/2, W/2).

    Raises:
        ValueError: the arrays do not have these shapes and the type uint8.
    """

    first_sample: int
    y: np.ndarray
    u: np.ndarray
    v: np.ndarray

    def __post_init__(self) -> None:
        if self.y.ndim != 3 or self.y.shape[1] % 2 or self.y.shape[2] % 2:
            raise ValueError(f"luma must be (N, H, W) with even H and W, not {self.y.shape}")
        half = (self.y.shape[0], self.y.shape[1] // 2, self.y.shape[2] // 2)
        for name, plane in (("u", self.u), ("v", self.v)):
            if plane.shape != half:
                raise ValueError(f"chroma {name} must be {half} beside luma {self.y.shape}, not {plane.shape}")
        if any(plane.dtype != np.uint8 for plane in self.planes):
            raise ValueError(f"planes must be uint8, not {', '.join(str(plane.dtype) for plane in self.planes)}")

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
