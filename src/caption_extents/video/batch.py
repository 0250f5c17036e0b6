"""Cropped samples on their way through the stages."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, repr=False)
class CropBatch:
    """Consecutive cropped samples in 8-bit 4:2:0. Decoders give them in the host's memory.

    Attributes:
        first_sample: number of the first sample.
        y: luma, uint8 (N, H, W) with even H and W.
        u, v: chroma, uint8 (N, H/2, W/2).

    Raises:
        ValueError: the tensors do not have these shapes, the type uint8 and one device.
    """

    first_sample: int
    y: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor

    def __post_init__(self) -> None:
        if self.y.ndim != 3 or self.y.shape[1] % 2 or self.y.shape[2] % 2:
            raise ValueError(f"luma must be (N, H, W) with even H and W, not {tuple(self.y.shape)}")
        half = (self.y.shape[0], self.y.shape[1] // 2, self.y.shape[2] // 2)
        for name, plane in (("u", self.u), ("v", self.v)):
            if tuple(plane.shape) != half:
                raise ValueError(
                    f"chroma {name} must be {half} beside luma {tuple(self.y.shape)}, not {tuple(plane.shape)}"
                )
        if {plane.dtype for plane in self.planes} != {torch.uint8} or len({plane.device for plane in self.planes}) != 1:
            raise ValueError("planes must be uint8 and on one device")

    @property
    def planes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Y, U and V."""
        return self.y, self.u, self.v

    @property
    def height(self) -> int:
        """Height of a sample in pixels."""
        return self.y.shape[1]

    @property
    def width(self) -> int:
        """Width of a sample in pixels."""
        return self.y.shape[2]

    @property
    def nbytes(self) -> int:
        """Size of all planes in bytes."""
        return sum(plane.nbytes for plane in self.planes)

    def __len__(self) -> int:
        return self.y.shape[0]

    def __repr__(self) -> str:
        last = self.first_sample + len(self)
        return f"CropBatch(samples {self.first_sample}..{last}, {self.width}x{self.height}, {self.y.device})"


Planes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def empty_planes(count: int, height: int, width: int, device: torch.device | str = "cpu") -> Planes:
    """Uninitialised Y, U and V planes for ``count`` samples."""
    return (
        torch.empty((count, height, width), dtype=torch.uint8, device=device),
        torch.empty((count, height // 2, width // 2), dtype=torch.uint8, device=device),
        torch.empty((count, height // 2, width // 2), dtype=torch.uint8, device=device),
    )
