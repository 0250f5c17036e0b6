"""The crop region: fractions of the displayed picture in, even pixels of the decoded frame out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from caption_extents.errors import CropError
from caption_extents.region import CropRegion
from caption_extents.video.info import VideoFacts

MIN_CROP_PX = 16
"""Smallest width and height of a crop; nothing smaller shows a caption."""


@dataclass(frozen=True)
class CropPixels:
    """A crop in pixels: half-open, even on every side.

    Attributes:
        left, top, right, bottom: in the displayed picture.
        decoded: the same box in the decoded frame, before rotation.
    """

    left: int
    top: int
    right: int
    bottom: int
    decoded: tuple[int, int, int, int]

    @property
    def width(self) -> int:
        """Width of a cropped sample in pixels."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Height of a cropped sample in pixels."""
        return self.bottom - self.top

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CropPixels:
        """Inverse of :func:`dataclasses.asdict`, for data that has been sent as JSON."""
        return cls(**{**data, "decoded": tuple(data["decoded"])})

    def scaled(self, size: tuple[int, int], width: int, height: int) -> tuple[int, int, int, int]:
        """The box :attr:`decoded`, of frames of ``size``, at the same place in frames of another size; even sides."""
        left, top, right, bottom = (Fraction(side, size[index % 2]) for index, side in enumerate(self.decoded))
        (left_px, right_px), (top_px, bottom_px) = _outwards(left, right, width), _outwards(top, bottom, height)
        return left_px, top_px, right_px, bottom_px

    def as_tuple(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in the displayed picture."""
        return self.left, self.top, self.right, self.bottom


def _outwards(low: Fraction, high: Fraction, size: int) -> tuple[int, int]:
    return math.floor(low * size / 2) * 2, min(size, math.ceil(high * size / 2) * 2)


def resolve_crop(region: CropRegion, facts: VideoFacts) -> CropPixels:
    """The region in pixels of a video, rounded outwards to even coordinates.

    Even coordinates keep chroma aligned, so that decoded pixels are passed on as they are.

    Raises:
        CropError: the region is under 16 pixels wide or high.
    """
    # They are decimal numbers that a person wrote: 0.3 of 20 pixels is 6, not 5.999...
    sides = [Fraction(str(side)) for side in region.as_tuple()]
    left, right = _outwards(sides[0], sides[2], facts.display_width)
    top, bottom = _outwards(sides[1], sides[3], facts.display_height)
    if right - left < MIN_CROP_PX or bottom - top < MIN_CROP_PX:
        raise CropError(
            f"the crop is {right - left}x{bottom - top} pixels of {facts.display_width}x{facts.display_height}; "
            f"at least {MIN_CROP_PX}x{MIN_CROP_PX} are needed, so make the region larger"
        )
    decoded = facts.orientation.to_decoded(left, top, right, bottom, facts.width // 2 * 2, facts.height // 2 * 2)
    return CropPixels(left, top, right, bottom, decoded)
