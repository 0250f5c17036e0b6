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

from caption_extents.video.crop import CropPixels
from caption_extents.video.decoders.base import has_size_of_first
from caption_extents.video.demux import open_container
from caption_extents.video.info import VideoFacts
from caption_extents.video.nvdec import driver
from caption_extents.video.nvdec.driver import BoxCopy
from caption_extents.video.nvdec.session import Crops

_HELD_FRAMES = 4
"""Additional surfaces per decoder, for the frames that a session holds while the decoder continues: the frames just
returned, the frame shown by the current sample, and the latest frame."""


def warm_up(ordinal: int) -> None:
    """Get a device ready, which takes a second the first time in a process."""
    driver.enter(ordinal)


class NvdecEngine:
    """An :class:`~caption_extents.video.nvdec.session.Engine` on a GPU; crops are NV12.

    Args:
        facts: of the video.
        crop: what to keep.
        ordinal: number of the device.
    """

    def __init__(self, facts: VideoFacts, crop: CropPixels, ordinal: int) -> None:
        self._facts, self._ordinal = facts, ordinal
        left, top, right, bottom = crop.decoded
        width, height = right - left, bottom - top
        self.shapes: tuple[tuple[int, ...], ...] = ((height, width), (height // 2, width // 2, 2))
        # NV12: luma, and chroma with U and V side by side, so that both have as many bytes in a row.
        self._copies = BoxCopy(left, top, width, height), BoxCopy(left, top // 2, width, height // 2)
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
        return has_size_of_first(frame, self._facts) and surface is not None and surface.name == "nv12"

    def crop_into(self, frame: VideoFrame, crops: Crops, index: int) -> None:
        """See the protocol."""
        for plane, copy, array in zip(frame.planes, self._copies, crops, strict=False):
            copy(plane.buffer_ptr, plane.line_size, array.ctypes.data + index * copy.nbytes)

    def finish(self) -> None:
        """See the protocol."""
        driver.wait()
