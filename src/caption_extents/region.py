"""The region of the displayed picture in which captions stand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

from caption_extents.errors import CropError


@dataclass(frozen=True)
class CropRegion:
    """Where captions stand, as fractions of the displayed picture's width and height.

    Raises:
        CropError: a fraction is outside 0..1, or a side is not beyond its opposite.
    """

    crop_left: float
    crop_top: float
    crop_right: float
    crop_bottom: float

    def __post_init__(self) -> None:
        for name in ("crop_left", "crop_top", "crop_right", "crop_bottom"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
                raise CropError(f"{name} is {value!r}; give a fraction of the picture between 0 and 1")
            object.__setattr__(self, name, plain_number(value))
        for low, high in (("crop_left", "crop_right"), ("crop_top", "crop_bottom")):
            if getattr(self, low) >= getattr(self, high):
                raise CropError(f"{low} ({getattr(self, low)}) must be smaller than {high} ({getattr(self, high)})")

    @classmethod
    def of(cls, crop: CropRegion | Iterable[float]) -> CropRegion:
        """Convert four numbers (left, top, right, bottom) to a region; a region is returned unchanged.

        Raises:
            CropError: there are not four numbers, or they are not a valid region.
        """
        if isinstance(crop, CropRegion):
            return crop
        if not isinstance(crop, Iterable) or len(sides := tuple(crop)) != 4:
            raise CropError(f"crop is {crop!r}; give left, top, right and bottom")
        return cls(*sides)

    @classmethod
    def parse(cls, text: str) -> CropRegion:
        """Read ``left,top,right,bottom``.

        Raises:
            CropError: the text is not four numbers, or they are no region.
        """
        try:
            left, top, right, bottom = (float(part) for part in text.split(","))
        except ValueError:
            raise CropError(
                f"crop {text!r} is not of the form LEFT,TOP,RIGHT,BOTTOM, for example 0.1,0.86,0.9,0.94"
            ) from None
        return cls(left, top, right, bottom)

    def as_tuple(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        return self.crop_left, self.crop_top, self.crop_right, self.crop_bottom


def plain_number(value: Any) -> Any:
    """A number of any type as an int or a float, which can be written as JSON.

    A number of NumPy's smaller types becomes the decimal number that it prints as.
    """
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, (float, Fraction)) else float(str(value))
