"""Processes that read a video and decode it on a GPU, started before PyTorch is imported so that both overlap."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from caption_extents.children import Child, Children
from caption_extents.options import Job
from caption_extents.pipeline.gpu_use import memory_in_use, open_nvml
from caption_extents.video.decoders.isolated import DecoderLimits, VideoReaderProcess
from caption_extents.video.nvdec import driver
from caption_extents.video.nvdec.sessions import GpuSessions, SessionPool

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""Device files that exist if there is an NVIDIA GPU: on Linux, and in the Windows Subsystem for Linux."""


@dataclass(frozen=True)
class EarlyStart:
    """The child processes of an early start: one reads and indexes the video, the others decode it on a GPU."""

    reader: VideoReaderProcess
    sessions: GpuSessions
    gpu_memory_before: dict[str, int]
    """Memory in use on each GPU before the decoder sessions were started, in bytes, by the GPU's UUID."""

    @classmethod
    def begin(
        cls, job: Job, path: Path, pool: SessionPool, children: Children, reader: Child | None = None
    ) -> EarlyStart:
        """Start the child processes; they index the video and begin to decode its first segments.

        Args:
            job: the job.
            path: its video.
            pool: where the decoder sessions come from.
            children: registry in which the process that reads is started.
            reader: such a process, if there is one already.
        """
        limits = DecoderLimits(stall_seconds=job.stall_seconds)
        reading = VideoReaderProcess(path, job.rate, limits, children, job.stream, reader)
        memory_before = memory_in_use(open_nvml())
        sessions = GpuSessions(pool)
        sessions.begin_early(reading, job.crop_region)
        return cls(reading, sessions, memory_before)

    def close(self) -> None:
        """End the child processes."""
        self.reader.close()
        self.sessions.close()


@contextmanager
def early_start(job: Job, children: Children) -> Iterator[EarlyStart | None]:
    """Start reading and decoding a job's video early if a GPU will probably decode it; yields None otherwise."""
    gpu = _likely_gpu(job)
    path = Path(job.video_key)
    if gpu is None or not path.is_file() or not driver.is_there():
        yield None
        return
    started = EarlyStart.begin(job, path, SessionPool(gpu, children), children)
    try:
        yield started
    finally:
        started.close()


def _likely_gpu(job: Job) -> int | None:
    """Number of the GPU that will probably decode a job's video, determined without PyTorch; None for the CPU."""
    device = str(getattr(job.model, "device", job.device))
    # With device "auto", an installed driver is not enough: there must be a device file too.
    if job.isolate or device == "cpu" or not (device.startswith("cuda") or any(map(os.path.exists, _GPU_DEVICES))):
        return None
    return int(device.partition(":")[2] or 0)
