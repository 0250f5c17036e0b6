"""What stays open between videos, so that many short videos are as fast as one long one.

A job of its own opens decoder sessions, encoder processes, the model and the connection to the store, and closes them
at its end; for a short video that takes longer than its work. An engine opens each once, when a job first needs it, and
runs several jobs at once: the next video is opened and decoded while the last one is still encoded, uploaded and
committed. What a job left in an unknown state is closed and opened anew, so that a video harms only itself.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from caption_extents.children import Children
from caption_extents.chunks.encode import ChunkFormat, EncodedChunk
from caption_extents.chunks.plan import ChunkFrames
from caption_extents.closing import ClosesItself
from caption_extents.encoders.base import ChunkEncoder, Effort
from caption_extents.encoders.processes import ProcessEncoder
from caption_extents.errors import InputError, wrap_unexpected_errors
from caption_extents.job.resources import StartedReading, open_encoder, open_job_model
from caption_extents.job.result import CropInferResult, Stopwatch
from caption_extents.job.run import run
from caption_extents.machine import usable_cores
from caption_extents.model.identity import CHECKPOINTS
from caption_extents.model.opened import OpenedModel, choose_device, is_object
from caption_extents.options import (
    VIDEOS_AT_ONCE,
    Job,
    check_count,
    default_samples_mib,
    device_number,
)
from caption_extents.pipeline.clocks import ENCODING
from caption_extents.pipeline.gpu_use import GpuSampler, GpuWatch
from caption_extents.storage.store import Store, open_store
from caption_extents.video.decoders.isolated import reader_pool
from caption_extents.video.nvdec import driver
from caption_extents.video.nvdec.sessions import SessionPool
from caption_extents.watchdog import report_progress

_Opened = TypeVar("_Opened")

_LOOK_SECONDS = 1.0
_READ_SECONDS = 0.2

_UNUSED = 2
"""Models that stay open while no job uses them."""

_IDLE_READERS, _IDLE_DECODERS = 2 * VIDEOS_AT_ONCE, 2 * VIDEOS_AT_ONCE
"""Processes that read or decode which are kept for the next video; those that decode have a CUDA context."""


class Engine(ClosesItself):
    """Runs jobs, one after the other or several at once, and keeps open what they share; a context manager.

    Outputs are byte for byte those of :func:`~caption_extents.run_job`.

    Args:
        videos_at_once: videos that are decoded at once. Of more calls of :meth:`run`, some fetch their video from the
            store and wait, while what others have decoded is encoded, uploaded and committed: a GPU is kept busy by
            twelve times as many.
        samples_mib: memory for the samples in flight of all videos, in MiB; by default a quarter of the machine's. A
            video that needs more than that is run alone.

    Raises:
        InputError: a number is not positive.
    """

    def __init__(self, videos_at_once: int = VIDEOS_AT_ONCE, samples_mib: int | None = None) -> None:
        mib = default_samples_mib() if samples_mib is None else check_count("samples_mib", samples_mib, 1, 1 << 24)
        self.children = Children()
        self._decoding = _Room(check_count("videos_at_once", videos_at_once, 1))
        self._samples = _Room(mib << 20)
        self._shares = _Shares(self.children)
        self._videos_at_once = videos_at_once
        self._kept: dict[tuple[Hashable, ...], _Kept] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._totals = _Totals(self._shares, self.sampler)

    def close(self) -> None:
        """Close everything that is open; jobs that still run fail."""
        with self._lock:
            self._closed = True
            kept = list(self._kept.values())
        self.children.close()
        for one in reversed(kept):
            one.close()
        self._totals.close()

    def run(self, job: Job) -> CropInferResult:
        """Run a job like :func:`~caption_extents.run_job`; may be called from several threads.

        Raises:
            InputError: the engine is closed, or the video, the model or the store cannot be used; nothing was written.
            ProcessingError: a stage failed; readers see nothing of the run, and the next one with the same inputs goes
                on where it stopped.
        """
        if self._closed:
            raise InputError("the engine is closed; open another one")
        share = self._shares.begin()
        try:
            with closing(_SharedResources(self, share)) as resources, wrap_unexpected_errors():
                self._totals.begin(choose_device(job.device, job.model))
                result = run(job, resources)
        finally:
            self._shares.end(share)
        self._totals.add(job, result)
        return result

    @property
    def is_running(self) -> bool:
        """Whether a job is being run."""
        return self._shares.are_any

    def metrics(self) -> EngineMetrics:
        """How busy everything was since the first job began."""
        return self._totals.metrics()

    def sampler(self, uuid: str | None) -> GpuSampler:
        """Asks the driver of a GPU, by its UUID, how busy it is."""
        return GpuSampler(None) if uuid is None else self._keep(("gpu", uuid), lambda: GpuSampler(uuid))

    def _keep(self, key: tuple[Hashable, ...], open_it: Callable[[], _Opened]) -> _Opened:
        """What is opened once; if it has failed since, it is opened anew."""
        with self._lock:
            return cast(_Opened, self._kept_as(key, open_it).opened)

    @contextmanager
    def _lend(self, key: tuple[Hashable, ...], open_it: Callable[[], _Opened]) -> Iterator[_Opened]:
        """As :meth:`_keep`; of those with the same first word, a few that nobody uses stay open."""
        with self._lock:
            kept = self._kept_as(key, open_it)
            kept.users += 1
        try:
            yield cast(_Opened, kept.opened)
        finally:
            with self._lock:
                kept.users -= 1
                unused = [other for other, one in self._kept.items() if other[0] == key[0] and not one.users]
                surplus = [self._kept.pop(other) for other in unused[:-_UNUSED]]
            for one in surplus:
                one.close()

    def _kept_as(self, key: tuple[Hashable, ...], open_it: Callable[[], object]) -> _Kept:
        if self._closed:
            raise InputError("the engine is closed; open another one")
        kept = self._kept.pop(key, None)
        if kept is None or getattr(kept.opened, "has_failed", False):
            if kept is not None:
                kept.close()
            kept = _Kept(open_it())
        self._kept[key] = kept  # the one that was used last is the last
        return kept


_engine: Engine | None = None
_opening = threading.Lock()


def engine_of_process(videos_at_once: int = VIDEOS_AT_ONCE) -> Engine:
    """The one engine of this process, for functions that are called by Ray and Modal; opened when first asked for."""
    global _engine
    with _opening:
        if _engine is None:
            _engine = Engine(videos_at_once)
        return _engine


@dataclass
class _Kept:
    opened: object
    users: int = 0

    def close(self) -> None:
        """Close it, if it can be closed: a store cannot."""
        if hasattr(self.opened, "close"):
            self.opened.close()


class _SharedResources:
    """What an engine lends to a run."""

    reads_arriving = False

    def __init__(self, engine: Engine, share: _Share) -> None:
        self._engine, self._share = engine, share
        self._turn = ExitStack()
        self.children = engine.children

    def close(self) -> None:
        """Give back what the run still has."""
        self._turn.close()

    def stopwatch(self) -> Stopwatch:
        """See the protocol."""
        return _SharedStopwatch(self._engine._shares, self._share)

    def store(self, address: str) -> Store:
        """See the protocol."""
        return self._engine._keep(("store", address), lambda: open_store(address))

    def encoder(self, job: Job, device: str) -> AbstractContextManager[ChunkEncoder]:
        """See the protocol."""
        key = "encoder", job.preset, job.encoder, job.implementation, job.encoder_workers, device
        encoder = self._engine._keep(key, lambda: _SharedEncoder(open_encoder(job, device, self.children)))
        return nullcontext(_LentEncoder(encoder, self._share.number))

    def model(self, job: Job, device: str) -> AbstractContextManager[OpenedModel]:
        """See the protocol."""
        key = "model", *_key_of_model(job), device, job.inference_threads
        videos_at_once = self._engine._videos_at_once
        return self._engine._lend(key, lambda: open_job_model(job, device, self.children, videos_at_once))

    def started(self, job: Job, path: Path, gpu: int) -> StartedReading:
        """See the protocol."""
        keep = self._engine._keep
        readers = keep(("reader",), lambda: reader_pool(self.children, most_idle=_IDLE_READERS))
        sessions = keep(("decoder", gpu), lambda: SessionPool(gpu, self.children, most_idle=_IDLE_DECODERS))
        return StartedReading.start(job, path, readers, sessions)

    def gpu_watch(self, uuid: str | None, origin: float) -> GpuWatch:
        """See the protocol."""
        return self._engine.sampler(uuid).watch(origin)

    def begin_decoding(self) -> None:
        """See the protocol."""
        self._turn.enter_context(self._engine._decoding.taken(1))

    def end_decoding(self) -> None:
        """See the protocol."""
        self._turn.close()

    def room(self, nbytes: int) -> AbstractContextManager[None]:
        """See the protocol."""
        return self._engine._samples.taken(nbytes)


def _key_of_model(job: Job) -> tuple[Hashable, ...]:
    """Jobs with the same key can share a model."""
    if is_object(job.model):
        return (id(job.model),)
    path = None if job.model is None else Path(job.model)
    return (path, job.crop_region if path is not None and path.suffix in CHECKPOINTS else None)


class _SharedEncoder:
    """An encoder for several runs; chunks of the run that began first come first.

    If all runs got the same share of it, those that began together would end together, and it would have nothing to do
    while the next ones are opened.
    """

    def __init__(self, encoder: ChunkEncoder) -> None:
        self._encoder = encoder
        self._free = encoder.calls
        self._waiting: list[tuple[int, int, threading.Event]] = []
        self._count = itertools.count()
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        """See the protocol."""
        return self._encoder.calls

    @property
    def has_failed(self) -> bool:
        """Whether it has no process left."""
        return isinstance(self._encoder, ProcessEncoder) and self._encoder.has_failed

    def encode(self, run: int, frames: ChunkFrames, form: ChunkFormat) -> tuple[EncodedChunk, Effort]:
        """Encode a chunk of a run, by its number."""
        with self._lock:
            turn = threading.Event()
            heapq.heappush(self._waiting, (run, next(self._count), turn))
            self._let_in()
        while not turn.wait(_LOOK_SECONDS):
            report_progress()  # those before it are being encoded
        try:
            return self._encoder.encode(frames, form)
        finally:
            with self._lock:
                self._free += 1
                self._let_in()

    def _let_in(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            heapq.heappop(self._waiting)[2].set()

    def close(self) -> None:
        """End the encoder; calls that wait fail."""
        self._encoder.close()


class _LentEncoder:
    """A shared encoder for one run, which cannot close it."""

    def __init__(self, encoder: _SharedEncoder, run: int) -> None:
        self._encoder, self._run = encoder, run

    @property
    def calls(self) -> int:
        """See the protocol."""
        return self._encoder.calls

    def encode(self, frames: ChunkFrames, form: ChunkFormat) -> tuple[EncodedChunk, Effort]:
        """See the protocol."""
        return self._encoder.encode(self._run, frames, form)

    def start(self) -> None:
        """Nothing to do."""

    def end(self) -> None:
        """Nothing to do: calls that are under way belong to other runs too."""

    def close(self) -> None:
        """Nothing to do."""


class _Room:
    """Bounds what runs take together; first come, first served."""

    def __init__(self, most: int) -> None:
        self._free, self._most = most, most
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Wait for room; what is larger than all of it waits until it is alone."""
        amount = min(amount, self._most)
        with self._changed:
            ticket = object()
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or self._free < amount:
                    self._changed.wait()
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


@dataclass(eq=False)
class _Share:
    """A run's share of the engine's time.

    Attributes:
        number: of the run, in the order in which they begin.
        seconds, cpu_seconds: wall and CPU time.
    """

    number: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class _Shares:
    """Divides wall and CPU time among the runs that go on at once."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._running: list[_Share] = []
        self._lock = threading.Lock()
        self._read_again_at = 0.0
        self._until = self._now()
        self._cpu_seconds, self._begun = 0.0, 0

    def _now(self) -> tuple[float, float]:
        now = time.perf_counter()
        if now < self._read_again_at:
            return now, self._until[1]
        # A file is read for each child, and the GIL given up and awaited for each.
        self._read_again_at = now + _READ_SECONDS
        return now, time.process_time() + self._children.cpu_seconds

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all runs so far."""
        with self._lock:
            self._settle()
            return self._cpu_seconds

    @property
    def are_any(self) -> bool:
        """Whether any run goes on."""
        return bool(self._running)

    def begin(self) -> _Share:
        """A run begins."""
        with self._lock:
            self._settle()
            self._begun += 1
            share = _Share(self._begun)
            self._running.append(share)
        return share

    def end(self, share: _Share) -> None:
        """A run is over."""
        with self._lock:
            self._settle()
            self._running.remove(share)

    def read(self, share: _Share) -> tuple[float, float]:
        """Wall and CPU time of a run so far, in seconds."""
        with self._lock:
            self._settle()
            return share.seconds, share.cpu_seconds

    def _settle(self) -> None:
        now = self._now()
        seconds, cpu_seconds = (max(0.0, new - old) for new, old in zip(now, self._until, strict=True))
        self._until = now
        self._cpu_seconds += cpu_seconds if self._running else 0.0
        for share in self._running:
            share.seconds += seconds / len(self._running)
            share.cpu_seconds += cpu_seconds / len(self._running)


class _SharedStopwatch(Stopwatch):
    """Measures a run that goes on beside others."""

    def __init__(self, shares: _Shares, share: _Share) -> None:
        super().__init__(Children())
        self._shares, self._share = shares, share

    def share(self, seconds: float) -> float:
        """See the base class; each moment is divided among the runs that went on at once."""
        return self._shares.read(self._share)[0]

    @property
    def cpu_seconds(self) -> float:
        """The run's share of the CPU time of all runs."""
        return self._shares.read(self._share)[1]


@dataclass(frozen=True)
class EngineMetrics:
    """How busy an engine was.

    Attributes:
        seconds: wall time from the start of the first job until now, or until the last one has ended.
        videos: jobs that succeeded.
        video_seconds: duration of their videos.
        busy: mean share of the time, in 0..1, that each resource was busy, over all jobs together: ``cpu`` (of all
            cores that this process may use), ``encoders``, and on a GPU ``decoders`` and ``gpu`` (its kernels).
        bottleneck: the busiest of them; None before the first job has ended.
    """

    seconds: float
    videos: int
    video_seconds: float
    busy: dict[str, float]
    bottleneck: str | None


class _Totals:
    """Sums over the jobs of an engine."""

    def __init__(self, shares: _Shares, sampler: Callable[[str | None], GpuSampler]) -> None:
        self._shares, self._sampler = shares, sampler
        self._started: float | None = None
        self._ended = 0.0
        self._videos, self._video_seconds = 0, 0.0
        self._encoding_seconds, self._encoders = 0.0, 1
        self._gpus: dict[int, Future[GpuWatch]] = {}
        self._beginning = ThreadPoolExecutor(1, "gpu-watch")
        self._lock = threading.Lock()

    def begin(self, device: str) -> None:
        """A job begins on a device."""
        with self._lock:
            if self._started is None:
                self._started = time.perf_counter()
            number = device_number(device)
            if device != "cpu" and number not in self._gpus:
                self._gpus[number] = self._beginning.submit(self._begin_watch, number, self._started)

    def _begin_watch(self, number: int, origin: float) -> GpuWatch:
        """Watch a GPU; the driver takes a while to get ready for the first question."""
        try:
            sampler = self._sampler(driver.device_uuid(number))
        except InputError:  # the engine has been closed meanwhile
            sampler = GpuSampler(None)
        return sampler.watch(origin).__enter__()

    def add(self, job: Job, result: CropInferResult) -> None:
        """A job has succeeded."""
        with self._lock:
            self._ended = time.perf_counter()
            self._videos += 1
            self._video_seconds += float(result.frame_count / job.rate)
            encoding = result.metrics.stages[ENCODING]
            self._encoding_seconds += encoding.busy_seconds
            self._encoders = encoding.workers

    def metrics(self) -> EngineMetrics:
        """The metrics of the jobs that have ended."""
        with self._lock:
            if self._started is None or not self._videos:
                return EngineMetrics(0.0, 0, 0.0, {}, None)
            seconds = self._ended - self._started
            busy = {
                "cpu": self._shares.cpu_seconds / seconds / usable_cores(),
                "encoders": self._encoding_seconds / seconds / self._encoders,
            }
            uses = [use for watch in self._gpus.values() if (use := watch.result().use) is not None]
            if uses:
                busy["decoders"] = sum(use.decoder for use in uses) / len(uses)
                busy["gpu"] = sum(use.compute for use in uses) / len(uses)
            busy = {name: min(1.0, share) for name, share in busy.items()}
            bottleneck = max(busy, key=lambda name: busy[name])
            return EngineMetrics(seconds, self._videos, self._video_seconds, busy, bottleneck)

    def close(self) -> None:
        """Watch no GPU any more."""
        self._beginning.shutdown()
        for watch in self._gpus.values():
            watch.result().__exit__(None, None, None)
