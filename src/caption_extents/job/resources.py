"""What a run works with and need not open itself: child processes, encoders, the model, and the store."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from caption_extents.children import Child, Children, Pool
from caption_extents.chunks.presets import find_preset
from caption_extents.encoders.base import ChunkEncoder, ThreadEncoder
from caption_extents.encoders.processes import ProcessEncoder
from caption_extents.job.ahead import model_kind
from caption_extents.job.result import Stopwatch
from caption_extents.model.identity import read_identity
from caption_extents.model.opened import LocalModel, OpenedModel, is_object
from caption_extents.model.process import ModelProcess
from caption_extents.options import Job
from caption_extents.pipeline.gpu_use import GpuSampler, GpuWatch, memory_in_use, open_nvml
from caption_extents.storage.store import Store, open_store
from caption_extents.video.decoders.isolated import DecoderLimits, VideoReaderProcess, reader_pool
from caption_extents.video.nvdec.sessions import GpuSessions, SessionPool


@dataclass(frozen=True)
class StartedReading:
    """Child processes at work on a video, before anything else is known of it.

    Attributes:
        reader: reads and indexes it.
        sessions: decode it on a GPU; they begin with its first segments.
    """

    reader: VideoReaderProcess
    sessions: GpuSessions

    @classmethod
    def start(cls, job: Job, path: Path, readers: Pool[Child], pool: SessionPool) -> StartedReading:
        """Start them.

        Args:
            job: the job.
            path: its video.
            readers: where the process that reads comes from.
            pool: where the decoder sessions come from.
        """
        limits = DecoderLimits(stall_seconds=job.stall_seconds)
        reading = VideoReaderProcess(
            path, job.rate, limits, readers, job.stream, owner=job.tenant_id, reads_beginning=True
        )
        sessions = GpuSessions(pool, job.tenant_id)
        sessions.begin_early(reading, job.crop_region)
        return cls(reading, sessions)

    def close(self) -> None:
        """End them."""
        # The sessions take segments from the reader until they are closed.
        self.sessions.close()
        self.reader.close()


class Resources(Protocol):
    """Gives a run what it works with; what is opened for this run alone is closed when the run leaves its context."""

    children: Children
    """Registry of the child processes."""

    reads_arriving: bool
    """Whether a video is indexed while it is fetched from the store. That is worth it where nothing else is to be done
    meanwhile; otherwise it is opened when it has come, by the processes that read and decode local files."""

    def stopwatch(self) -> Stopwatch:
        """Begin to measure a run."""
        ...

    def store(self, address: str) -> Store:
        """A store by its address."""
        ...

    def encoder(self, job: Job, device: str) -> AbstractContextManager[ChunkEncoder]:
        """Where the job's chunks are encoded; it gets ready while the video is opened."""
        ...

    def model(self, job: Job, device: str) -> AbstractContextManager[OpenedModel]:
        """The job's model; it is loaded while the video is opened."""
        ...

    def started(self, job: Job, path: Path, gpu: int) -> StartedReading:
        """Child processes that read a local video and decode it on a GPU; the caller closes them."""
        ...

    def gpu_watch(self, uuid: str | None, origin: float) -> GpuWatch:
        """Sees how busy a GPU is since the start of a run; nothing without a UUID."""
        ...

    def begin_decoding(self) -> None:
        """Wait until a run may open its video and decode it."""
        ...

    def end_decoding(self) -> None:
        """The video has been decoded, or never will be: another one may be."""
        ...

    def room(self, nbytes: int) -> AbstractContextManager[None]:
        """Wait until a run may have so many bytes of samples in flight."""
        ...


class OwnResources:
    """Opens everything for a single run.

    Args:
        children: registry of the run's child processes.
    """

    reads_arriving = True

    def __init__(self, children: Children) -> None:
        self.children = children
        self._gpu_memory_before: Mapping[str, int] | None = None

    def stopwatch(self) -> Stopwatch:
        """See the protocol."""
        return Stopwatch(self.children)

    def store(self, address: str) -> Store:
        """See the protocol."""
        return open_store(address)

    def encoder(self, job: Job, device: str) -> AbstractContextManager[ChunkEncoder]:
        """See the protocol."""
        return closing(open_encoder(job, device, self.children))

    def model(self, job: Job, device: str) -> AbstractContextManager[OpenedModel]:
        """See the protocol."""
        return closing(open_job_model(job, device, self.children, 1))

    def started(self, job: Job, path: Path, gpu: int) -> StartedReading:
        """See the protocol."""
        self._gpu_memory_before = memory_in_use(open_nvml())
        return StartedReading.start(job, path, reader_pool(self.children), SessionPool(gpu, self.children))

    def gpu_watch(self, uuid: str | None, origin: float) -> GpuWatch:
        """See the protocol; memory counts from before the child processes were started."""
        return GpuSampler(uuid).watch(origin, self._gpu_memory_before)

    def begin_decoding(self) -> None:
        """Nothing to wait for."""

    def end_decoding(self) -> None:
        """Nobody waits."""

    def room(self, nbytes: int) -> AbstractContextManager[None]:
        """See the protocol."""
        return nullcontext()


def open_job_model(job: Job, device: str, children: Children, videos_at_once: int) -> OpenedModel:
    """The model that a job asks for, which begins to load: on a GPU in a child process, unless it is an object.

    Raises:
        ModelError: the package's own weights cannot be read.
    """
    if device == "cpu" or is_object(job.model):
        return LocalModel(job.model, job.crop_region, device, job.inference_threads)
    identity = read_identity() if job.model is None else None
    kind = model_kind(job, device, videos_at_once)
    return ModelProcess(kind, device, children, identity=identity, stall_seconds=job.stall_seconds)


def open_encoder(job: Job, device: str, children: Children) -> ChunkEncoder:
    """The encoder that a job asks for, which begins to get ready."""
    preset = find_preset(job.preset)
    in_processes = job.encoder == "processes" or (
        job.encoder == "auto" and job.implementation == "pipelined" and device != "cpu"
    )
    encoder = (
        ProcessEncoder(preset, job.encoder_workers, children)
        if in_processes
        else ThreadEncoder(preset, job.encoder_workers)
    )
    encoder.start()
    return encoder
