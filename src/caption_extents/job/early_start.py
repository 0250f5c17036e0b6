"""Processes that read a video and decode it on a GPU, started before PyTorch is imported so that both overlap."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from caption_extents.children import Children
from caption_extents.options import Job
from caption_extents.pipeline.gpu_use import memory_in_use, open_nvml
from caption_extents.video.decoders.isolated import DecoderLimits, IsolatedVideo
from caption_extents.video.nvdec import driver
from caption_extents.video.nvdec.sessions import GpuSessions

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""What stands for NVIDIA's GPUs, on Linux and in Windows' Linux."""


@dataclass(frozen=True)
class EarlyStart:
    """A video that is being read, and a GPU's sessions that have begun to decode it."""

    reader: IsolatedVideo
    sessions: GpuSessions
    gpu_memory_before: dict[str, int]
    """Bytes in use of each GPU's memory before they began, by the GPU's UUID."""

    @classmethod
    def begin(cls, job: Job, path: Path, gpu: int, children: Children) -> EarlyStart:
        """Start them; they index the video and decode its first segments before these are asked for."""
        reader = IsolatedVideo(path, job.rate, DecoderLimits(stall_seconds=job.stall_seconds), children, job.stream)
        memory_before = memory_in_use(open_nvml())
        sessions = GpuSessions(gpu, children)
        sessions.begin_early(reader, job.crop_region)
        return cls(reader, sessions, memory_before)

    def close(self) -> None:
        """End them."""
        self.reader.close()
        self.sessions.close()


@contextmanager
def early_start(job: Job, children: Children) -> Iterator[EarlyStart | None]:
    """Start what decodes the video of a job, where a GPU is likely to do that; None elsewhere."""
    gpu = _likely_gpu(job)
    path = Path(job.video_key)
    if gpu is None or not path.is_file() or not driver.is_there():
        yield None
        return
    started = EarlyStart.begin(job, path, gpu, children)
    try:
        yield started
    finally:
        started.close()


def _likely_gpu(job: Job) -> int | None:
    """The GPU that will probably decode a job's video, before PyTorch can tell."""
    device = str(getattr(job.model, "device", job.device))
    # A driver without a device is no reason to begin, unless a GPU was asked for.
    if job.isolate or device == "cpu" or not (device.startswith("cuda") or any(map(os.path.exists, _GPU_DEVICES))):
        return None
    return int(device.partition(":")[2] or 0)
