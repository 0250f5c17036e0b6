"""Decoding on the engines of an NVIDIA GPU (NVDEC); crops are taken where the frames are.

Frames never leave the GPU: a session copies the crop out of a frame before the frame returns to the decoder's pool.
Everything is queued on the device's default stream, the one on which FFmpeg maps decoded frames, so that a crop is
taken after its frame is decoded and before the frame's memory is used again, without waiting for either.
"""

from __future__ import annotations

from typing import Any, cast

import av
import torch
from av.codec.hwaccel import HWAccel
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from torch.utils import dlpack

from caption_extents.video.batch import Planes, empty_planes
from caption_extents.video.crop import CropPixels
from caption_extents.video.cuda import decode_engines
from caption_extents.video.segmented import Engine, SegmentedDecoder
from caption_extents.video.source import VideoFacts, open_video
from caption_extents.video.timeline import Timeline

_DECODERS = {"libdav1d": "av1"}
"""FFmpeg's own decoder, which drives NVDEC, where the usual one is another library."""


def open_nvdec(
    facts: VideoFacts, timeline: Timeline, crop: CropPixels, device: torch.device, *, sessions: int = 0
) -> SegmentedDecoder:
    """A decoder on all decode engines of a GPU.

    Args:
        facts: of a video for which :func:`~caption_extents.video.cuda.why_not_nvdec` gives no reason.
        timeline: its samples.
        crop: what to keep of each sample.
        device: a CUDA device.
        sessions: decoders at work at once; 0 for one for each engine.
    """
    if not sessions:
        engines = decode_engines(facts.codec, device)
        sessions = engines.count if engines else 1
    return SegmentedDecoder("nvdec", facts, timeline, [_NvdecEngine(facts, crop, device) for _ in range(sessions)])


class _NvdecEngine(Engine):
    def __init__(self, facts: VideoFacts, crop: CropPixels, device: torch.device) -> None:
        self._facts, self._crop, self._device = facts, crop, device

    def open(self) -> VideoCodecContext:
        torch.cuda.set_device(self._device)
        torch.zeros(1, device=self._device)  # FFmpeg joins the context that is current in this thread
        accelerator = HWAccel(
            "cuda",
            device=str(self._device.index or 0),
            allow_software_fallback=False,
            is_hw_owned=True,
            options={"primary_ctx": "0", "current_ctx": "1"},
        )
        name = _DECODERS.get(self._facts.codec, self._facts.codec)
        context = cast(VideoCodecContext, av.CodecContext.create(name, "r", hwaccel=accelerator))
        with open_video(self._facts.path) as (_, stream):
            context.extradata = stream.codec_context.extradata
        return context

    def crop_into(self, frame: VideoFrame, planes: Planes, index: int) -> None:
        left, top, right, bottom = self._crop.decoded
        # NV12: luma, and chroma with U and V side by side. PyTorch's own call of __dlpack__ passes a stream, which
        # PyAV refuses; both are on the default stream.
        luma, chroma = (dlpack.from_dlpack(cast(Any, plane).__dlpack__()) for plane in frame.planes[:2])
        box = chroma[top // 2 : bottom // 2, left // 2 : right // 2]
        for target, source in zip(planes, (luma[top:bottom, left:right], box[..., 0], box[..., 1]), strict=True):
            target[index].copy_(self._facts.orientation.apply_tensor(source))

    def empty(self, count: int) -> Planes:
        return empty_planes(count, self._crop.height, self._crop.width, self._device)
