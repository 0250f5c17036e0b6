"""What a finished job has made, and where its time went."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from caption_extents.captions.extents import Caption
from caption_extents.children import Children
from caption_extents.chunks.presets import EncoderPreset
from caption_extents.machine import peak_memory_bytes, usable_cores
from caption_extents.options import Job
from caption_extents.pipeline.analysis import Prices, analyse_overlap, cost_of_run, measured_work, offload_metrics
from caption_extents.pipeline.clocks import ENCODING, EXTRACTION
from caption_extents.pipeline.gpu_use import GpuWatch
from caption_extents.pipeline.metrics import RunMetrics, RunTimeline, StageMetrics
from caption_extents.pipeline.stages import Stages
from caption_extents.video.crop import CropPixels
from caption_extents.video.decoders.base import PictureChange


@dataclass(frozen=True)
class CropInferResult:
    """What a finished job has made.

    Attributes:
        version: N of ``cropped_frames_vN``.
        frame_count: samples of the video.
        label_counts: pairs for each forward label.
        processing_duration_seconds: wall time of the job.
        caption_frame_extents_db_key: the version's database.
        cropped_frames_prefix: key prefix of the version's chunks and manifest.
        caption_count: captions found.
        undecodable_samples: samples that show the last good frame instead of their own.
        picture_changes: samples from which on the picture has another size or format.
        decoder: the decoder that was used.
        captions: the captions, in order.
        metrics: where the time went.
    """

    version: int
    frame_count: int
    label_counts: dict[str, int]
    processing_duration_seconds: float
    caption_frame_extents_db_key: str
    cropped_frames_prefix: str
    caption_count: int
    undecodable_samples: tuple[int, ...]
    picture_changes: tuple[PictureChange, ...]
    decoder: str
    captions: tuple[Caption, ...] = field(repr=False)
    metrics: RunMetrics = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the captions, which are in the database."""
        fields = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in {"captions", "metrics"}
        }
        return {
            **fields,
            "undecodable_samples": list(self.undecodable_samples),
            "picture_changes": [asdict(change) for change in self.picture_changes],
            "metrics": asdict(self.metrics),
        }


class Stopwatch:
    """A run's wall and CPU time, and how much of both went by before the first stage started.

    Args:
        children: the run's child processes, whose CPU time counts.
    """

    def __init__(self, children: Children) -> None:
        self.started = time.perf_counter()
        """On the clock of :func:`time.perf_counter`."""
        self.setup_seconds = self.setup_cpu_seconds = 0.0
        self._children, self._started_cpu = children, time.process_time()

    def set_up(self) -> None:
        """End the set-up phase: the first stage starts now."""
        self.setup_seconds, self.setup_cpu_seconds = self.seconds, self.cpu_seconds

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return time.perf_counter() - self.started

    def share(self, seconds: float) -> float:
        """The run's share of the machine's time until now: of its wall time, which other runs may share."""
        return seconds

    @property
    def cpu_seconds(self) -> float:
        """CPU time so far, of this process and of its child processes."""
        return time.process_time() - self._started_cpu + self._children.cpu_seconds


@dataclass(frozen=True)
class Measured:
    """The objects of a run from which its metrics are computed.

    Attributes:
        job: the job.
        crop: the crop region in pixels.
        preset: the encoder preset.
        prices: prices of machines.
        on_gpu: whether the model computes on a GPU.
        stages: the stages, with their clocks.
        watch: wall and CPU time since the run began.
        gpu: utilisation of the GPU.
        children: the run's child processes.
    """

    job: Job
    crop: CropPixels
    preset: EncoderPreset
    prices: Prices
    on_gpu: bool
    stages: Stages
    watch: Stopwatch
    gpu: GpuWatch
    children: Children

    def metrics(self) -> RunMetrics:
        """The metrics until now."""
        return _metrics(self)


def _metrics(run: Measured) -> RunMetrics:
    job, stages, watch, gpu = run.job, run.stages, run.watch, run.gpu
    measured = {name: StageMetrics.of(clock) for name, clock in stages.clocks.items()}
    total_seconds, cpu_seconds = watch.seconds, watch.cpu_seconds
    occupied_seconds = watch.share(total_seconds)
    cores = usable_cores()
    offload, on_gpu = stages.offload, run.on_gpu
    work = measured_work(
        measured,
        total_seconds=total_seconds,
        cpu_seconds=cpu_seconds,
        setup_cpu_seconds=watch.setup_cpu_seconds,
        cores=cores,
        on_gpu=on_gpu,
        sample_bytes=run.crop.width * run.crop.height * 3 // 2,
        preset=run.preset,
        encoder_workers=job.encoder_workers,
        worker_cpu_seconds=None if offload is None else offload.worker_cpu_seconds,
    )
    return RunMetrics(
        implementation=job.implementation,
        total_seconds=total_seconds,
        occupied_seconds=occupied_seconds,
        setup_seconds=watch.setup_seconds,
        startup_seconds=watch.setup_seconds + measured[EXTRACTION].first_item_seconds,
        first_frame_at=stages.extraction.first_frame_at,
        cpu_seconds=cpu_seconds,
        cpu_count=cores,
        stages=measured,
        overlap=analyse_overlap(measured, job.implementation, work),
        peak_memory_bytes=peak_memory_bytes() + run.children.peak_memory_bytes,
        cost=cost_of_run(
            run.prices, work, run.preset, total_seconds=occupied_seconds, cpu_seconds=cpu_seconds, on_gpu=on_gpu
        ),
        work=work,
        timeline=RunTimeline.of(
            {name: clock.activity for name, clock in stages.clocks.items()}, stages.queued, gpu.activities
        ),
        gpu=gpu.use,
        offload=None
        if offload is None
        else offload_metrics(job.encoder, stages.clocks[ENCODING].workers, offload.block_bytes, work, total_seconds),
    )
