"""What a run works with and need not open itself: child processes, encoders, the model, and the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch

from caption_extents.children import Children
from caption_extents.chunks.presets import find_preset
from caption_extents.encoders.base import ChunkEncoder, ThreadEncoder
from caption_extents.encoders.processes import ProcessEncoder
from caption_extents.job.early_start import EarlyStart
from caption_extents.job.result import Stopwatch
from caption_extents.model.devices import single_threaded_pool
from caption_extents.model.interface import PairModel
from caption_extents.model.opening import open_model
from caption_extents.options import Job
from caption_extents.storage.store import Store, open_store
from caption_extents.video.nvdec.sessions import SessionPool


class Resources(Protocol):
    """Gives a run what it works with; what is opened for this run alone is closed when the run leaves its context."""

    children: Children
    """Registry of the child processes."""

    gpu_memory_before: Mapping[str, int] | None
    """Memory in use on each GPU before the run's child processes were started, in bytes, by the GPU's UUID; None if it
    is that in use now."""

    def stopwatch(self) -> Stopwatch:
        """Begin to measure a run."""
        ...

    def store(self, address: str) -> Store:
        """A store by its address."""
        ...

    def encoder(self, job: Job, device: torch.device) -> AbstractContextManager[ChunkEncoder]:
        """Where the job's chunks are encoded; it gets ready while the video is opened."""
        ...

    def model(self, job: Job, device: torch.device) -> AbstractContextManager[Future[PairModel]]:
        """The job's model; it is loaded while the video is opened."""
        ...

    def started(self, job: Job, path: Path, gpu: int) -> EarlyStart:
        """Child processes that read a local video and decode it on a GPU; the caller closes them."""
        ...

    def room(self, nbytes: int) -> AbstractContextManager[None]:
        """Wait until a run may have so many bytes of samples in flight."""
        ...


class OwnResources:
    """Opens everything for a single run.

    Args:
        children: registry of the run's child processes.
        started: child processes that already read and decode the run's video on a GPU; None if there are none.
    """

    def __init__(self, children: Children, started: EarlyStart | None = None) -> None:
        self.children, self._started = children, started
        self.gpu_memory_before: Mapping[str, int] | None = started.gpu_memory_before if started else None

    def stopwatch(self) -> Stopwatch:
        """See the protocol."""
        return Stopwatch(self.children)

    def store(self, address: str) -> Store:
        """See the protocol."""
        return open_store(address)

    @contextmanager
    def encoder(self, job: Job, device: torch.device) -> Iterator[ChunkEncoder]:
        """See the protocol."""
        encoder = open_encoder(job, device, self.children)
        try:
            yield encoder
        finally:
            encoder.close()

    @contextmanager
    def model(self, job: Job, device: torch.device) -> Iterator[Future[PairModel]]:
        """See the protocol."""
        with ExitStack() as opened, single_threaded_pool(1, "load-model") as thread:
            yield thread.submit(lambda: opened.enter_context(open_job_model(job, device)))

    def started(self, job: Job, path: Path, gpu: int) -> EarlyStart:
        """See the protocol."""
        started, self._started = self._started, None
        return started or EarlyStart.begin(job, path, SessionPool(gpu, self.children), self.children)

    def room(self, nbytes: int) -> AbstractContextManager[None]:
        """See the protocol."""
        return nullcontext()


def open_job_model(job: Job, device: torch.device) -> AbstractContextManager[PairModel]:
    """The model that a job asks for."""
    return open_model(job.model, job.crop_region, device, job.inference_threads)


def open_encoder(job: Job, device: torch.device, children: Children) -> ChunkEncoder:
    """The encoder that a job asks for, which begins to get ready."""
    preset = find_preset(job.preset)
    in_processes = job.encoder == "processes" or (
        job.encoder == "auto" and job.implementation == "pipelined" and device.type == "cuda"
    )
    encoder = (
        ProcessEncoder(preset, job.encoder_workers, children)
        if in_processes
        else ThreadEncoder(preset, job.encoder_workers)
    )
    encoder.start()
    return encoder
