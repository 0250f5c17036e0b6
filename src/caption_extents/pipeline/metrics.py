"""The metrics of a finished run: where the time went, what decided it, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from caption_extents.pipeline.clocks import Activity, StageClock
from caption_extents.pipeline.forecast import Work
from caption_extents.pipeline.gpu_use import GpuUse

_MICROSECONDS = 1e6


@dataclass(frozen=True)
class StageMetrics:
    """One stage of a finished run.

    Attributes:
        time_seconds: wall time from the stage's first start to its last end.
        busy_seconds: time spent working, summed over workers.
        wait_input_seconds: time that workers waited for input, summed over workers.
        wait_room_seconds: time that workers waited because the next queue was full, summed over workers.
        workers: number of workers that run at once.
        samples: number of samples processed.
        items: number of batches (extraction), pairs (inference), chunks (encoding) or objects (upload).
        nbytes: size of the stage's output in bytes; 0 if it is not counted.
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
    """Effort and gain of encoding on other machines.

    Attributes:
        workers: kind of the workers, ``ray`` or ``modal``.
        worker_count: number of workers that encoded at once.
        segment_bytes: total size of the packed blocks sent to the workers.
        worker_cpu_seconds: CPU time of the workers.
        forecast_here_seconds: forecast wall time of the run with encoding on this machine.
        saved_seconds: ``forecast_here_seconds`` minus the measured wall time; negative if offloading was slower.
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
        gpu_seconds: wall time for which a GPU was occupied; 0 without one.
        cpu_seconds: CPU time of all processes, remote workers included.
        money: cost at the configured prices; None if no price is configured.
        alternatives: forecasts for other encoders and presets.
    """

    gpu_seconds: float
    cpu_seconds: float
    money: float | None
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True)
class RunTimeline:
    """What was busy when.

    Attributes:
        bucket_seconds: length of a bucket; the first begins with the run.
        busy: for each stage, how many of its workers were at work, on average, in each bucket.
        queued: how many items the queue before a stage held.
        gpu: what its driver says of the GPU, by name: shares in 0..1, bytes, bytes a second; empty without one.
    """

    bucket_seconds: float
    busy: dict[str, list[float]]
    queued: dict[str, list[float]]
    gpu: dict[str, list[float]]

    @classmethod
    def of(
        cls, busy: Mapping[str, Activity], queued: Mapping[str, Activity], gpu: Mapping[str, Activity]
    ) -> RunTimeline:
        """All activities in buckets of one length."""
        groups = busy, queued, gpu
        length = max((activity.bucket_seconds for group in groups for activity in group.values()), default=1.0)
        return cls(length, *({name: activity.means(length) for name, activity in group.items()} for group in groups))


@dataclass(frozen=True)
class RunMetrics:
    """Figures of a finished run; seconds are wall time unless a name says otherwise.

    Attributes:
        implementation: ``pipelined`` or ``sequential``.
        total_seconds: the whole job, from call to return.
        occupied_seconds: the job's share of the machine's time, for its cost: as ``total_seconds``, but where several
            jobs of an :class:`~caption_extents.engine.Engine` go on at once, the time is divided among them.
        setup_seconds: opening, indexing and loading before the first stage starts.
        startup_seconds: time from the start of the job until the first batch of samples is decoded.
        first_frame_at: time at which the first batch was decoded, on the clock of :func:`time.perf_counter`, which on
            Linux is the same in all processes.
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
    occupied_seconds: float
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


def chrome_trace(timeline: RunTimeline) -> dict[str, object]:
    """Counters over time: workers at work in each stage, items in each queue, and what is busy of the GPU.

    The format is the "Trace Event Format" (JSON object, events of phase ``C``); times are in microseconds from the
    run's start.
    """
    counters = chain(
        ((name, "busy workers", values) for name, values in timeline.busy.items()),
        ((f"queue before {name}", "items", values) for name, values in timeline.queued.items()),
        ((f"GPU {name}", "value", values) for name, values in timeline.gpu.items()),
    )
    events = [
        {
            "name": name,
            "ph": "C",
            "pid": 1,
            "ts": round(bucket * timeline.bucket_seconds * _MICROSECONDS),
            "args": {unit: value},
        }
        for name, unit, values in counters
        for bucket, value in enumerate([*values, 0.0])
    ]
    return {"displayTimeUnit": "ms", "traceEvents": sorted(events, key=lambda event: (event["ts"], event["name"]))}
