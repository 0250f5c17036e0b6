"""Samples and frames as pictures: for people, and for OCR."""

from __future__ import annotations

import io
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
from av.video.frame import VideoFrame

from caption_extents.samples import Planes

_JPEG_QUALITY = {"qmin": "6", "qmax": "6"}

# ITU-T H.273, matrix coefficients 1: what blue- and red-difference chroma add to red, green and blue.
_FROM_CHROMA = np.array([[0, 1.5748], [-0.18733, -0.46813], [1.8556, 0]], np.float32)


def to_picture(planes: Planes, size: tuple[int, int]) -> np.ndarray:
    """One sample, limited-range BT.709, Y (H, W), U and V (H/2, W/2), as RGB; uint8 (h, w, 3) of a height and width."""
    luma, blue, red = (resized(plane, size) for plane in planes)
    luma, chroma = (luma - 16) / 219, (np.stack([blue, red], axis=-1) - 128) / 224
    rgb = luma[..., None] + chroma @ _FROM_CHROMA.T
    picture: np.ndarray = (rgb.clip(0, 1) * 255).round().astype(np.uint8)
    return picture


def resized(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A plane at another height and width, float32 (h, w)."""
    down, across = (_weights(source, target) for source, target in zip(plane.shape, size, strict=True))
    found: np.ndarray = down @ plane.astype(np.float32) @ across.T
    return found


@lru_cache(64)
def _weights(source: int, target: int) -> np.ndarray:
    """How a row of pixels becomes another, by triangular filters as wide as a new pixel; float32 (target, source)."""
    scale = source / target
    middles = (np.arange(target) + 0.5) * scale
    apart = np.abs(np.arange(source) + 0.5 - middles[:, None]) / max(scale, 1)
    weights = np.maximum(0, 1 - apart)
    found: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


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


def to_png(picture: np.ndarray) -> bytes:
    """An RGB picture, uint8 (h, w, 3), as PNG."""
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width, _ = picture.shape
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1)
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
