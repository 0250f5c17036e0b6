"""Decoding on the engines of an NVIDIA GPU (NVDEC); crops are taken where the frames are.

Frames never leave the GPU: a session copies the crop out of a frame before the frame returns to the decoder's pool.
Everything is queued on the device's default stream, the one on which FFmpeg maps decoded frames, so that a crop is
taken after its frame is decoded and before the frame's memory is used again, without waiting for either.
"""

from __future__ import annotations

from typing import cast

import av
import torch
from av.codec.hwaccel import HWAccel
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from caption_extents.video.batch import Planes
from caption_extents.video.crop import CropPixels
from caption_extents.video.cuda import decode_engines
from caption_extents.video.decoder import BATCH_SAMPLES
from caption_extents.video.device_copy import BoxCopy
from caption_extents.video.segmented import Buffers, Engine, SegmentedDecoder, SegmentReader
from caption_extents.video.source import VideoFacts, open_video
from caption_extents.video.timeline import Timeline

_DECODERS = {"libdav1d": "av1"}
"""FFmpeg's own decoder, which drives NVDEC, where the usual one is another library."""

_BATCH_SAMPLES = 128
"""Most samples in a batch. A batch costs the threads that share Python's lock about a hundred hand-overs of it, however
many samples it holds; with 32 samples these, not the GPU, were what inference waited for."""

_BATCH_BYTES = 32 << 20
"""Batches of large crops hold fewer samples, so that the few that wait between stages stay small."""

_SPARE_SESSIONS = 1
"""Beyond one for each engine: work for the engine whose session is between two segments."""


def open_nvdec(
    facts: VideoFacts,
    timeline: Timeline,
    crop: CropPixels,
    device: torch.device,
    *,
    sessions: int = 0,
    read_there: SegmentReader | None = None,
) -> SegmentedDecoder:
    """A decoder on all decode engines of a GPU.

    Args:
        facts: of a video for which :func:`~caption_extents.video.cuda.why_not_nvdec` gives no reason.
        timeline: its samples.
        crop: what to keep of each sample.
        device: a CUDA device.
        sessions: decoders at work at once; 0 for one for each engine and one more.
        read_there: another process that reads the file.
    """
    if not sessions:
        engines = decode_engines(facts.codec, device)
        sessions = engines.count + _SPARE_SESSIONS if engines else 1
    nvdec: list[Engine] = [_NvdecEngine(facts, crop, device) for _ in range(sessions)]
    return SegmentedDecoder("nvdec", facts, timeline, nvdec, _batch_samples(crop), read_there)


def _batch_samples(crop: CropPixels) -> int:
    fitting = _BATCH_BYTES // (crop.width * crop.height * 3 // 2)
    return min(max(fitting, BATCH_SAMPLES), _BATCH_SAMPLES)


class _NvdecEngine(Engine):
    def __init__(self, facts: VideoFacts, crop: CropPixels, device: torch.device) -> None:
        self._facts, self._crop, self._device = facts, crop, device
        left, top, right, bottom = crop.decoded
        width, height = right - left, bottom - top
        self._copies = BoxCopy(left, top, width, height), BoxCopy(left, top // 2, width, height // 2)

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

    def empty(self, count: int) -> Buffers:
        left, top, right, bottom = self._crop.decoded
        height, width = bottom - top, right - left
        luma = torch.empty((count, height, width), dtype=torch.uint8, device=self._device)
        return luma, torch.empty((count, height // 2, width // 2, 2), dtype=torch.uint8, device=self._device)

    def crop_into(self, frame: VideoFrame, buffers: Buffers, index: int) -> None:
        # NV12: luma, and chroma with U and V side by side, so that both have as many bytes in a row.
        for plane, copy, buffer in zip(frame.planes, self._copies, buffers, strict=False):
            copy(plane.buffer_ptr, plane.line_size, buffer.data_ptr() + index * copy.nbytes)

    def planes(self, buffers: Buffers) -> Planes:
        luma, chroma = buffers
        turn = self._facts.orientation.apply_tensor
        return turn(luma), turn(chroma[..., 0]), turn(chroma[..., 1])
