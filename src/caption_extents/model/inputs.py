"""The size of the network's input for a crop."""

from __future__ import annotations

import math

from caption_extents.model.identity import INPUT_AREA_PX

STRIDE = 8
"""Both sides of the input are multiples of the network's stride."""

MIN_ASPECT, MAX_ASPECT = 2.0, 48.0


def input_size(crop_height: int, crop_width: int, area_px: int = INPUT_AREA_PX) -> tuple[int, int]:
    """Height and width of the network's input for crops of the given size in pixels."""
    aspect = min(max(crop_width / crop_height, MIN_ASPECT), MAX_ASPECT)
    height = max(STRIDE, STRIDE * round(math.sqrt(area_px / aspect) / STRIDE))
    width = max(STRIDE, STRIDE * round(area_px / height / STRIDE))
    return height, width
