"""From cropped YUV planes to the network's input, as tensor operations on any device."""

from __future__ import annotations

import torch
from torch.nn import functional

from caption_extents.model.inputs import input_size


def to_input(y: torch.Tensor, u: torch.Tensor, v: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Resize planes to one float picture each.

    Args:
        y: luma, uint8 (N, H, W).
        u: blue-difference chroma, uint8 (N, H/2, W/2).
        v: red-difference chroma, uint8 (N, H/2, W/2).
        size: height and width of the result; by default :func:`input_size` of the luma.

    Returns:
        float32 (N, 3, h, w), channels Y, U, V around 0, in channels-last memory order, on the planes' device.
    """
    planes = resize_planes(y, u, v, size or input_size(y.shape[1], y.shape[2]))
    return ((planes - 128.0) / 64.0).contiguous(memory_format=torch.channels_last)


def resize_planes(y: torch.Tensor, u: torch.Tensor, v: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Planes resized to one size and stacked, on their device.

    Args:
        y: luma, uint8 (N, H, W).
        u, v: chroma, uint8 (N, H/2, W/2).
        size: height and width of the result.

    Returns:
        float32 (N, 3, h, w) in 0..255.
    """
    channels = [
        functional.interpolate(plane[:, None].float(), size, mode="bilinear", antialias=True, align_corners=False)
        for plane in (y, u, v)
    ]
    return torch.cat(channels, dim=1)


def to_rgb(y: torch.Tensor, u: torch.Tensor, v: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Limited-range BT.709 planes as RGB pictures, float32 (N, 3, h, w) in 0..1; arguments as :func:`resize_planes`."""
    luma, blue, red = resize_planes(y, u, v, size).unbind(1)
    luma, blue, red = (luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224
    # ITU-T H.273, matrix coefficients 1.
    rgb = torch.stack([luma + 1.5748 * red, luma - 0.18733 * blue - 0.46813 * red, luma + 1.8556 * blue], dim=1)
    return rgb.clamp(0, 1)
