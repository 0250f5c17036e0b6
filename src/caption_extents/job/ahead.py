"""Starting the processes of a run before its modules are imported, which takes longer than the processes need."""

from __future__ import annotations

import os

from caption_extents import spawning
from caption_extents.options import Job, device_number
from caption_extents.spawning import READER, ChildKind, SpawnedProcess, decoder_sessions

_DECODERS = 2
"""Processes with decoder sessions that are started ahead; sufficient for the sessions of up to seven engines."""

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""Device files that exist if there is an NVIDIA GPU: on Linux, and in the Windows Subsystem for Linux."""


def start_ahead(job: Job) -> list[tuple[ChildKind, SpawnedProcess]]:
    """Start what the run of a local video will need if a GPU will probably decode it; otherwise nothing.

    Returns:
        The processes, for :class:`~caption_extents.children.Children`, which ends those that nothing needs.
    """
    kinds = kinds_ahead(job) if os.path.isfile(job.video_key) else ()  # noqa: PTH113 which no name makes fail
    return [(kind, SpawnedProcess(kind)) for kind in kinds]


def kinds_ahead(job: Job, videos_at_once: int = 1) -> tuple[ChildKind, ...]:
    """What a run will need, or several at once, if a GPU will probably decode; otherwise nothing."""
    gpu = _likely_gpu(job)
    if gpu is None:
        return ()
    kinds = [READER] * videos_at_once + [decoder_sessions(gpu)] * max(_DECODERS, videos_at_once)
    if job.encoder in {"auto", "processes"} and job.implementation == "pipelined":
        kinds += spawning.encoders(job.encoder_workers)
    if job.model is None:
        kinds.append(model_kind(job, f"cuda:{gpu}", videos_at_once))
    return tuple(kinds)


def model_kind(job: Job, device: str, videos_at_once: int = 1) -> ChildKind:
    """The process of a job's model, which is not an object."""
    path = None if job.model is None else os.fspath(job.model)  # type: ignore[arg-type]
    # With a driver, but a PyTorch that is built without CUDA, the model computes on the CPU.
    asked = "auto" if job.device == "auto" else device
    # The package's own model takes any region, so that one process serves videos with several.
    region = None if path is None else job.crop_region.as_tuple()
    return spawning.model(path, region, asked, job.inference_threads, videos_at_once)


def _likely_gpu(job: Job) -> int | None:
    """Number of the GPU that will probably decode a job's video; None for the CPU."""
    device = str(getattr(job.model, "device", job.device))
    if job.isolate or device == "cpu" or not any(map(os.path.exists, _GPU_DEVICES)):
        return None
    return device_number(device)
