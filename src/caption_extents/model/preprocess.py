"""From cropped YUV planes to the network's input, as tensor operations on any device."""

from __future__ import annotations

import io
import math

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from torch.nn import functional

from caption_extents.model.identity import INPUT_AREA_PX
from caption_extents.samples import Planes

STRIDE = 8
"""Both sides of the input are multiples of the network's stride."""

MIN_ASPECT, MAX_ASPECT = 2.0, 48.0


def input_size(crop_height: int, crop_width: int, area_px: int = INPUT_AREA_PX) -> tuple[int, int]:
    """Height and width of the network's input for crops of the given size in pixels."""
    aspect = min(max(crop_width / crop_height, MIN_ASPECT), MAX_ASPECT)
    height = max(STRIDE, STRIDE * round(math.sqrt(area_px / aspect) / STRIDE))
    width = max(STRIDE, STRIDE * round(area_px / height / STRIDE))
    return height, width


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


_JPEG_QUALITY = {"qmin": "6", "qmax": "6"}


def to_picture(planes: Planes, size: tuple[int, int]) -> np.ndarray:
    """One sample, Y (H, W), U and V (H/2, W/2), as an RGB picture of a height and width; uint8 (h, w, 3)."""
    y, u, v = (torch.from_numpy(np.ascontiguousarray(plane))[None] for plane in planes)
    rgb = to_rgb(y, u, v, size)[0]
    picture: np.ndarray = (rgb.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    return picture


def to_jpeg(frame: VideoFrame, size: tuple[int, int]) -> bytes:
    """A frame as a JPEG of a width and height."""
    limited = None if frame.format.is_rgb else "MPEG"
    small = frame.reformat(*size, format="yuvj420p", src_color_range=limited, dst_color_range="JPEG")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1, options=_JPEG_QUALITY)
        stream.width, stream.height, stream.pix_fmt = *size, "yuvj420p"
        container.mux([*stream.encode(small), *stream.encode(None)])
    return buffer.getvalue()
