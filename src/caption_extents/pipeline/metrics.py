"""Where the time went: busy and waiting time of every stage, measured while the run goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from caption_extents.pipeline.activity import Activity, RunTimeline
from caption_extents.pipeline.forecast import Work
from caption_extents.pipeline.gpu_use import GpuUse

T = TypeVar("T")

EXTRACTION, INFERENCE, ENCODING, UPLOAD = "extraction", "inference", "encoding", "upload"
STAGE_NAMES = (EXTRACTION, INFERENCE, ENCODING, UPLOAD)


@dataclass(frozen=True)
class Progress:
    """How far a stage is: ``done`` of ``total`` samples, or MiB in the stage ``download`` of a video in a store."""

    stage: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


class StageClock:
    """Adds up what one stage does. May be used from several threads at once."""

    def __init__(
        self,
        name: str,
        workers: int = 1,
        on_samples: Callable[[str, int], None] | None = None,
        origin: float | None = None,
    ) -> None:
        self.name = name
        self.workers = workers
        self.activity = Activity(time.perf_counter() if origin is None else origin)
        self.busy_seconds = 0.0
        self.thread_seconds = 0.0
        self.wait_input_seconds = 0.0
        self.wait_room_seconds = 0.0
        self.cpu_seconds: float | None = None
        self.samples = 0
        self.items = 0
        self.nbytes = 0
        self.first_start: float | None = None
        self.first_item: float | None = None
        self.last_end = 0.0
        self._lock = threading.Lock()
        self._on_samples = on_samples

    @contextmanager
    def busy(self, samples: int = 0, items: int = 0, nbytes: int = 0) -> Iterator[None]:
        """Count the time inside as work, and its yield when it succeeds."""
        start, start_thread = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            end = time.perf_counter()
            with self._lock:
                self.busy_seconds += end - start
                self.thread_seconds += time.thread_time() - start_thread
                self.activity.add(start, end)
                self.first_start = start if self.first_start is None else min(self.first_start, start)
                self.last_end = max(self.last_end, end)
        self.count(samples, items, nbytes)

    def worked(self, seconds: float, thread_seconds: float = 0.0) -> None:
        """Count work that was done elsewhere and has just ended, and the CPU time of the threads that did it."""
        end = time.perf_counter()
        with self._lock:
            self.busy_seconds += seconds
            self.thread_seconds += thread_seconds
            self.activity.add(end - seconds, end)
            self.first_start = min(end - seconds, self.first_start or end)
            self.last_end = end

    def count(self, samples: int = 0, items: int = 0, nbytes: int = 0) -> None:
        """Add to what the stage has yielded."""
        with self._lock:
            self.samples += samples
            if items and not self.items:
                self.first_item = time.perf_counter()
            self.items += items
            self.nbytes += nbytes
            total = self.samples
        if samples and self._on_samples:
            self._on_samples(self.name, total)

    def waited(self, *, for_input: float = 0.0, for_room: float = 0.0) -> None:
        """Add time spent idle."""
        with self._lock:
            self.wait_input_seconds += for_input
            self.wait_room_seconds += for_room

    def timed(self, items: Iterable[T], samples: Callable[[T], int]) -> Iterator[T]:
        """Iterate, counting as work the time that each item takes to come."""
        iterator = iter(items)
        try:
            while True:
                with self.busy():
                    item = next(iterator, None)
                if item is None:
                    return
                self.count(samples=samples(item), items=1)
                yield item
        finally:
            close = getattr(iterator, "close", None)
            if close:
                close()

    @contextmanager
    def whole_process(self) -> Iterator[None]:
        """Count the CPU time of the whole process as this stage's, for stages that run alone."""
        start = time.process_time()
        try:
            yield
        finally:
            self.cpu_seconds = (self.cpu_seconds or 0.0) + time.process_time() - start


def make_clocks(
    sample_count: int, progress: ProgressCallback | None, origin: float | None = None, stored: int = 0
) -> dict[str, StageClock]:
    """A clock for each stage; each tells the callback how far its stage is.

    Args:
        sample_count: of the video.
        progress: told how far a stage is.
        origin: when the run started.
        stored: samples that an earlier run has uploaded.
    """

    def on_samples(stage: str, done: int) -> None:
        if progress is not None:
            progress(Progress(stage, done + (stored if stage == UPLOAD else 0), sample_count))

    return {name: StageClock(name, on_samples=on_samples, origin=origin) for name in STAGE_NAMES}


@dataclass(frozen=True)
class StageMetrics:
    """One stage of a finished run.

    Attributes:
        time_seconds: from the stage's first start to its last end.
        busy_seconds: time spent working, summed over workers.
        wait_input_seconds: time a worker stood idle because nothing had come yet.
        wait_room_seconds: time results waited because the next stage was full, summed over workers.
        workers: how many worked at once.
        samples: samples that passed.
        items: pairs (inference), chunks (encoding) or objects (upload).
        nbytes: bytes that the stage gave on, where it counts them.
        samples_per_second: samples over ``time_seconds``.
        thread_seconds: CPU time of the stage's own threads, without those that codecs start.
        started: when its first work began, in seconds of a clock whose zero means nothing; 0 if it never did.
        first_item_seconds: from its first start until its first item was done.
        cpu_seconds: CPU time of the process while the stage ran alone (sequential runs only).
    """

    time_seconds: float
    busy_seconds: float
    wait_input_seconds: float
    wait_room_seconds: float
    workers: int
    samples: int
    items: int
    nbytes: int
    samples_per_second: float
    thread_seconds: float = 0.0
    started: float = 0.0
    first_item_seconds: float = 0.0
    cpu_seconds: float | None = None

    @classmethod
    def of(cls, clock: StageClock) -> StageMetrics:
        """What a clock has counted."""
        span = clock.last_end - clock.first_start if clock.first_start is not None else 0.0
        return cls(
            time_seconds=span,
            busy_seconds=clock.busy_seconds,
            wait_input_seconds=clock.wait_input_seconds,
            wait_room_seconds=clock.wait_room_seconds,
            workers=clock.workers,
            samples=clock.samples,
            items=clock.items,
            nbytes=clock.nbytes,
            samples_per_second=clock.samples / span if span > 0 else 0.0,
            thread_seconds=clock.thread_seconds,
            started=clock.first_start or 0.0,
            first_item_seconds=(clock.first_item or 0.0) - (clock.first_start or 0.0) if clock.first_item else 0.0,
            cpu_seconds=clock.cpu_seconds,
        )

    @property
    def seconds_at_full_speed(self) -> float:
        """How long the stage would take if it never waited: busy time spread over its workers."""
        return self.busy_seconds / self.workers


@dataclass(frozen=True)
class OverlapAnalysis:
    """Which stage decides the time.

    Attributes:
        bottleneck: the stage that would take longest if none ever waited.
        bottleneck_ratio: its time over that of the next slowest stage.
        inference_waited_for_extraction_seconds: time that inference waited for samples.
        sum_of_stages_seconds: what the stages would take one after the other.
        advice: what to change, in a sentence.
    """

    bottleneck: str
    bottleneck_ratio: float
    inference_waited_for_extraction_seconds: float
    sum_of_stages_seconds: float
    advice: str


@dataclass(frozen=True)
class OffloadMetrics:
    """What encoding elsewhere has cost and saved.

    Attributes:
        workers: their kind.
        worker_count: how many encoded at once.
        segment_bytes: of packed samples that were sent to them.
        worker_cpu_seconds: that they took.
        forecast_here_seconds: what the whole run would have taken with encoding in its own process.
        saved_seconds: that, less what the run has taken; negative if offloading did not pay.
    """

    workers: str
    worker_count: int
    segment_bytes: int
    worker_cpu_seconds: float
    forecast_here_seconds: float
    saved_seconds: float


@dataclass(frozen=True)
class Alternative:
    """Another way to do the same run: what, its forecast wall time, and its price (None where one is not known)."""

    what: str
    seconds: float
    money: float | None


@dataclass(frozen=True)
class Cost:
    """What a run took.

    Attributes:
        gpu_seconds: for which a GPU was held.
        cpu_seconds: of all processes, workers included.
        money: at the configured prices; None without them.
        alternatives: what it would have taken otherwise.
    """

    gpu_seconds: float
    cpu_seconds: float
    money: float | None
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True)
class RunMetrics:
    """Figures of a finished run; seconds are wall time unless a name says otherwise.

    Attributes:
        implementation: ``pipelined`` or ``sequential``.
        total_seconds: the whole job, from call to return.
        setup_seconds: opening, indexing and loading before the first stage starts.
        startup_seconds: the whole job until the first samples are there; what follows goes at its steady pace.
        first_frame_at: when the first sample had been decoded, in seconds of :func:`time.perf_counter`, which on Linux
            counts alike in all processes.
        cpu_seconds: CPU time over the whole job, of the process and its child processes.
        cpu_count: cores that the process may use.
        stages: by name: extraction, inference, encoding, upload.
        overlap: which stage decides the time.
        peak_memory_bytes: largest resident sets of the process and its child processes so far, together.
        cost: GPU seconds, CPU seconds and money.
        work: what had to be done, for forecasts of other arrangements.
        timeline: which stage was busy when, and what its queues held.
        offload: what encoding elsewhere has cost and saved; None where encoding was done here.
        gpu: how busy the GPU was; None without one, or where its driver does not tell.
    """

    implementation: str
    total_seconds: float
    setup_seconds: float
    startup_seconds: float
    first_frame_at: float | None
    cpu_seconds: float
    cpu_count: int
    stages: dict[str, StageMetrics]
    overlap: OverlapAnalysis
    peak_memory_bytes: int
    cost: Cost
    work: Work
    timeline: RunTimeline
    offload: OffloadMetrics | None = None
    gpu: GpuUse | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)
