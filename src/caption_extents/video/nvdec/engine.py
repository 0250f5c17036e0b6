"""Decoding on the engines of an NVIDIA GPU (NVDEC).

Whole frames never leave the GPU: only the crop is copied to the host, before the frame returns to the decoder's pool.
The copy is queued on the device's default stream, on which FFmpeg maps decoded frames; stream order guarantees that it
runs after the frame is decoded and before the frame's memory is reused, without synchronisation. Therefore frames are
used in the decoder's own surfaces (``unsafe_output``); by default FFmpeg copies each whole frame first, because frames
might be used on other streams. This module does not need PyTorch.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from caption_extents.samples import Planes
from caption_extents.video.crop import CropPixels
from caption_extents.video.decoders.base import has_size_of_first
from caption_extents.video.demux import open_container
from caption_extents.video.info import VideoFacts
from caption_extents.video.nvdec import driver
from caption_extents.video.nvdec.driver import BoxCopy
from caption_extents.video.nvdec.session import Crops
from caption_extents.video.pixels import FORMATS, PLAIN, PixelFormat, sparse_chroma

_HELD_FRAMES = 4
"""Additional surfaces per decoder, for the frames that a session holds while the decoder continues: the frames just
returned, the frame shown by the current sample, and the latest frame."""


_SURFACES = {
    PLAIN: {"nv12"},
    PixelFormat(10): {"p010le", "p016le"},
    PixelFormat(12): {"p012le", "p016le"},
    PixelFormat(8, is_dense=True): {"yuv444p"},
    PixelFormat(10, is_dense=True): {"yuv444p10msble", "yuv444p16le"},
    PixelFormat(12, is_dense=True): {"yuv444p12msble", "yuv444p16le"},
}
"""Formats of surfaces that FFmpeg may give, by what they hold; it had none for some depths before version 8."""


def warm_up(ordinal: int) -> None:
    """Get a device ready, which takes a second the first time in a process."""
    driver.enter(ordinal)


class NvdecEngine:
    """An :class:`~caption_extents.video.nvdec.session.Engine` on a GPU.

    Its surfaces have luma, and chroma with U and V side by side (NV12, P016), or three planes (4:4:4). Values of more
    than 8 bits are the upper bits of two bytes, of which the second holds the upper ones.

    Args:
        facts: of the video.
        crop: what to keep.
        ordinal: number of the device.
    """

    def __init__(self, facts: VideoFacts, crop: CropPixels, ordinal: int) -> None:
        self._facts, self._ordinal = facts, ordinal
        left, top, right, bottom = crop.decoded
        width, height = right - left, bottom - top
        pixels = FORMATS[facts.pixel_format]
        self._surfaces = _SURFACES[pixels]
        value: tuple[int, ...] = () if pixels.depth == 8 else (2,)
        half = height // 2, width // 2, 2, *value
        self.shapes: tuple[tuple[int, ...], ...] = (
            ((height, width, *value),) * 3 if pixels.is_dense else ((height, width, *value), half)
        )
        left_bytes, width_bytes = (side * (1 if pixels.depth == 8 else 2) for side in (left, width))
        luma = [BoxCopy(left_bytes, top, width_bytes, height) for _ in range(3 if pixels.is_dense else 1)]
        # U and V side by side have as many bytes in a row as luma.
        self._copies = luma if pixels.is_dense else [*luma, BoxCopy(left_bytes, top // 2, width_bytes, height // 2)]
        self._pixels = pixels
        self._extradata: bytes | None = None

    def kind_of_stream(self) -> Hashable:
        """See the protocol."""
        if self._extradata is None:
            with open_container(self._facts.path, self._facts.stream_index) as (_, stream):
                self._extradata = stream.codec_context.extradata or b""
        facts = self._facts
        return facts.codec, facts.width, facts.height, facts.pixel_format, self._extradata

    def open(self) -> VideoCodecContext:
        """See the protocol."""
        self.kind_of_stream()
        driver.enter(self._ordinal)  # FFmpeg joins the context that is current in this thread
        accelerator = HWAccel(
            "cuda",
            device=str(self._ordinal),
            allow_software_fallback=False,
            is_hw_owned=True,
            options={"primary_ctx": "0", "current_ctx": "1"},
        )
        # FFmpeg's own decoder, which drives NVDEC, has the name of the codec; others, of libraries, do not.
        context = cast(VideoCodecContext, av.CodecContext.create(self._facts.codec, "r", hwaccel=accelerator))
        context.options = {"hwaccel_flags": "unsafe_output", "extra_hw_frames": str(_HELD_FRAMES)}
        context.thread_count = 1  # others would have nothing to do
        context.extradata = self._extradata or None
        return context

    def pin(self, memory: np.ndarray, before: np.ndarray | None) -> None:
        """See the protocol."""
        driver.enter(self._ordinal)
        if before is not None:
            driver.unpin(before)
        driver.pin(memory)

    def takes(self, frame: VideoFrame) -> bool:
        """See the protocol."""
        surface = frame.sw_format
        return has_size_of_first(frame, self._facts) and surface is not None and surface.name in self._surfaces

    def crop_into(self, frame: VideoFrame, crops: Crops, index: int) -> None:
        """See the protocol."""
        for plane, copy, array in zip(frame.planes, self._copies, crops, strict=False):
            copy(plane.buffer_ptr, plane.line_size, array.ctypes.data + index * copy.nbytes)

    def planes(self, crops: Crops) -> Planes:
        """See the protocol."""
        if self._pixels.depth > 8:
            crops = tuple(array[..., 1] for array in crops)
        if self._pixels.is_dense:
            y, u, v = crops
            return y.copy(), sparse_chroma(u), sparse_chroma(v)
        luma, chroma = crops
        return luma.copy(), chroma[..., 0].copy(), chroma[..., 1].copy()

    def finish(self) -> None:
        """See the protocol."""
        driver.wait()
