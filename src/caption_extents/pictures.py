"""Decoded planes as RGB pictures, for looking at and for models of others."""

from __future__ import annotations

import torch
from torch.nn import functional


def to_rgb(y: torch.Tensor, u: torch.Tensor, v: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Limited-range BT.709 planes as RGB pictures, float32 (N, 3, h, w) in 0..1, on the planes' device.

    Args:
        y: uint8 (N, H, W).
        u, v: uint8 (N, H/2, W/2).
        size: height and width of the pictures.
    """
    luma, blue, red = (
        functional.interpolate(plane[:, None].float(), size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
        for plane in (y, u, v)
    )
    luma, blue, red = (luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224
    # ITU-T H.273, matrix coefficients 1.
    rgb = torch.stack([luma + 1.5748 * red, luma - 0.18733 * blue - 0.46813 * red, luma + 1.8556 * blue], dim=1)
    return rgb.clamp(0, 1)
