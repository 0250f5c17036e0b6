"""Planes of samples resized, and as RGB pictures: for the model, for models of others, and for looking at."""

from __future__ import annotations

import io

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from torch.nn import functional

_JPEG_QUALITY = {"qmin": "6", "qmax": "6"}


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


def to_picture(y: torch.Tensor, u: torch.Tensor, v: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """One sample, Y (H, W), U and V (H/2, W/2), as an RGB picture of a size; uint8 (h, w, 3)."""
    rgb = to_rgb(y[None], u[None], v[None], size)[0]
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
