"""The decoder of a GPU: samples from all its engines, as tensors in the host's memory."""

from __future__ import annotations

import torch

from caption_extents.video.batch import Planes
from caption_extents.video.crop import CropPixels
from caption_extents.video.decoder import BATCH_SAMPLES
from caption_extents.video.gpu_sessions import GpuSessions, Work
from caption_extents.video.segmented import SegmentedDecoder
from caption_extents.video.segments import Span
from caption_extents.video.session import Crops
from caption_extents.video.side_by_side import SegmentReader, SideBySide
from caption_extents.video.source import VideoFacts
from caption_extents.video.timeline import Timeline

_BATCH_SAMPLES = 128
"""Most samples in a batch. A batch costs the threads that share Python's lock about a hundred hand-overs of it, however
many samples it holds; with 32 samples these, not the GPU, were what inference waited for."""

_BATCH_BYTES = 32 << 20
"""Batches of large crops hold fewer samples, so that the few that wait between stages stay small."""


def open_nvdec(
    facts: VideoFacts,
    timeline: Timeline,
    crop: CropPixels,
    ordinal: int,
    *,
    sessions: int = 0,
    read_there: SegmentReader | None = None,
    started: GpuSessions | None = None,
) -> SegmentedDecoder:
    """A decoder on all decode engines of a GPU.

    Args:
        facts: of a video for which :func:`~caption_extents.video.cuda.why_not_nvdec` gives no reason.
        timeline: its samples.
        crop: what to keep of each sample.
        ordinal: number of the device.
        sessions: decoders at work at once; 0 for one for each engine and one more.
        read_there: another process that reads the file.
        started: sessions that have been started already; they end with the decoder.
    """
    gpu = started or GpuSessions(ordinal)

    def begin(spans: list[Span]) -> SideBySide:
        return gpu.begin(Work(facts, timeline, crop, spans, sessions), read_there)

    def to_planes(crops: Crops) -> Planes:
        luma, chroma = map(torch.from_numpy, crops)
        turn = facts.orientation.apply_tensor
        return turn(luma), turn(chroma[..., 0]), turn(chroma[..., 1])

    return SegmentedDecoder("nvdec", timeline, begin, to_planes, _batch_samples(crop), gpu.close)


def _batch_samples(crop: CropPixels) -> int:
    fitting = _BATCH_BYTES // (crop.width * crop.height * 3 // 2)
    return min(max(fitting, BATCH_SAMPLES), _BATCH_SAMPLES)
