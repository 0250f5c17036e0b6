"""Samples and frames as pictures, for OCR and for people to look at."""

from __future__ import annotations

import io

import av
import numpy as np
import torch
from av.video.frame import VideoFrame

from caption_extents.model.preprocess import to_rgb
from caption_extents.planes import Planes

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
