"""One job from arguments to result: check everything, claim a version, run the stages, commit."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from urllib.request import url2pathname

import av
import numpy as np
import torch

import caption_extents
from caption_extents.captions.extents import DecodingCosts, find_captions
from caption_extents.chunks.encode import ChunkFormat
from caption_extents.chunks.encode_process import EncoderProcesses
from caption_extents.chunks.plan import ChunkPlan, plan_chunks
from caption_extents.chunks.presets import EncoderPreset, find_preset
from caption_extents.cores import usable_cores
from caption_extents.errors import InputError, ProcessingError, VideoError
from caption_extents.files import shown_name
from caption_extents.job import REMOTE_ENCODER_NAMES, CropInferResult, Job
from caption_extents.memory import peak_memory_bytes
from caption_extents.model.interface import PairModel
from caption_extents.model.labels import Label
from caption_extents.model.opening import open_model
from caption_extents.model.threads import single_threaded_pool
from caption_extents.model.weights import DEFAULT_WEIGHTS
from caption_extents.pipeline.activity import RunTimeline
from caption_extents.pipeline.analysis import Prices, analyse_overlap, cost_of_run, measured_work, offload_metrics
from caption_extents.pipeline.gpu_use import GpuWatch
from caption_extents.pipeline.metrics import (
    ENCODING,
    EXTRACTION,
    INFERENCE,
    UPLOAD,
    Progress,
    ProgressCallback,
    RunMetrics,
    StageMetrics,
    make_clocks,
)
from caption_extents.pipeline.offload import (
    EncoderWorkers,
    Offload,
    open_workers,
    remove_old_segments,
)
from caption_extents.pipeline.pipelined import run_pipelined
from caption_extents.pipeline.refine import refine_captions
from caption_extents.pipeline.sequential import run_sequential
from caption_extents.pipeline.stages import Encoding, Extraction, Inference, Stages, Upload, Workers
from caption_extents.results.database import CaptionRow, DatabaseWriter
from caption_extents.storage.download import Download
from caption_extents.storage.keys import VideoKeys, is_key
from caption_extents.storage.leases import VersionLease, acquire_version
from caption_extents.storage.manifest import MANIFEST_FORMAT, ChunkRecord, Manifest, SourceRecord, content_fingerprint
from caption_extents.storage.store import Store, open_store
from caption_extents.storage.versions import newest_manifest
from caption_extents.video.crop import CropPixels, resolve_crop
from caption_extents.video.cuda import choose_device
from caption_extents.video.gpu_start import GpuStart
from caption_extents.video.input import VideoInput, open_arriving, open_input
from caption_extents.video.isolated import DecoderLimits
from caption_extents.video.source import VideoFacts, check_file
from caption_extents.video.timeline import Timeline
from caption_extents.watchdog import Watchdog

log = logging.getLogger(__name__)

_LOOSE_END_SECONDS = 10
"""At the end of a file that was cut off, where frames lack what they refer to or a part of themselves."""

IMPLEMENTATIONS: dict[str, Callable[[Stages], list[ChunkRecord]]] = {
    "pipelined": run_pipelined,
    "sequential": run_sequential,
}


@dataclass(frozen=True)
class _Plan:
    """Everything that is known before the first sample is decoded. Making it writes nothing."""

    video: VideoInput
    crop: CropPixels
    model: PairModel
    preset: EncoderPreset
    source: SourceRecord
    prices: Prices
    costs: DecodingCosts

    @property
    def facts(self) -> VideoFacts:
        return self.video.facts

    @property
    def timeline(self) -> Timeline:
        return self.video.timeline


def run_job(job: Job, started: GpuStart | None = None) -> CropInferResult:
    """Run a job.

    Args:
        job: what to do.
        started: processes that have begun to read the video and to decode it on a GPU.

    Raises:
        InputError: an argument or the video cannot be used; nothing was written.
        ProcessingError: a stage failed; readers see nothing of the run, and the next one with the same inputs goes on.
    """
    watch, started_at, watchdog = _Stopwatch(), datetime.now(UTC), Watchdog(job.stall_seconds)
    keys = VideoKeys(job.tenant_id, job.video_id)
    store = open_store(job.store_address)
    with (
        _encoder_processes(job) as processes,
        _loading_model(job) as model,
        _open_video(job, store, started, watchdog) as opened,
    ):
        path, video = opened
        plan = _make_plan(job, path, video, model)
        found = _Captions(plan.timeline.frame_rate, plan.costs)
        with _acquire(job, plan, store, keys) as lease, closing(DatabaseWriter()) as rows, closing(found):
            done = _planned_and_done(lease, len(plan.timeline))
            with _encoder_workers(job, lease) as encoders:
                gpu = GpuWatch(plan.model.device, watch.started, plan.video.gpu_memory_before)
                stages = _make_stages(job, plan, lease, done, encoders, rows, found, watch, watchdog)
                if _in_processes(job, plan.model.device):
                    stages.encoding.processes = processes
                watch.set_up()
                with closing(stages.extraction), gpu:
                    records = [*done.values(), *IMPLEMENTATIONS[job.implementation](stages)]
                processes.end()
            _check_complete(records, len(plan.timeline))
            probabilities = _checked(stages.inference.probabilities)
            captions = found.rows(probabilities)
            if job.refine:
                captions = watchdog.call(
                    "refining",
                    partial(refine_captions, captions, plan.facts, plan.timeline, plan.crop, plan.model),
                )
            manifest = _manifest(job, plan, records, lease)
            so_far = _metrics(job, plan, stages, watch, gpu)
            metadata = _run_metadata(job, plan, stages, manifest, started_at, so_far)
            lease.commit(manifest, rows.finish(metadata, captions))
    metrics = _metrics(job, plan, stages, watch, gpu)
    forward = Counter(int(label) for label in probabilities[:, 0].argmax(axis=1))
    return CropInferResult(
        version=lease.version,
        frame_count=len(plan.timeline),
        label_counts={label.text: forward[label] for label in Label},
        processing_duration_seconds=metrics.total_seconds,
        caption_frame_extents_db_key=keys.database(lease.version),
        cropped_frames_prefix=keys.cropped_frames(lease.version),
        caption_count=len(captions),
        undecodable_samples=tuple(stages.extraction.decoder.undecodable_samples),
        decoder=stages.extraction.decoder.name,
        metrics=metrics,
    )


@contextmanager
def _loading_model(job: Job) -> Iterator[Future[PairModel]]:
    """The model, on its way while the video is opened: a GPU's context takes as long as the index of an hour."""

    def load() -> PairModel:
        device = choose_device(job.device)
        return opened.enter_context(open_model(job.model, job.crop_region, device, job.inference_threads))

    with ExitStack() as opened, single_threaded_pool(1, "load-model") as thread:
        yield thread.submit(load)


@contextmanager
def _open_video(
    job: Job, store: Store, started: GpuStart | None, watchdog: Watchdog
) -> Iterator[tuple[Path, VideoInput]]:
    """The video as a file, and opened: a file of this machine, or an object of the store."""
    local = _local_path(job.video_key, store)
    if local is not None:
        opening = open_input(local, job.rate, _limits(job), _on_gpu(job, local, started))
        with watchdog.entered(repr(job.video_key), opening) as video:
            yield local, video
        return
    if store.folder is not None or not is_key(job.video_key) or not store.exists(job.video_key):
        raise VideoError(f"there is no video {job.video_key!r}, neither as a file here nor as a key in {store.address}")
    with (
        TemporaryDirectory(prefix="caption-extents-") as folder,
        store.start_download(job.video_key, Path(folder) / "video", _download_progress(job.progress)) as download,
        watchdog.entered(repr(job.video_key), _open_download(job, download)) as video,
    ):
        yield download.path, video


def _local_path(key: str, store: Store) -> Path | None:
    """The video's file on this machine; None if it can only be an object.

    Raises:
        VideoError: it is something else than a file, or an address.
    """
    scheme = key.partition("://")[0] if "://" in key else ""
    if scheme not in {"", "file"}:
        raise VideoError(
            f"{key!r} is an address, and videos are read from this machine or from the store; "
            "download it first, or give its key in the store"
        )
    local = Path(url2pathname(urlsplit(key).path) if scheme else key).expanduser()
    if _is_there(local):
        check_file(local)
        return local
    if store.folder is not None and is_key(key) and _is_there(object_ := store.folder / key):
        check_file(object_)
        return object_
    return None


def _is_there(path: Path) -> bool:
    """Whether there is something of this name, also if it cannot be looked at."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        pass
    return True


def _on_gpu(job: Job, path: Path, started: GpuStart | None) -> GpuStart | None:
    """Processes that read the video and decode it, where a GPU does that."""
    device = choose_device(job.device)
    if job.isolate or device.type == "cpu":
        return None
    return started or GpuStart.begin(path, job.rate, job.crop_region, device.index or 0, job.stall_seconds)


@contextmanager
def _open_download(job: Job, download: Download) -> Iterator[VideoInput]:
    if job.isolate:
        download.wait()
        with open_input(download.path, job.rate, _limits(job)) as video:
            yield video
        return
    # A GPU cuts the video into parts that its engines decode side by side, and must know all packets first.
    region = job.crop_region if choose_device(job.device).type == "cpu" else None
    with open_arriving(download, job.rate, region, job.decode_threads) as video:
        yield video


def _download_progress(progress: ProgressCallback | None) -> Callable[[int, int], None] | None:
    """Bytes that come, as progress of a stage of its own, in MiB."""
    if progress is None:
        return None
    return lambda done, total: progress(Progress("download", done >> 20, max(1, total >> 20)))


def _limits(job: Job) -> DecoderLimits | None:
    return DecoderLimits(job.isolate_memory_mib << 20, job.stall_seconds) if job.isolate else None


def _make_plan(job: Job, path: Path, video: VideoInput, model: Future[PairModel]) -> _Plan:
    preset = find_preset(job.preset)
    if job.refine and not video.facts.times_every_frame:
        raise VideoError(f"{job.video_key!r} does not time every frame, so it cannot be refined; encode it anew as MKV")
    if video.facts.missing_bytes:
        ends_early = _how_it_ends_early(job.video_key, video)
        if not job.partial:
            raise VideoError(f"{ends_early}. Fetch it again, or give `partial` to take it as far as it goes")
        log.warning("%s. It is taken as far as it goes", ends_early)
    loaded = model.result()
    if job.device.startswith("cuda") and loaded.device.type != "cuda":
        raise InputError(
            f"device is {job.device!r}, and the model computes on {str(loaded.device)!r}; give device 'auto' or 'cpu', "
            "or a model on the GPU"
        )
    return _Plan(
        video=video,
        crop=resolve_crop(job.crop_region, video.facts),
        model=loaded,
        preset=preset,
        source=SourceRecord(shown_name(job.video_key), video.facts.size_bytes, content_fingerprint(path)),
        prices=job.machine_prices,
        costs=DecodingCosts.of(loaded),
    )


def _how_it_ends_early(key: str, video: VideoInput) -> str:
    there = video.facts.size_bytes
    share = there / (there + video.facts.missing_bytes)
    seconds = float(len(video.timeline) / video.timeline.frame_rate)
    return (
        f"{key!r} ends early: it holds {there:,} of {there + video.facts.missing_bytes:,} bytes ({share:.0%}), "
        f"the first {int(seconds) // 60}:{seconds % 60:04.1f} minutes; the download or copy was cut off"
    )


def _acquire(job: Job, plan: _Plan, store: Store, keys: VideoKeys) -> VersionLease:
    inputs = _inputs_digest(plan)
    there = newest_manifest(store, keys)
    if there is not None and there.source.fingerprint != plan.source.fingerprint:
        log.warning(
            "video id %r has versions of another file, %r (version %d); give another id to keep them apart",
            keys.video_id,
            there.source.key,
            there.version,
        )
    return acquire_version(store, keys, inputs, fresh=job.new_version, lease_seconds=job.lease_seconds)


def _inputs_digest(plan: _Plan) -> str:
    """What the content of a version depends on: runs with one digest make the same chunks and results."""
    inputs = {
        "source": plan.source.fingerprint,
        "crop_px": plan.crop.as_tuple(),
        "frame_rate": str(plan.timeline.frame_rate),
        "preset": [plan.preset.name, plan.preset.threads, dict(plan.preset.options)],
        # PyAV brings FFmpeg and libvpx along: another one may encode other bytes.
        "versions": [caption_extents.__version__, av.__version__],
        "model": plan.model.digest,
        "manifest_format": MANIFEST_FORMAT,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _in_processes(job: Job, device: torch.device) -> bool:
    """Whether chunks are encoded beside this process."""
    if job.encoder == "auto":
        return job.implementation == "pipelined" and device.type == "cuda"
    return job.encoder == "processes"


@contextmanager
def _encoder_processes(job: Job) -> Iterator[EncoderProcesses]:
    """Where chunks are encoded beside this process; they get ready while the video is opened."""
    with EncoderProcesses(job.encoder_workers) as processes:
        if _in_processes(job, choose_device(job.device)):
            processes.start()
        yield processes


@contextmanager
def _encoder_workers(job: Job, lease: VersionLease) -> Iterator[EncoderWorkers | None]:
    """Encoders beside this process, if the job wants them; what this run has sent them is gone in the end."""
    if job.encoder not in REMOTE_ENCODER_NAMES:
        yield None
        return
    remove_old_segments(lease.store, lease.keys)
    with closing(open_workers(job.encoder, job.encoder_workers)) as workers:
        try:
            yield workers
        finally:
            lease.store.delete_below(f"{lease.keys.segments(lease.version, lease.run_id)}/")


def _make_stages(
    job: Job,
    plan: _Plan,
    lease: VersionLease,
    done: dict[ChunkPlan, ChunkRecord],
    encoders: EncoderWorkers | None,
    rows: DatabaseWriter,
    found: _Captions,
    watch: _Stopwatch,
    watchdog: Watchdog,
) -> Stages:
    facts, count = plan.facts, len(plan.timeline)
    clocks = make_clocks(count, job.progress, watch.started, sum(len(chunk.samples) for chunk in done))
    decoder = plan.video.open_decoder(
        plan.crop,
        device=plan.model.device,
        insist=job.device.startswith("cuda"),
        threads=job.decode_threads,
    )
    form = ChunkFormat(
        frame_rate=plan.timeline.frame_rate,
        colour_range=facts.colour.range,
        colour_space=facts.colour.space,
        colour_primaries=facts.colour.primaries,
        colour_transfer=facts.colour.transfer,
    )
    loose = math.ceil(_LOOSE_END_SECONDS * job.rate) if job.partial and facts.missing_bytes else 0
    offload = None
    if encoders is not None:
        offload = Offload(encoders, lease, plan.preset, form, count, done, clocks[ENCODING], clocks[UPLOAD])
    return Stages(
        extraction=Extraction(decoder, count, job.max_undecodable_share, watchdog, clocks[EXTRACTION], loose),
        inference=Inference(plan.model, count, clocks[INFERENCE], _unless_damaged(rows.add_pairs), found.begin),
        encoding=Encoding(plan.preset, form, clocks[ENCODING], count, done),
        upload=Upload(lease, clocks[UPLOAD]),
        workers=Workers(job.encoder_workers, job.upload_workers, job.queue_size),
        clocks=clocks,
        watchdog=watchdog,
        offload=offload,
    )


def _planned_and_done(lease: VersionLease, sample_count: int) -> dict[ChunkPlan, ChunkRecord]:
    """Chunks of this video that an earlier run has stored in full."""
    found = ((chunk, lease.done.get((chunk.level, chunk.first_sample))) for chunk in plan_chunks(sample_count))
    return {chunk: record for chunk, record in found if record is not None and record.samples == chunk.samples}


def _check_complete(records: list[ChunkRecord], sample_count: int) -> None:
    """Every sample must be in exactly one stored chunk before readers may see any."""
    planned = {(plan.level, plan.samples) for plan in plan_chunks(sample_count)}
    stored = {(record.level, record.samples) for record in records}
    if planned != stored or len(records) != len(planned):
        raise ProcessingError(
            f"{len(planned)} chunks were planned but {len(records)} stored ({len(planned - stored)} missing); "
            "this is a bug, please report it"
        )


def _unless_damaged(add: Callable[[int, np.ndarray], None]) -> Callable[[int, np.ndarray], None]:
    """Passes over probabilities that are none, which the database refuses; the run fails for them in the end."""
    return lambda first, probabilities: None if np.isnan(probabilities).any() else add(first, probabilities)


def _checked(probabilities: np.ndarray) -> np.ndarray:
    if np.isnan(probabilities).any():
        raise ProcessingError("the model gave no probability for some pair; its weights are damaged")
    return probabilities


class _Captions:
    """The captions, found while the last chunks are still encoded."""

    def __init__(self, rate: Fraction, costs: DecodingCosts) -> None:
        self._rate, self._costs = rate, costs
        self._thread = ThreadPoolExecutor(1, "captions")
        self._found: Future[list[CaptionRow]] | None = None

    def begin(self, probabilities: np.ndarray) -> None:
        """Begin to find them, when all probabilities are there."""
        self._found = self._thread.submit(self._rows, probabilities)

    def rows(self, probabilities: np.ndarray) -> list[CaptionRow]:
        """All of them."""
        return self._found.result() if self._found else self._rows(probabilities)

    def _rows(self, probabilities: np.ndarray) -> list[CaptionRow]:
        return [
            CaptionRow(
                start_frame=caption.start_frame,
                end_frame=caption.end_frame,
                start_seconds=float(caption.start_frame / self._rate),
                end_seconds=float(caption.end_frame / self._rate),
                confidence=caption.confidence,
            )
            for caption in find_captions(probabilities, self._costs)
        ]

    def close(self) -> None:
        """Give up."""
        self._thread.shutdown()


def _manifest(job: Job, plan: _Plan, records: list[ChunkRecord], lease: VersionLease) -> Manifest:
    return Manifest(
        version=lease.version,
        run_id=lease.run_id,
        source=plan.source,
        crop=job.crop_region.as_tuple(),
        crop_px=plan.crop.as_tuple(),
        sample_aspect_ratio=str(plan.facts.sample_aspect_ratio),
        frame_rate=str(plan.timeline.frame_rate),
        sample_count=len(plan.timeline),
        preset=plan.preset.name,
        model_version=plan.model.version,
        chunks=tuple(sorted(records, key=lambda record: (-record.level, record.samples[0]))),
    )


def _run_metadata(
    job: Job, plan: _Plan, stages: Stages, manifest: Manifest, started_at: datetime, metrics: RunMetrics
) -> dict[str, object]:
    decoder = stages.extraction.decoder
    return {
        "cropped_frames_version": manifest.version,
        "model_version": manifest.model_version,
        "model_checkpoint_path": _model_path(job.model),
        "run_id": manifest.run_id,
        "started_at": started_at.isoformat(),
        "completed_at": datetime.now(UTC).isoformat(),
        "total_pairs": manifest.sample_count - 1,
        "processing_time_seconds": metrics.total_seconds,
        "frame_rate": manifest.frame_rate,
        "frame_count": manifest.sample_count,
        "crop": ",".join(map(str, manifest.crop)),
        "crop_px": ",".join(map(str, manifest.crop_px)),
        "source_key": manifest.source.key,
        "source_fingerprint": manifest.source.fingerprint,
        "encoder_preset": manifest.preset,
        "implementation": job.implementation,
        "decoder": decoder.name,
        "undecodable_samples": ",".join(map(str, decoder.undecodable_samples)),
        "package_version": caption_extents.__version__,
        "metrics": json.dumps(metrics.to_dict()),
    }


def _model_path(model: object) -> str:
    if model is None:
        return DEFAULT_WEIGHTS.name
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else type(model).__qualname__


@dataclass
class _Stopwatch:
    """A run's wall and CPU time, and how much of both went by before the first stage started."""

    started: float = field(default_factory=time.perf_counter)
    started_cpu: float = field(default_factory=time.process_time)
    setup_seconds: float = 0.0
    setup_cpu_seconds: float = 0.0

    def set_up(self) -> None:
        self.setup_seconds, self.setup_cpu_seconds = self.seconds, self.cpu_seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    @property
    def cpu_seconds(self) -> float:
        return time.process_time() - self.started_cpu


def _metrics(job: Job, plan: _Plan, stages: Stages, watch: _Stopwatch, gpu: GpuWatch) -> RunMetrics:
    measured = {name: StageMetrics.of(clock) for name, clock in stages.clocks.items()}
    processes = stages.encoding.processes
    total_seconds = watch.seconds
    beside = [*plan.video.beside, *([processes] if processes else [])]
    cpu_seconds = watch.cpu_seconds + sum(process.cpu_seconds for process in beside)
    cores = usable_cores()
    on_gpu, offload = plan.model.device.type == "cuda", stages.offload
    work = measured_work(
        measured,
        total_seconds=total_seconds,
        cpu_seconds=cpu_seconds,
        setup_cpu_seconds=watch.setup_cpu_seconds,
        cores=cores,
        on_gpu=on_gpu,
        sample_bytes=plan.crop.width * plan.crop.height * 3 // 2,
        preset=plan.preset,
        encoder_workers=job.encoder_workers,
        worker_cpu_seconds=None if offload is None else offload.worker_cpu_seconds,
    )
    return RunMetrics(
        implementation=job.implementation,
        total_seconds=total_seconds,
        setup_seconds=watch.setup_seconds,
        startup_seconds=watch.setup_seconds + measured[EXTRACTION].first_item_seconds,
        first_frame_at=stages.extraction.first_frame_at,
        cpu_seconds=cpu_seconds,
        cpu_count=cores,
        stages=measured,
        overlap=analyse_overlap(measured, job.implementation, work),
        peak_memory_bytes=peak_memory_bytes() + sum(process.peak_memory_bytes for process in beside),
        cost=cost_of_run(
            plan.prices, work, plan.preset, total_seconds=total_seconds, cpu_seconds=cpu_seconds, on_gpu=on_gpu
        ),
        work=work,
        timeline=RunTimeline.of(
            {name: clock.activity for name, clock in stages.clocks.items()}, stages.queued, gpu.activities
        ),
        gpu=gpu.use,
        offload=None
        if offload is None
        else offload_metrics(job.encoder, stages.clocks[ENCODING].workers, offload.segment_bytes, work, total_seconds),
    )
